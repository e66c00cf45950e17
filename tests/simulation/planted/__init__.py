"""Faults that are planted into the product, to see whether the simulator finds them.

A fault is a list of edits: the text of a function, in which one piece is replaced by another. The piece must be there exactly once,
so an edit that no longer fits the product is an error, and never a fault that is not planted.
"""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any, NamedTuple


class Edit(NamedTuple):
    """``where`` is a module, a class and a function, as ``pgbus_gevent.core.tail:Tail.holes``; or a module and a function.

    For a function that others import by its name, it is the module of those, which may differ from where it is defined.
    """

    where: str
    old: str
    new: str


class Fault(NamedTuple):
    """A fault, and what it is in a sentence."""

    name: str
    about: str
    edits: tuple[Edit, ...]


_texts: dict[Any, str] = {}
# The texts of the functions that were edited.


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """Plant a fault for the duration of a block."""
    with ExitStack() as stack:
        for edit in fault.edits:
            stack.enter_context(_edited(edit))
        yield


@contextmanager
def _edited(edit: Edit) -> Iterator[None]:
    module_name, _, path = edit.where.partition(":")
    holder: Any = import_module(module_name)
    *outer, name = path.split(".")
    for each in outer:
        holder = getattr(holder, each)
    before = holder.__dict__[name]
    setattr(holder, name, _changed(module_name, before, edit))
    try:
        yield
    finally:
        setattr(holder, name, before)


def _changed(module_name: str, before: Any, edit: Edit) -> Any:
    function: Any = before.fget if isinstance(before, property) else before
    function = getattr(function, "__wrapped__", function)
    # Python does not know the text of a function that was edited before.
    text = _texts.get(function) or textwrap.dedent(inspect.getsource(function))
    if text.count(edit.old) != 1:
        raise ValueError(f"{edit.where} does not have {edit.old!r} exactly once")
    text = text.replace(edit.old, edit.new)
    found: dict[str, Any] = {}
    code = compile(text, f"<planted in {edit.where}>", "exec", __future__.annotations.compiler_flag)
    exec(code, function.__globals__, found)  # the text is ours, and this is a test
    (result,) = found.values()
    if callable(result):
        _texts[getattr(result, "__wrapped__", result)] = text
    return result
