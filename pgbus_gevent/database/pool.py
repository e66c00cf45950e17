"""A small pool of connections for greenlets and threads.

It waits with gevent's semaphore, which also serves threads and stays correct if a waiter is killed twice; the standard
library's semaphore does not, in a patched process. A connection is in exactly one place: idle in the pool, or in the ``with``
block that took it. A connection that comes back in doubt is never used again: if it is closed, in a transaction that cannot
be rolled back, or from before a fork.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import psycopg2
import psycopg2.extensions as ext
from gevent.lock import BoundedSemaphore
from gevent.monkey import get_original

from ..errors import DatabaseUnavailable, PoolTimeout
from .connect import translated
from .green import Connection
from .patience import LIFE, Patience

IDLE_CHECK = 5.0
"""Seconds after which an idle connection is tested before it is handed out."""

# Seconds. A semaphore wakes one waiter per release. If that waiter is killed at the same moment, no other one is woken.
_LOOK_AGAIN = 0.25

DOUBT = 2.0
"""Seconds that running statements still get after a session was found dead, because all sessions lead to the same server."""

KEPT = 30.0
"""Seconds after which an idle connection is closed if there is another one. So a worker without work keeps one."""

WAIT = 0.25
"""The longest wait, in seconds, of a statement that need not be prompt for the end of another such statement."""

_STATE = "select pg_backend_pid(), (select coalesce(state, '') from pg_stat_activity where pid = %s)"

_AT_ONCE = 1.0  # seconds; a refusal within this time is an answer, so the server lives

_Idle = tuple[ext.connection, float]


class Pool:
    """At most ``size`` connections, opened by ``connect`` when they are needed.

    ``timeout`` is how many seconds to wait for a free connection. Any greenlet or thread may call :meth:`connection` and
    :meth:`close`.
    """

    def __init__(self, connect: Callable[[], ext.connection], *, size: int, timeout: float) -> None:
        self._open = connect
        self.size = size
        self.timeout = timeout
        self._reset()
        self._closed = False

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._free = BoundedSemaphore(self.size)
        # The periodic statements of a worker take turns, so that they need only one connection.
        self._turn = BoundedSemaphore(1)
        self._idle: deque[_Idle] = deque()
        self._used: set[ext.connection] = set()
        self.answered = monotonic()
        """Monotonic time of the database's last answer. At first, the time at which the pool was made."""

    @contextmanager
    def connection(self, patience: Patience | None = None) -> Iterator[ext.connection]:
        """Lend a connection in autocommit mode to this block. Its statements get ``patience``, or else the statement timeout.

        Raises :class:`PoolTimeout` if no connection becomes free, and :class:`DatabaseUnavailable` if none can be opened.
        Translates the exceptions of psycopg2 that leave the block, and passes all others on.
        """
        if self._pid != os.getpid():
            # After a fork, the sockets belong to the parent: even closing one would end the parent's session.
            _abandoned.append(self._idle)
            self._reset()
        free, turn = self._free, self._turn
        has_turn = patience is not None and patience.waits and turn.acquire(timeout=WAIT)
        try:
            self._wait_for(free)
            try:
                with self._lent(patience) as connection:
                    yield connection
            finally:
                free.release()
        finally:
            if has_turn:
                turn.release()

    @contextmanager
    def _lent(self, patience: Patience | None) -> Iterator[ext.connection]:
        connection = self._take()
        began = monotonic()
        self._used.add(connection)
        _set_patience(connection, patience)
        if isinstance(connection, Connection):
            connection.ask = None if patience else self._works_on
        try:
            with translated():
                yield connection
        finally:
            self._used.discard(connection)
            self._note_outcome(connection, patience, began)
            self._give_back(connection)

    def ask(self, question: Callable[[ext.connection], None]) -> None:
        """Ask a ``question`` that costs almost nothing, to see whether the database answers. Opens a connection if none is free.

        Raises :class:`DatabaseError`.
        """
        self._check_open()
        if self._pid == os.getpid() and self._free.locked():
            connection = self._connect()
            try:
                _set_patience(connection, Patience(LIFE))
                with translated():
                    question(connection)
                self.answered = monotonic()
            finally:
                connection.close()
            return
        with self.connection(Patience(LIFE, waits=True)) as connection:
            try:
                question(connection)
            finally:
                if _expired(connection):
                    self.doubt()

    def _works_on(self, asking: Connection) -> bool:
        """Whether the server works on the statement of ``asking``. True if that cannot be found out."""
        began = monotonic()
        try:
            connection = self._connect()
        except DatabaseUnavailable:
            return monotonic() - began < _AT_ONCE
        _set_patience(connection, Patience(LIFE))
        try:
            with connection.cursor() as cursor:
                cursor.execute(_STATE, (asking.info.backend_pid,))
                ((own, state),) = cursor.fetchall()
        except psycopg2.Error:
            return not _expired(connection)
        else:
            # Behind a pooler, the process ids that we know are not the server's, so the state says nothing.
            return own != connection.info.backend_pid or state not in (None, "idle", "idle in transaction")
        finally:
            connection.close()

    def doubt(self) -> None:
        """Close the idle connections, and give running statements :data:`DOUBT` seconds, because a session was found dead."""
        self.discard_idle()
        end = monotonic() + DOUBT
        for connection in list(self._used):
            if isinstance(connection, Connection):
                # Closing it here would block the process for good, as the docstring of Connection says.
                connection.doubted_until = end

    def _note_outcome(self, connection: ext.connection, patience: Patience | None, began: float) -> None:
        if not connection.closed:
            self.answered = monotonic()
            if patience is not None:
                patience.answered()
        elif patience is not None and _expired(connection) and self.answered > began:
            patience.expired()

    def _connect(self) -> ext.connection:
        connection = self._open()
        self.answered = monotonic()
        return connection

    def _wait_for(self, free: BoundedSemaphore) -> None:
        end = monotonic() + self.timeout
        self._check_open()
        while not free.acquire(timeout=max(0.0, min(end - monotonic(), _LOOK_AGAIN))):
            self._check_open()
            if monotonic() >= end:
                raise PoolTimeout(self.timeout, self.size)

    def _check_open(self) -> None:
        if self._closed:
            raise DatabaseUnavailable("the connection pool is closed")

    def _take(self) -> ext.connection:
        self._check_open()
        while True:
            try:
                connection, since = self._idle.pop()
            except IndexError:  # tried without a check, because another thread may take the last one in between
                return self._connect()
            if _lives(connection, monotonic() - since):
                return connection
            if _expired(connection):
                self.doubt()
            connection.close()

    def _give_back(self, connection: ext.connection) -> None:
        if self._pid != os.getpid():
            _abandoned.append(connection)
        elif self._closed or not _reusable(connection):
            if connection.closed:
                # The idle ones lead to the same server. If the path is dead, each would cost a timeout.
                self.discard_idle()
            connection.close()
        else:
            self._idle.append((connection, monotonic()))
            self._shrink(monotonic())

    def _shrink(self, now: float) -> None:
        """Close the connections that were not needed for a while, but the last one. The longest idle one is the first."""
        try:
            while len(self._idle) > 1 and now - self._idle[0][1] >= KEPT:
                self._idle.popleft()[0].close()
        except IndexError:  # another thread took it in between
            pass

    @property
    def in_use(self) -> int:
        """The number of connections that are lent out or being opened."""
        return 0 if self._pid != os.getpid() else self.size - int(self._free.counter)

    def discard_idle(self) -> None:
        """Close the idle connections. After the server went away, all of them are dead."""
        try:
            while True:
                self._idle.pop()[0].close()
        except IndexError:
            pass

    def close(self) -> None:
        """Close the idle connections now, and the others when they come back. Idempotent."""
        self._closed = True
        if self._pid == os.getpid():
            self.discard_idle()


