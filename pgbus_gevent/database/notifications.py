"""The session that LISTENs. It is used from one greenlet, by the part that opened it; only ``interrupt`` is for others."""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Collection, Mapping
from time import monotonic
from typing import Any

import psycopg2.extensions as ext
from gevent import get_hub
from gevent.event import Event
from gevent.socket import wait_read

from ..core.buckets import ALL_BUCKETS, buckets_of, channel
from ..errors import DatabaseError, DatabaseUnavailable, Deaf, PoolTimeout
from .addresses import Route
from .connect import connect, translated
from .patience import LIFE, Patience
from .pool import Pool

BACKLOG = 10_000
"""The most notifications that are held. When more come, the oldest are dropped, and :meth:`ListenSession.receive` says so."""

_POLL = 1.0  # seconds; bounds the delay of a lost wakeup, and of bytes that TLS holds without making the descriptor readable

PROBE_TIMEOUT = 2.0
"""Seconds in which a probe notification must come back. After that the session counts as deaf."""

_CLOSED = "PostgreSQL is not available: the LISTEN session was closed"

_PING = """
select pg_backend_pid(), exists (select from pg_listening_channels() l where l = %s), c.doorbell, c.control
from pgbus.channels() c
"""


class ListenSession:
    """A connection that has run LISTEN, and its notifications in the order of their arrival.

    It hears the control channel, and of the doorbell's channels those of the buckets that it follows: none at first.

    Timeouts are in seconds. Probe notifications are sent from a session of ``pool``, if it is given. A notification that a
    session sends to itself proves little, because a pooler returns it at once but does not pass on those of other sessions.
    Raises :class:`DatabaseUnavailable` if it cannot connect, and :class:`Deaf` as :meth:`ping` does.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout: float,
        statement_timeout: float,
        pool: Pool | None = None,
        settings: Mapping[str, str] | None = None,
        route: Route | None = None,
    ) -> None:
        self._pool = pool
        self._connection = connect(
            url,
            application_name="pgbus-listen",
            connect_timeout=connect_timeout,
            statement_timeout=statement_timeout,
            settings=settings,
            route=route,
        )
        self._notifies: deque[ext.Notify] = deque(maxlen=BACKLOG)
        self._connection.notifies = self._notifies  # type: ignore[assignment]  # psycopg2 only appends to it
        self._connection.patience = LIFE
        # Random as well, because processes on different machines may have the same process id.
        self._probe = f"pgbus_probe_{os.getpid()}_{secrets.token_hex(4)}"
        self._is_direct = True
        self._doorbell = self._control = ""
        self._buckets: frozenset[int] = frozenset()
        self._channels: frozenset[str] = frozenset()
        self._missed = False
        # One watcher for all waits, and one event that either the watcher or interrupt() sets.
        self._wake = Event()
        self._readable = get_hub().loop.io(self._connection.fileno(), 1)
        try:
            self._run(_listen(self._probe))
            self.ping()
        except BaseException:
            self.close()
            raise

    @property
    def backend_pid(self) -> int:
        """The process id of the session's backend, as in pg_stat_activity."""
        return int(self._connection.info.backend_pid)

    def follow(self, streams: Collection[str] | None) -> None:
        """Listen for these streams too; None means for all streams, also those to come.

        From its return on, every notification about them is heard. A bucket that is followed already costs no statement.
        Raises :class:`DatabaseError`.
        """
        self._listen_on(self._buckets | (ALL_BUCKETS if streams is None else buckets_of(streams)))

    def narrow(self, streams: Collection[str]) -> None:
        """Stop listening on the channels that none of these streams needs. Raises :class:`DatabaseError`."""
        self._listen_on(self._buckets & buckets_of(streams))

    def _listen_on(self, buckets: frozenset[int]) -> None:
        wanted = frozenset((self._control, *(channel(self._doorbell, bucket) for bucket in buckets)))
        gone = self._channels - wanted
        if len(gone) > len(wanted):
            # In one transaction, so nothing is missed. A worker that has followed all streams would have 63 statements.
            statements = ["unlisten *", *(_listen(name) for name in sorted({self._probe, *wanted}))]
        else:
            statements = [_listen(name) for name in sorted(wanted - self._channels)]
            statements += [f'unlisten "{name}"' for name in sorted(gone)]
        if statements:
            self._run("; ".join(statements))
        self._buckets, self._channels = buckets, wanted

    def receive(self, timeout: float) -> tuple[list[str], bool]:
        """Wait up to ``timeout`` seconds, or until :meth:`interrupt`. Returns the payloads, and whether others may be lost.

        They may be lost in a full backlog, which drops the oldest, and while the names of the channels were replaced.
        Raises :class:`DatabaseUnavailable` if the session has ended.
        """
        if self._connection.closed:
            raise DatabaseUnavailable(_CLOSED)
        with translated():
            if not self._notifies:
                self._wait(min(timeout, _POLL))
                self._connection.poll()
        lost = self._missed or len(self._notifies) == BACKLOG
        self._missed = False
        payloads = [notify.payload for notify in self._notifies if notify.channel in self._channels]
        self._notifies.clear()
        return payloads, lost

    def _wait(self, timeout: float) -> None:
        """Wait until bytes come, or :meth:`interrupt` is called, or has been since the last wait."""
        if not self._wake.is_set():
            self._readable.start(self._wake.set)
            try:
                self._wake.wait(timeout)
            finally:
                self._readable.stop()
        self._wake.clear()

    def interrupt(self) -> None:
        """Have :meth:`receive` return, or the next one if none waits. For other greenlets; it never yields."""
        self._wake.set()

    def hears(self, timeout: float = PROBE_TIMEOUT) -> bool:
        """Whether a probe notification comes back within ``timeout`` seconds. Behind a pooler in transaction mode, none does."""
        self._send_probe()
        end = monotonic() + timeout
        with translated():
            while not any(notify.channel == self._probe for notify in self._notifies):
                if monotonic() >= end:
                    return False
                try:
                    wait_read(self._connection.fileno(), timeout=max(0.01, min(end - monotonic(), _POLL)))
                except TimeoutError:
                    pass
                self._connection.poll()
        return True

    def _send_probe(self) -> None:
        statement = f'notify "{self._probe}"'
        if self._pool is not None:
            try:
                with self._pool.connection(Patience(LIFE)) as connection, connection.cursor() as cursor:
                    cursor.execute(statement)
                return
            except (DatabaseUnavailable, PoolTimeout):
                pass  # the parts that use the pool report this
        self._run(statement)

    @property
    def cause(self) -> str:
        """The likely reason if no probe notification comes back."""
        if self._is_direct:
            return "notifications of other sessions do not arrive: a pooler is in between, or the two URLs name different databases"
        return "a pooler is in between that does not pass on notifications, as in transaction mode"

    def ping(self) -> None:
        """Return when the server answers. Notifications that come with the answer are kept for :meth:`receive`.

        Also asks for the names of the channels, which are secrets of the database and may have changed. Raises :class:`Deaf` if
        the session that answers is not the one that ran LISTEN, or no longer gets notifications.
        """
        ((pid, listens, *found),) = self._run(_PING, self._probe)
        if not listens:
            raise Deaf(
                "the session that answers is not the one that listens: a pooler in transaction mode is in between"
            )
        was_direct, self._is_direct = self._is_direct, pid == self.backend_pid
        if not (self._is_direct or was_direct or self.hears()):
            raise Deaf(self.cause)
        doorbell, control = map(str, found)
        if (doorbell, control) != (self._doorbell, self._control):
            # Since the change, notifications were sent on channels on which this session does not listen.
            self._missed = bool(self._doorbell)
            self._doorbell, self._control = doorbell, control
            self._listen_on(self._buckets)

    def _run(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        try:
            with translated(), self._connection.cursor() as cursor:
                cursor.execute(statement, parameters or None)
                rows = cursor.fetchall() if cursor.description else []
        except DatabaseError:
            if self._connection.expired and self._pool is not None:
                self._pool.doubt()
            raise
        if self._connection.closed:
            raise DatabaseUnavailable(_CLOSED)
        return rows

    def close(self) -> None:
        """End the session. Idempotent."""
        self._readable.stop()
        self._readable.close()
        self._connection.close()


def _listen(channel: str) -> str:
    return f'listen "{channel}"'
