"""Asks another session whether the server still works on a statement whose answer does not come.

A dead connection, for example through a proxy that accepts bytes and passes none on, looks like one with a slow statement.
:func:`wait_callback` in green.py asks while it waits. A process that is not patched for gevent waits inside libpq, so there a
thread watches. The thread lives while statements are running and a moment longer, and is stopped before a fork.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Protocol

from gevent import monkey

ASK_AFTER = 4.0
"""Seconds after which the server is asked, and the interval between further questions."""

LAST_CHANCE = 1.0
"""Seconds that a statement gets after a negative answer, because its result may have been on its way."""

_TICK = 0.5


class Watched(Protocol):
    """A connection. ``still_served`` is False if the server certainly does not work on its statement."""

    def fileno(self) -> int: ...
    def allowance(self, connecting: bool) -> float: ...
    def still_served(self) -> bool: ...


@contextmanager
def watched(connection: Any) -> Iterator[None]:
    """End the connection if the statement in this block is overdue. In a patched process, the wait callback does that instead."""
    if monkey.is_module_patched("socket"):
        yield
        return
    statement = _Statement(connection)
    _watch.add(statement)
    try:
        yield
    finally:
        _watch.remove(statement)


class _Statement:
    def __init__(self, connection: Watched) -> None:
        self.connection = connection
        self.ask_at = monotonic() + ASK_AFTER
        self.end = monotonic() + connection.allowance(False)


class _Watch:
    """The running statements of this process, and the thread that watches them."""

    def __init__(self) -> None:
        # Held only briefly. _end() holds it while it uses a descriptor: remove() waits for it, so the statement's thread cannot
        # go on and close that descriptor.
        self._lock = threading.Lock()
        self._under_way: set[_Statement] = set()
        self._thread: threading.Thread | None = None
        self._enough = threading.Event()

    def add(self, statement: _Statement) -> None:
        with self._lock:
            self._under_way.add(statement)
            if self._thread is None:
                self._enough = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(self._enough,), name="pgbus-watch", daemon=True)
                self._thread.start()

    def remove(self, statement: _Statement) -> None:
        with self._lock:
            self._under_way.discard(statement)

    def _run(self, enough: threading.Event) -> None:
        while not enough.wait(_TICK):
            with self._lock:
                if not self._under_way:
                    self._thread = None
                    return
                looked_at = list(self._under_way)
            now = monotonic()
            for statement in looked_at:
                if now >= statement.end:
                    self._end(statement)
                elif now >= statement.ask_at:
                    statement.ask_at = now + ASK_AFTER
                    # In another thread, because the question may hang as well.
                    threading.Thread(target=self._ask, args=(statement,), name="pgbus-ask", daemon=True).start()

    def _ask(self, statement: _Statement) -> None:
        if not statement.connection.still_served():
            statement.end = min(statement.end, monotonic() + LAST_CHANCE)

    def _end(self, statement: _Statement) -> None:
        with self._lock:
            if statement in self._under_way:
                # Not close(): the statement holds the connection's mutex.
                with socket.socket(fileno=os.dup(statement.connection.fileno())) as sock:
                    sock.shutdown(socket.SHUT_RDWR)
                self._under_way.discard(statement)

    def stop(self) -> None:
        """End the thread, unless statements are running. The next statement starts it again."""
        with self._lock:
            thread = self._thread
            if thread is None or self._under_way:
                return
            self._thread = None
            self._enough.set()
        thread.join(_TICK)


_watch = _Watch()


def _before_fork() -> None:
    _watch.stop()


def _after_fork() -> None:
    global _watch
    _watch = _Watch()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
