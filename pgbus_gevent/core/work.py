"""Pieces of work that stay where they are until somebody has done them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Generic, Protocol, TypeVar, overload

T = TypeVar("T")


class Flag(Protocol):
    """What a worker waits for; :class:`gevent.event.Event` is one."""

    def is_set(self) -> bool: ...
    def set(self) -> None: ...
    def clear(self) -> None: ...
    @overload
    def wait(self, timeout: None = None) -> bool: ...
    @overload
    def wait(self, timeout: float) -> bool: ...


class Work(Generic[T]):
    """Items to work on, in the order in which they were added, each by one worker at a time.

    An item that is added while a worker has it is handed out again afterwards: what was added may be newer than what that worker
    saw. ``flag`` is set whenever there may be something to take.
    """

    __slots__ = ("_flag", "_taken", "_waiting")

    def __init__(self, flag: Flag) -> None:
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
        """How many items are being worked on."""
        return len(self._taken)

    def add(self, item: T) -> None:
        """Have ``item`` worked on."""
        self._waiting[item] = None
        if not self._flag.is_set():
            self._flag.set()

    def take(self, limit: int | None = None) -> list[T]:
        """Up to ``limit`` items that no worker has; they are the caller's until :meth:`done` or :meth:`give_back`."""
        if limit is None and not self._taken:
            self._taken, self._waiting = self._waiting, self._taken
            return list(self._taken)
        items = list(islice((item for item in self._waiting if item not in self._taken), limit))
        for item in items:
            del self._waiting[item]
            self._taken[item] = None
        return items

    def done(self, item: T) -> None:
        """The work on ``item`` is finished."""
        self._taken.pop(item, None)
        if self._waiting and (not self._taken or item in self._waiting):
            self._flag.set()

    def give_back(self, items: Iterable[T] | None = None) -> None:
        """The work on ``items``, or on everything that was taken, was broken off."""
        for item in list(self._taken) if items is None else items:
            if item in self._taken:
                del self._taken[item]
                self.add(item)

    def discard(self, item: T) -> None:
        """Nobody needs the work on ``item`` any more."""
        self._waiting.pop(item, None)
        self._taken.pop(item, None)

    @contextmanager
    def taking(self, limit: int) -> Iterator[list[T]]:
        """Take items for the duration of a block. If the block raises, they are given back."""
        items = self.take(limit)
        try:
            yield items
        except BaseException:
            self.give_back(items)
            raise
        for item in items:
            self.done(item)
