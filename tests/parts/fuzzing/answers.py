"""What the code of an application may answer or raise, read from an input: every type, objects that lie, all exceptions."""

from __future__ import annotations

from collections.abc import Callable
from time import time
from types import SimpleNamespace
from typing import Any

import gevent

from fuzzing.engine import Witness
from fuzzing.inputs import Taker
from pgbus_gevent.core.client import Subscriber

TIMEOUT = 0.2
"""Seconds that the authorize hook has, here."""

Answer = Callable[[], Any]


class Bad(Exception):
    """An exception that cannot be shown."""

    def __repr__(self) -> str:
        raise ValueError("no repr")

    __str__ = __repr__


class Worse(BaseException):
    """An exception of no usual kind, whose text is long."""

    def __str__(self) -> str:
        return "x" * 1_000_000


class Secretive(Exception):
    """An exception each of whose attributes ends the process, also those that a traceback is made of."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(f"no {name}")


class Liar:
    """An object each of whose attributes raises, also those that Python asks for."""

    def __init__(self, error: BaseException) -> None:
        object.__setattr__(self, "error", error)

    def __getattribute__(self, name: str) -> Any:
        raise object.__getattribute__(self, "error")

    def __bool__(self) -> bool:
        raise object.__getattribute__(self, "error")

    def __eq__(self, other: object) -> bool:
        raise object.__getattribute__(self, "error")

    def __hash__(self) -> int:
        raise object.__getattribute__(self, "error")

    def __repr__(self) -> str:
        raise object.__getattribute__(self, "error")


class Own:
    """A context with its own identity."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __pgbus_identity__(self) -> Any:
        return self._value() if callable(self._value) else self._value


class Crooked(Subscriber):
    """A subscriber whose methods do something else."""

    def _replace(self, **_: Any) -> Any:
        raise SystemExit(3)


def _hidden() -> type:
    class Unnamed(type):
        def __getattribute__(cls, name: str) -> Any:
            if Witness.watches:
                raise SystemExit(f"no {name}")
            return super().__getattribute__(name)  # later tests may look at all objects of the process

    return Unnamed("Hidden", (), {})


HIDDEN = (_hidden(),)
"""A class without attributes, not even a name. It is in a tuple, because pytest asks the names of a module what they are."""


ERRORS: tuple[Callable[[], BaseException], ...] = (
    ValueError, Bad, Worse, SystemExit, KeyboardInterrupt, GeneratorExit, gevent.GreenletExit, lambda: gevent.Timeout(1),
    StopIteration,
    RecursionError, MemoryError, OSError, UnicodeError, lambda: SystemExit("x" * 100_000),
    lambda: ValueError("\0\ud800\n" * 50),
    AssertionError, lambda: TimeoutError(110, "late"), BaseException, StopAsyncIteration, ConnectionResetError, Secretive,
    lambda: AttributeError("x", name="x", obj=Liar(SystemExit())),
)  # fmt: skip

_METHODS = (
    "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__len__", "__iter__", "__contains__", "__bool__", "__repr__",
    "__str__", "__format__", "__getitem__", "__float__", "__add__", "encode", "startswith", "get", "items", "keys", "isdisjoint",
)  # fmt: skip


def raise_(error: BaseException) -> Any:
    raise error


def odd(value: Any, error: Callable[[], BaseException], *, hashable: bool) -> Any:
    """Return a value that is equal to ``value`` in memory, of a subclass of its type whose methods raise."""

    def fails(*_: Any, **__: Any) -> Any:
        raise error()

    kind = type(value)
    methods: dict[str, Any] = {name: fails for name in _METHODS if hasattr(kind, name)}
    methods["__hash__"] = kind.__hash__ if hashable else fails
    return type(f"Odd_{kind.__name__}", (kind,), methods)(value)


async def coroutine() -> bool:
    """An authorize hook or a filter that was written for asyncio."""
    return True


async def asynchronous() -> Any:
    yield True


def _uncalled() -> Answer:
    return lambda: True


