"""One session that LISTENs. Whoever opened it is the only one who may use it, from one greenlet."""

from __future__ import annotations

import os
from collections import deque
from time import monotonic
from typing import Any

import psycopg2.extensions as ext
from gevent.socket import wait_read

from ..errors import DatabaseUnavailable
from .connect import connect, translated

BACKLOG = 10_000
"""Notifications held at the most; beyond that the oldest go, which :meth:`ListenSession.receive` tells."""

_POLL = 1.0  # seconds: bounds a wake-up that was lost, and bytes that TLS holds back from the descriptor


class ListenSession:
    """A connection that has LISTENed, and its notifications in the order in which they came."""

    def __init__(self, url: str, *, connect_timeout: float, statement_timeout: float) -> None:
        self._connection = connect(
            url,
            application_name="pgbus-listen",
            connect_timeout=connect_timeout,
            statement_timeout=statement_timeout,
        )
        self._notifies: deque[ext.Notify] = deque(maxlen=BACKLOG)
        self._connection.notifies = self._notifies  # type: ignore[assignment]  # psycopg2 only appends to it
        self._probe = f"pgbus_probe_{os.getpid()}_{self.backend_pid}"
        self._channels: tuple[str, ...] = ()
        try:
            self._run(_listen(self._probe))
            self.ping()
        except BaseException:
            self.close()
            raise

    @property
    def backend_pid(self) -> int:
        """The process id of the server's side, as in pg_stat_activity."""
        return int(self._connection.info.backend_pid)

    def receive(self, timeout: float) -> tuple[list[str], bool]:
        """Wait up to ``timeout`` seconds; the payloads that came, and whether any were lost for want of room.

        Raises :class:`DatabaseUnavailable` when the session has ended.
        """
        with translated():
            if not self._notifies:
                try:
                    wait_read(self._connection.fileno(), timeout=min(timeout, _POLL))
                except TimeoutError:
                    pass
                self._connection.poll()
        # A full backlog may have pushed some out.
        lost = len(self._notifies) == BACKLOG
        payloads = [notify.payload for notify in self._notifies if notify.channel in self._channels]
        self._notifies.clear()
        return payloads, lost

    def hears(self, timeout: float) -> bool:
        """Whether a notification comes back within ``timeout`` seconds; behind a transaction pooler none does."""
        end = monotonic() + timeout
        self._run(f'notify "{self._probe}"')
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

    def ping(self) -> None:
        """Return when the server answers; notifications that come with the answer are kept for :meth:`receive`.

        The channels' names are secrets of the database, which may have been changed: so each time they are asked for.
        """
        ((*found,),) = self._run("select c.doorbell, c.control from pgbus.channels() c")
        channels = tuple(map(str, found))
        if channels != self._channels:
            former, self._channels = self._channels, channels
            self._run("; ".join([*map(_listen, channels), *(f'unlisten "{name}"' for name in former)]))

    def _run(self, statement: str) -> list[tuple[Any, ...]]:
        with translated(), self._connection.cursor() as cursor:
            cursor.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
        if self._connection.closed:
            raise DatabaseUnavailable("PostgreSQL is not available: the LISTEN session was closed")
        return rows

    def close(self) -> None:
        """End the session. May be called again."""
        self._connection.close()


def _listen(channel: str) -> str:
    return f'listen "{channel}"'
