"""The publishers: a process that publishes at a rate or as fast as it can, in the way of the server under test.

``sql`` runs a statement with a stream's name and data in one transaction each. ``http`` POSTs the data. ``raw`` writes frames to
a socket.
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import Any

import psycopg2

from pgbus_gevent.bench import stamps
from pgbus_gevent.bench.load import percentiles
from pgbus_gevent.bench.program import serve

Publish = Callable[[str, str], int]
"""Publishes data to a stream. Returns the time stamp from which the latency counts."""


def by_sql(url: str, statement: str, commit: bool = False) -> Publish:
    """Publish by SQL. With ``commit``, the latency counts from the COMMIT, which is then a separate call."""
    connection = psycopg2.connect(url)
    connection.autocommit = not commit
    cursor = connection.cursor()

    def publish(stream: str, data: str) -> int:
        began = stamps.now()
        cursor.execute(statement, {"stream": stream, "data": data})
        if commit:
            began = stamps.now()
            connection.commit()
        return began

    return publish


def by_http(port: int, path: str) -> Publish:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # http.client sends head and body separately

    def publish(stream: str, data: str) -> int:
        began = stamps.now()
        connection.request("POST", path.format(stream=stream), data.encode())
        answer = connection.getresponse()
        answer.read()
        if answer.status not in (200, 201, 202):
            raise RuntimeError(f"publishing was answered with {answer.status}")
        return began

    return publish


def by_socket(port: int) -> Publish:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(b"PUB \n")

    def publish(stream: str, data: str) -> int:
        began = stamps.now()
        frame = stamps.frame(data)
        connection.sendall(struct.pack("!I", len(frame)) + frame)
        return began

    return publish


WAYS: dict[str, Callable[..., Publish]] = {"sql": by_sql, "http": by_http, "raw": by_socket}


class Job:
    """One publisher: ``messages`` to the streams in turn, ``rate`` per second (0: as fast as it can), after ``delay`` seconds."""

    def __init__(
        self,
        way: str,
        options: dict[str, Any],
        streams: Sequence[str],
        messages: int,
        rate: float,
        size: int,
        delay: float = 0.0,
    ) -> None:
        self._publish = WAYS[way](**options)
        self._streams = streams
        self._messages = messages
        self._rate = rate
        self._size = size
        self._delay = delay
        self.calls: list[int] = []
        self.offsets: dict[int, int] = {}
        self.error: Exception | None = None

    def run(self, barrier: threading.Barrier) -> None:
        """Publish. An exception is kept in ``error``."""
        barrier.wait()
        began = monotonic() + self._delay
        try:
            for n in range(self._messages):
                if self._rate:
                    sleep(max(0.0, began + n / self._rate - monotonic()))
                stamp = stamps.now()
                began_to_count = self._publish(self._streams[n % len(self._streams)], stamps.data(self._size, stamp))
                self.calls.append(stamps.now() - stamp)
                self.offsets[stamp] = began_to_count - stamp
        except Exception as error:
            self.error = error


def publish(*, jobs: Sequence[dict[str, Any]], offsets: bool = False) -> dict[str, Any]:
    """Run the jobs, each in its own thread. Returns the time stamp of the start, the duration, and the percentiles of a call.

    With ``offsets``, also returns, by the time stamp of each message, how many microseconds later its latency began to count.
    """
    made = [Job(**job) for job in jobs]
    barrier = threading.Barrier(len(made) + 1)
    threads = [threading.Thread(target=job.run, args=(barrier,), daemon=True) for job in made]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = stamps.now()
    for thread in threads:
        thread.join()
    for job in made:
        if job.error is not None:
            raise job.error
    seconds = (stamps.now() - began) / 1e6
    calls = [call for job in made for call in job.calls]
    found: dict[str, Any] = {"began": began, "seconds": seconds, "published": len(calls), **percentiles(calls)}
    if offsets:
        found["offsets"] = {stamp: offset for job in made for stamp, offset in job.offsets.items()}
    return found


if __name__ == "__main__":
    serve({"publish": publish})
