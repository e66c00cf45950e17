"""How psycopg2 waits in a process that is patched for gevent.

psycopg2 has one wait callback for the whole process. :func:`install` sets ours. For our own connections it keeps a
deadline, because libpq's ``connect_timeout`` is ignored when connecting asynchronously, and the server's
``statement_timeout`` needs a server that still answers. All other connections of the process wait by the callback that was
set before, or by psycogreen's. If an application sets another callback later, our next statement installs ours again.

If the callback raises, psycopg2 closes the connection. So a wait that is cut short, by its deadline or because its greenlet
is killed, never leaves a connection in an unknown state.
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
"""Seconds beyond the server's statement_timeout after which we end the connection."""

_ESTABLISHED = (ext.STATUS_READY, ext.STATUS_BEGIN, ext.STATUS_PREPARED)
_REPOLL = 1.0
# Seconds. TLS may hold bytes without making the descriptor readable, and doubted_until may have been set: only polling again
# notices either.


class Connection(ext.connection):
    """A connection whose every wait has a deadline. ``connect_timeout`` and ``statement_timeout`` are in seconds.

    ``patience``, if set, is the most seconds that the next statements may take. :attr:`expired` is True once a deadline has
    ended the connection. Any greenlet may set :attr:`doubted_until`, a monotonic time at which the present wait ends at the
    latest.

    While a statement runs, only the greenlet that runs it may use the connection. psycopg2 holds a mutex meanwhile: a second
    greenlet that closes or commits would block the whole process for good.
    """

    def __init__(self, dsn: str, async_: int = 0, *, connect_timeout: float, statement_timeout: float) -> None:
        # Set before the base class connects, because connecting waits in the callback below.
        self.connect_timeout = connect_timeout
        self.statement_timeout = statement_timeout
        self.own_search_path: str | None = None  # the URL's, for transactions that run an application's statements
        self.prefix: Callable[[bool], str] | None = None  # SessionSettings.prefix, behind a pooler
        self.patience: float | None = None
        self.doubted_until: float | None = None
        self.ask: Callable[[Connection], bool] | None = None  # see still_served
        self.expired = False
        try:
            super().__init__(dsn, async_)  # type: ignore[call-arg]  # the stubs do not know it
            self.cursor_factory = Cursor
        except BaseException:
            # An interrupted connect is closed when the object is collected. A log record may hold the traceback, which would
            # keep it alive.
            del self
            raise

    def allowance(self, connecting: bool) -> float:
        """Return the seconds that a wait may take."""
        if connecting:
            return self.connect_timeout
        most = self.statement_timeout + STATEMENT_GRACE
        return most if self.patience is None else min(self.patience, most)

    def still_served(self) -> bool:
        """Whether the server still works on this connection's statement. Asks over another connection; True if that cannot tell."""
        return self.ask is None or self.ask(self)

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """As psycopg2's. Every statement begins here, so this is the place to put our wait callback back."""
        ensure()
        if options.get("cursor_factory") is ext.cursor:
            options["cursor_factory"] = PlainCursor
        return super().cursor(*arguments, **options)

    def commit(self) -> None:
        """As psycopg2's."""
        with watched(self):
            super().commit()


_others: Callable[[Any], object] = gevent_wait_callback
# The wait callback of connections that are not ours.


def install() -> None:
    """Make psycopg2 cooperative in this process. Idempotent."""
    global _others
    present = ext.get_wait_callback()
    if present is not wait_callback:
        _others = present or gevent_wait_callback
        ext.set_wait_callback(wait_callback)


def installed() -> bool:
    """Whether psycopg2 lets other greenlets run while it waits, by our callback or another."""
    return ext.get_wait_callback() is not None


def ensure() -> None:
    """Install our callback if the process is patched for gevent."""
    if monkey.is_module_patched("socket"):
        install()


def wait_callback(connection: Any) -> None:
    """Wait until libpq has finished its operation on ``connection``. This is the process's psycopg2 wait callback.

    Raises psycopg2.OperationalError at the deadline; psycopg2 then closes the connection.
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
                pass  # libpq must not be polled early while it connects; there the wait took all of `left`, so the deadline is over
    except BaseException:
        del connection  # for the same reason as in Connection.__init__
        raise
