"""The needs of a test beside Python: a database, a browser, a program. They are read from the test, not declared.

conftest.py calls :func:`mark` when the tests have been collected. So ``pytest -m fast`` selects the tests that need none of these,
whichever folder they are in, and ``pytest -m "not browser"`` leaves out those in a browser.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
_PREFIX = f"{TESTS}{os.sep}"
NEEDS = ("database", "browser", "program", "slow")
"""The markers that a fast test has none of. ``slow`` is for tests that compute for long; it alone is written by hand."""

FIXTURES = {"pgbus_databases": "database", "browser": "browser"}
"""By the fixture that every test with this need uses, directly or through another."""

STARTERS = {"subprocess", "Popen", "fork", "multiprocessing", "EmbeddedPostgres"}
"""Names in code that starts a process."""


def mark(items: list[pytest.Item]) -> None:
    """Give each test the markers of its needs, or ``fast`` if it has none."""
    for item in items:
        for need in _needs(item):
            item.add_marker(need)
        if not any(item.get_closest_marker(need) for need in NEEDS):
            item.add_marker("fast")


def _needs(item: pytest.Item) -> set[str]:
    names = getattr(item, "fixturenames", ())
    found = {need for fixture, need in FIXTURES.items() if fixture in names}
    if isinstance(item, pytest.Function):
        fixtures = [
            definition.func for name in names for definition in item._fixtureinfo.name2fixturedefs.get(name, ())
        ]
        if any(_starts_a_program(inspect.unwrap(function)) for function in (item.function, *fixtures)):
            found.add("program")
    return found


@cache
def _starts_a_program(function: Any) -> bool:
    """Return whether a function, or a function or class of the tests reachable from it, names a starter."""
    seen: set[Any] = set()
    waiting = [function]
    while waiting:
        current = inspect.unwrap(waiting.pop())
        if current in seen or not _is_ours(current):
            continue
        seen.add(current)
        if inspect.isclass(current):
            waiting += [part for member in vars(current).values() for part in _functions_of(member)]
            waiting += current.__bases__
            continue
        used = _names_in(current.__code__)
        if used & STARTERS:
            return True
        waiting += _values_of(used, current.__globals__)
    return False


def _is_ours(value: object) -> bool:
    """Return whether a function, class or module belongs to the tests."""
    if isinstance(value, FunctionType):
        file: str | None = value.__code__.co_filename
    elif inspect.isclass(value):
        file = getattr(sys.modules.get(value.__module__), "__file__", None)
    else:
        file = getattr(value, "__file__", None)
    return file is not None and file.startswith(_PREFIX)


def _functions_of(member: object) -> Iterator[Any]:
    """Return the functions in a member of a class: itself, those of a property, those under a decorator."""
    for part in (member, *(getattr(member, name, None) for name in ("fget", "fset", "__func__", "func"))):
        if isinstance(part, FunctionType) or inspect.isclass(part):
            yield part


def _names_in(code: CodeType) -> set[str]:
    """Return all global names and attributes that the code uses, including the code of inner functions."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names_in(constant)
    return names


def _values_of(names: set[str], space: dict[str, Any]) -> Iterator[Any]:
    for name in names:
        value = space.get(name)
        if isinstance(value, FunctionType) or inspect.isclass(value):
            yield value
        elif isinstance(value, ModuleType) and _is_ours(value):
            yield from (found for other in names if callable(found := getattr(value, other, None)))