def odd_subscriber(take: Taker) -> Answer:
    """Return a function that answers a valid subscriber made of values that raise whatever is done with them."""
    error, hashable, field = take.pick(ERRORS), bool(take.byte() % 2), take.byte() % 8

    def answer() -> Any:
        owner, member, context, labels = "ada", "ada", {"presence": {"name": "Ada"}}, frozenset({"x"})
        soon: Any = time() + 60
        some: Any = [
            (odd(owner, error, hashable=hashable), context, member, soon, labels),
            (owner, odd(context, error, hashable=hashable), member, soon, labels),
            (owner, {"presence": odd(context, error, hashable=hashable)}, member, soon, labels),
            (owner, context, odd(member, error, hashable=hashable), soon, labels),
            (owner, context, member, odd(soon, error, hashable=hashable), labels),
            (owner, context, member, soon, odd(labels, error, hashable=hashable)),
            (owner, context, member, soon, frozenset({odd("x", error, hashable=True)})),
            (owner, {"presence": {odd("x", error, hashable=True): Liar(error())}}, member, soon, labels),
        ][field]
        return Subscriber._make(some)

    return answer


def odd_answer(take: Taker) -> Answer:
    """Return a function that answers what is true, or false, or neither, but is no answer."""
    error = take.pick(ERRORS)
    return take.pick(
        (
            coroutine, asynchronous, _uncalled, lambda: gevent.spawn(lambda: True), lambda: "x".upper, lambda: HIDDEN[0],
            lambda: HIDDEN[0](), lambda: Subscriber, lambda: odd("x", error, hashable=False),
            lambda: odd(1.0, error, hashable=True),
            lambda: odd({}, error, hashable=False), lambda: SimpleNamespace(owner="ada"), lambda: Own(error()), lambda: error,
            lambda: Liar(error()), lambda: (each for each in [True]),
        )
    )  # fmt: skip


def answer_of(take: Taker, back: tuple[Callable[[], object], ...] = (), *, deep: int = 0) -> Answer:
    """Return a function that answers as the input says, or raises, or takes long. ``back`` are calls into the bus.

    An answer that waits can have another one within, up to a depth of 10.
    """
    kind = take.byte() % (18 if deep < 10 else 12)
    if kind == 12:
        return odd_subscriber(take)
    if kind == 13:
        return odd_answer(take)
    if kind in (14, 15) and back:
        call, then = take.pick(back), answer_of(take) if kind == 14 else lambda: True
        return lambda: (call(), then())[1]
    if kind == 16:
        wait, then = take.pick((0.0, 0.001, 0.02)), answer_of(take, deep=deep + 1)
        return lambda: (gevent.sleep(wait), then())[1]
    if kind == 17:
        value = take.pick(
            ("a\0b", "\ud800", "a\r\nb", "x" * 300_000, b"ada", float("nan"), 2**70, ("ada",), frozenset({"x"}))
        )
        fields = ("owner", "context", "member", "expires_at", "labels")
        field = take.pick(fields)
        return lambda: Subscriber()._replace(**{field: value, "owner" if field != "owner" else "member": "ada"})
    return _plain_answer(kind, take)


def _plain_answer(kind: int, take: Taker) -> Answer:
    error = take.pick(ERRORS)
    if kind < 3:
        return lambda: raise_(error())
    if kind == 3:
        return lambda: Liar(error())
    if kind == 4:
        return lambda: gevent.sleep(2 * TIMEOUT) or True
    if kind == 5:
        return lambda: (raise_(each) for each in [error()])
    if kind == 6:
        return lambda: "x" * 3_000_000
    if kind == 7:
        return lambda: Crooked("ada", take.byte())
    values = [take.value() for _ in range(5)]
    if kind == 8:
        return lambda: Subscriber._make(values)
    if kind == 9:
        return lambda: Subscriber(*values)
    if kind == 10:
        inner = take.pick(
            (lambda: Liar(error()), lambda: Own(values[0]), lambda: Own(lambda: raise_(error())), lambda: values)
        )
        return lambda: Subscriber("ada", inner(), "ada", time() + 60, {"x"} if values[0] else set())
    return lambda: values[0]