_abandoned: list[object] = []
# Never emptied, on purpose: collecting a connection would close it.


def _lives(connection: ext.connection, idle: float) -> bool:
    """Whether a connection that was idle for ``idle`` seconds can be used. Asks the server only if there is a doubt."""
    if idle < IDLE_CHECK and not _has_unread_bytes(connection):
        return True
    _set_patience(connection, Patience(LIFE))
    try:
        with connection.cursor() as cursor:
            cursor.execute("select 1")
    except psycopg2.Error:
        return False
    return True


def _set_patience(connection: ext.connection, patience: Patience | None) -> None:
    if isinstance(connection, Connection):
        connection.patience = None if patience is None else patience.seconds


def _expired(connection: ext.connection) -> bool:
    return isinstance(connection, Connection) and connection.expired


def _has_unread_bytes(connection: ext.connection) -> bool:
    # A server rarely sends anything unasked except the end of the session. Uses the original poll, because gevent's would let
    # other greenlets run here.
    poll = get_original("select", "poll")()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _reusable(connection: ext.connection) -> bool:
    """Whether the connection is open and outside any transaction. Tries to roll back an open transaction first."""
    if connection.closed:
        return False
    status = connection.info.transaction_status
    if status in (ext.TRANSACTION_STATUS_INTRANS, ext.TRANSACTION_STATUS_INERROR):
        try:
            connection.rollback()
            connection.autocommit = True
        except psycopg2.Error:
            return False
        status = connection.info.transaction_status
    return bool(status == ext.TRANSACTION_STATUS_IDLE and connection.autocommit)
