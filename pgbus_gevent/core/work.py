"""Work for greenlets: items that stay until the work on them is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Generic, Protocol, TypeVar, overload

T = TypeVar("T")


class Flag(Protocol):
    """A flag that a greenlet waits for; :class:`gevent.event.Event` is one."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...
    def clear(self) -> None: ...
    @overload
    def wait(self, timeout: None = None) -> bool: ...
    @overload
    def wait(self, timeout: float) -> bool: ...


class Interruptible(Protocol):
    """Something that waits until it is interrupted; a session of the listener is one."""

    def interrupt(self) -> None: ...


class SessionFlag:
    """A flag for the part that waits in a session. Setting it interrupts the session, if there is one."""

    __slots__ = ("_set", "session")

    def __init__(self) -> None:
        self.session: Interruptible | None = None
        self._set = False

    def is_set(self) -> bool:
        """Whether it was set since the last :meth:`clear`."""
        return self._set

    def set(self) -> None:
        """Set the flag, and interrupt the session."""
        self._set = True
        if self.session is not None:
            self.session.interrupt()

    def clear(self) -> None:
        """Clear the flag."""
        self._set = False


class Work(Generic[T]):
    """Items to work on, in the order in which they were added. One greenlet at a time has an item.

    An item that is added while a greenlet has it is handed out again afterwards, because that greenlet may have read its state
    before the change. ``flag`` is set whenever there may be an item to take.
    """

    __slots__ = ("_flag", "_taken", "_waiting")

    def __init__(self, flag: Flag | SessionFlag) -> None:
        self._flag = flag
        self._waiting: dict[T, None] = {}
        self._taken: dict[T, None] = {}

    def __len__(self) -> int:
        """How many items wait or are being worked on."""
        return len(self._waiting.keys() | self._taken.keys())

    def __bool__(self) -> bool:
        return bool(self._waiting or self._taken)

    def __contains__(self, item: object) -> bool:
        return item in self._waiting or item in self._taken

    def __iter__(self) -> Iterator[T]:
        return iter([*self._taken, *(item for item in self._waiting if item not in self._taken)])

    @property
    def taken(self) -> int:
        """How many items greenlets have taken and not finished."""
        return len(self._taken)

    def add(self, item: T) -> None:
        """Have ``item`` worked on."""
        self._waiting[item] = None
        if not self._flag.is_set():
            self._flag.set()

    def take(self, limit: int | None = None) -> list[T]:
        """Take up to ``limit`` items that no greenlet has. The caller has them until :meth:`done` or :meth:`give_back`."""
        if limit is None and not self._taken:
            self._taken, self._waiting = self._waiting, self._taken
            return list(self._taken)
        items = list(islice((item for item in self._waiting if item not in self._taken), limit))
        for item in items:
            del self._waiting[item]
            self._taken[item] = None
        return items

    def done(self, item: T) -> None:
        """Finish the work on ``item``. If it was added meanwhile, it can be taken again."""
        self._taken.pop(item, None)
        if self._waiting and (not self._taken or item in self._waiting):
            self._flag.set()

    def give_back(self, items: Iterable[T] | None = None) -> None:
        """Return ``items``, or all items that were taken, because the work on them was not finished."""
        for item in list(self._taken) if items is None else items:
            if item in self._taken:
                del self._taken[item]
                self.add(item)

    def discard(self, item: T) -> None:
        """Remove ``item``, because the work on it is no longer needed."""
        self._waiting.pop(item, None)
        self._taken.pop(item, None)

    @contextmanager
    def taking(self, limit: int | None = None) -> Iterator[list[T]]:
        """Take items for the duration of a block. If the block raises, they are given back."""
        items = self.take(limit)
        try:
            yield items
        except BaseException:
            self.give_back(items)
            raise
        for item in items:
            self.done(item)
