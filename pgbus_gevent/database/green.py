"""How psycopg2 waits in a process that is patched for gevent.

psycopg2 has one wait callback for the whole process. :func:`install` sets ours: for our own connections it keeps a
deadline, which libpq's ``connect_timeout`` and the server's ``statement_timeout`` cannot (the first is ignored when
connecting asynchronously, the second needs a server that still answers); any other connection of the process waits as
the callback lets it that was there before, or as psycogreen does. Where an application sets another one later, ours takes its
place again with our next statement.

An exception that leaves the callback makes psycopg2 close the connection, so a wait that was cut short (a deadline, a
killed greenlet) never leaves a connection in an unknown state behind.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import psycopg2
import psycopg2.extensions as ext
from gevent import monkey
from gevent.socket import wait_read, wait_write
from psycogreen.gevent import gevent_wait_callback

from .cursors import Cursor, PlainCursor
from .overdue import ASK_AFTER, LAST_CHANCE, watched

STATEMENT_GRACE = 5.0
"""Seconds that a statement gets beyond the server's own statement_timeout before we give the connection up."""

_ESTABLISHED = (ext.STATUS_READY, ext.STATUS_BEGIN, ext.STATUS_PREPARED)
_REPOLL = 1.0
# Seconds. TLS may hold bytes that no longer make the descriptor readable, and the session may have come into doubt: looking again
# finds them.


class Connection(ext.connection):
    """A connection whose every wait ends. ``connect_timeout`` and ``statement_timeout`` are in seconds.

    ``patience``, where it is set, is how long the next statements are waited for at the most. :attr:`expired` tells whether a wait
    has ended the connection. What waits now ends at :attr:`doubted_until` at the latest, which any greenlet may set.

    Only the greenlet that runs a statement may touch it: psycopg2 holds a mutex meanwhile, and a second greenlet that
    closes or commits would stop the whole process for good.
    """

    def __init__(self, dsn: str, async_: int = 0, *, connect_timeout: float, statement_timeout: float) -> None:
        # Before the base class, which connects and so waits in the callback below.
        self.connect_timeout = connect_timeout
        self.statement_timeout = statement_timeout
        self.own_search_path: str | None = None  # as the URL wants it, for who runs statements of an application
        self.prefix: Callable[[bool], str] | None = (
            None  # what each statement needs in front of it, see session_settings.py
        )
        self.patience: float | None = None
        self.doubted_until: float | None = None
        self.ask: Callable[[Connection], bool] | None = None  # see still_served
        self.expired = False
        try:
            super().__init__(dsn, async_)  # type: ignore[call-arg]  # the stubs do not know it
            self.cursor_factory = Cursor
        except BaseException:
            # One that was cut off while connecting is closed when it is collected, and a log record may hold its traceback.
            del self
            raise

    def allowance(self, connecting: bool) -> float:
        """Seconds that a wait may take."""
        if connecting:
            return self.connect_timeout
        most = self.statement_timeout + STATEMENT_GRACE
        return most if self.patience is None else min(self.patience, most)

    def still_served(self) -> bool:
        """Whether the server still works on what this connection waits for, or cannot tell; asks by another connection."""
        return self.ask is None or self.ask(self)

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """As psycopg2's. Every statement begins here, which nothing must make wait in another way."""
        ensure()
        if options.get("cursor_factory") is ext.cursor:
            options["cursor_factory"] = PlainCursor
        return super().cursor(*arguments, **options)

    def commit(self) -> None:
        """As psycopg2's."""
        with watched(self):
            super().commit()


_others: Callable[[Any], object] = gevent_wait_callback
# How connections wait that are not ours.


def install() -> None:
    """Make psycopg2 cooperative in this process. Calling it again changes nothing."""
    global _others
    present = ext.get_wait_callback()
    if present is not wait_callback:
        _others = present or gevent_wait_callback
        ext.set_wait_callback(wait_callback)


def installed() -> bool:
    """Whether psycopg2 gives way to other greenlets while it waits, by our callback or another."""
    return ext.get_wait_callback() is not None


def ensure() -> None:
    """In a process that is patched for gevent, see to it that psycopg2 gives way too, and that our waits have their deadlines."""
    if monkey.is_module_patched("socket"):
        install()


def wait_callback(connection: Any) -> None:
    """Wait until libpq is done with what it does on ``connection``; the process's psycopg2 wait callback.

    Raises psycopg2.OperationalError at the deadline, upon which psycopg2 closes the connection.
    """
    if not isinstance(connection, Connection):
        _others(connection)
        return
    try:
        connection.doubted_until = None
        connecting = connection.status not in _ESTABLISHED
        began = monotonic()
        end = began + connection.allowance(connecting)
        ask_at = began + ASK_AFTER
        while True:
            state = connection.poll()
            if state == ext.POLL_OK:
                return
            if connecting and connection.status in _ESTABLISHED:
                connecting = False
                end = monotonic() + connection.allowance(connecting)
            if not connecting and monotonic() >= ask_at:
                ask_at = monotonic() + ASK_AFTER
                if not connection.still_served():
                    end = min(end, monotonic() + LAST_CHANCE)
            left = min(end, end if connection.doubted_until is None else connection.doubted_until) - monotonic()
            if left <= 0:
                connection.expired = True
                raise psycopg2.OperationalError(
                    "timeout expired: the server did not answer the connect in time"
                    if connecting
                    else "timeout expired: the server did not answer the statement in time"
                )
            wait = wait_read if state == ext.POLL_READ else wait_write
            try:
                wait(connection.fileno(), timeout=left if connecting else min(left, _REPOLL))
            except TimeoutError:
                pass  # while connecting libpq must not be polled before its socket is ready, but then `left` is over too
    except BaseException:
        del connection  # as above
        raise
