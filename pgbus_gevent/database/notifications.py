"""The session that LISTENs. It is used from one greenlet, by the part that opened it."""

from __future__ import annotations

import os
import secrets
from collections import deque
from collections.abc import Mapping
from time import monotonic
from typing import Any

import psycopg2.extensions as ext
from gevent.socket import wait_read

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

_PING = """
select pg_backend_pid(), exists (select from pg_listening_channels() l where l = %s), c.doorbell, c.control
from pgbus.channels() c
"""


class ListenSession:
    """A connection that has run LISTEN, and its notifications in the order of their arrival.

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
        self._channels: tuple[str, ...] = ()
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

    def receive(self, timeout: float) -> tuple[list[str], bool]:
        """Wait up to ``timeout`` seconds. Returns the payloads that came, and whether a full backlog dropped any.

        Raises :class:`DatabaseUnavailable` if the session has ended.
        """
        with translated():
            if not self._notifies:
                try:
                    wait_read(self._connection.fileno(), timeout=min(timeout, _POLL))
                except TimeoutError:
                    pass
                self._connection.poll()
        # If the backlog is full, it may have dropped some.
        lost = len(self._notifies) == BACKLOG
        payloads = [notify.payload for notify in self._notifies if notify.channel in self._channels]
        self._notifies.clear()
        return payloads, lost

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
        channels = tuple(map(str, found))
        if channels != self._channels:
            former, self._channels = self._channels, channels
            self._run("; ".join([*map(_listen, channels), *(f'unlisten "{name}"' for name in former)]))

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
            raise DatabaseUnavailable("PostgreSQL is not available: the LISTEN session was closed")
        return rows

    def close(self) -> None:
        """End the session. Idempotent."""
        self._connection.close()


def _listen(channel: str) -> str:
    return f'listen "{channel}"'
