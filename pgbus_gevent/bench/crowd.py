"""A crowd of publishers: a process with many database sessions, each of which publishes as fast as it can.

It runs one loop over asynchronous connections, because threads would spend the time on switching.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from time import monotonic
from typing import Any

import psycopg2
import psycopg2.extensions as ext

from pgbus_gevent.bench import stamps
from pgbus_gevent.bench.load import percentiles
from pgbus_gevent.bench.program import serve
from pgbus_gevent.core.buckets import ALL_BUCKETS, channel

_WARM_UP = 0.3
# A connection that is ready (POLL_OK) waits for writability, which the socket reports at once, so the loop comes back to it.
_EVENTS = {ext.POLL_READ: select.EPOLLIN, ext.POLL_WRITE: select.EPOLLOUT, ext.POLL_OK: select.EPOLLOUT}


class Session:
    """One publisher with its own stream."""

    def __init__(self, url: str, statement: str, stream: str, size: int, batch: int) -> None:
        self.connection = psycopg2.connect(url, async_=True)
        _wait(self.connection)
        self._cursor = self.connection.cursor()
        self._statement = statement
        self._stream = stream
        self._size = size
        self._batch = batch
        self.began = 0
        self.awaited = 0

    def publish(self) -> int:
        """Start a call. Returns the state to wait for, one of psycopg2's POLL_* constants."""
        self.began = stamps.now()
        data = stamps.data(self._size, self.began)
        self._cursor.execute(
            self._statement, {"stream": self._stream, "data": [data] * self._batch if self._batch else data}
        )
        return self.poll()

    def poll(self) -> int:
        """Continue the call. Returns the state to wait for, or POLL_OK when it is done."""
        return int(self.connection.poll())


def _wait(connection: Any) -> None:
    """Wait until an asynchronous connection has finished its operation."""
    while (state := connection.poll()) != ext.POLL_OK:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN if state == ext.POLL_READ else select.POLLOUT)
        poll.poll(10_000)


def crowd(
    *,
    url: str,
    statement: str,
    publishers: int,
    seconds: float,
    size: int,
    batch: int = 0,
    listeners: int = 0,
) -> dict[str, Any]:
    """Publish for ``seconds`` while ``listeners`` sessions LISTEN. Each call publishes ``batch`` messages (0: one, as text).

    Returns the rates of calls and messages, and the percentiles of the duration of a call.
    """
    with ExitStack() as stack:
        listening = Listening(url, listeners)
        stack.callback(listening.close)
        sessions = [Session(url, statement, f"bench:{n}", size, batch) for n in range(publishers)]
        for session in sessions:
            stack.enter_context(closing(session.connection))
        return _publish(sessions, seconds, batch or 1)


def _publish(sessions: list[Session], seconds: float, per_call: int) -> dict[str, Any]:
    epoll = select.epoll()
    by_descriptor: dict[int, Session] = {}
    for session in sessions:
        by_descriptor[session.connection.fileno()] = session
        session.awaited = _EVENTS[session.publish()]
        epoll.register(session.connection.fileno(), session.awaited)
    calls: list[int] = []
    total = 0
    began = monotonic() + _WARM_UP
    end = began + seconds
    counting = False
    busy = len(sessions)
    while busy:
        for descriptor, _ in epoll.poll(10.0):
            session = by_descriptor[descriptor]
            state = session.poll()
            if state == ext.POLL_OK:
                total += per_call
                if counting:
                    calls.append(stamps.now() - session.began)
                if monotonic() >= end:
                    busy -= 1
                    epoll.unregister(descriptor)
                    continue
                state = session.publish()
            if _EVENTS[state] != session.awaited:
                session.awaited = _EVENTS[state]
                epoll.modify(descriptor, session.awaited)
        counting = counting or monotonic() >= began
    elapsed = max(1e-6, monotonic() - began)
    return {
        "ended": stamps.now(),
        "published": total,
        "calls_per_second": len(calls) / elapsed,
        "per_second": len(calls) * per_call / elapsed,
        **percentiles(calls),
    }


class Listening:
    """Sessions that LISTEN like workers on other machines. Their notifications are read a few times a second and thrown away.

    They are on the roll of the workers, which sets the pace of the doorbell.
    """

    def __init__(self, url: str, count: int) -> None:
        self._url = url
        self._on_the_roll(count)
        self._connections = list(self._open(url, count))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _open(self, url: str, count: int) -> Iterator[Any]:
        for _ in range(count):
            connection = psycopg2.connect(url)
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("select doorbell from pgbus.channels()")
                ((doorbell,),) = cursor.fetchall()
                cursor.execute("; ".join(f'listen "{channel(doorbell, bucket)}"' for bucket in ALL_BUCKETS))
            os.set_blocking(connection.fileno(), False)
            yield connection

    def _on_the_roll(self, count: int) -> None:
        with closing(psycopg2.connect(self._url)) as connection, connection.cursor() as cursor:
            cursor.execute("delete from pgbus.workers where host = 'bench'")
            cursor.execute(
                "insert into pgbus.workers (id, host, pid, started_at, facts)"
                " select 'bench-' || n, 'bench', n, clock_timestamp(), '{}' from generate_series(1, %s) n",
                (count,),
            )
            cursor.execute("select pgbus._pace_rings()")
            connection.commit()

    def _drain(self) -> None:
        while not self._over.wait(0.1):
            for connection in self._connections:
                try:
                    while os.read(connection.fileno(), 65536):
                        pass
                except BlockingIOError:
                    pass

    def close(self) -> None:
        """Close the sessions and take them off the roll."""
        self._over.set()
        self._thread.join(10.0)
        for connection in self._connections:
            connection.close()
        self._on_the_roll(0)


if __name__ == "__main__":
    serve({"crowd": crowd})
