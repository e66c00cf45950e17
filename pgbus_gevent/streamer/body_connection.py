"""A client whose WSGI server does not give its socket away. The response body is an iterator, which the dispatcher fills.

The connection occupies a greenlet of the server for as long as it lasts.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from ..core.client import Client, StreamRequest
from .connection import ClientHandler

_LARGE = 64 * 1024  # bytes; larger parts are not joined with others


class BodyConnection(Client):
    """A client whose bytes go through a response body.

    The server's greenlet iterates over the body and closes it. The streamer calls the other methods: the dispatcher, the
    heartbeat and ``Clients`` send and finish.

    Bytes count as sent when the server asks for the next ones. Until then they wait, and :attr:`blocked_since` says since when.
    """

    keeps_time = True
    """Tells a server with a time limit for slow clients that it need not apply it: the heartbeat ends slow consumers."""

    __slots__ = ("_clients", "_clock", "_consumer", "_flag", "_parts", "_waiting_since")

    def __init__(
        self,
        id: str,
        request: StreamRequest,
        *,
        clients: ClientHandler,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(id, request, now=clock())
        self._clock = clock
        self._clients = clients
        self._parts: list[bytes] = []
        self._flag = Event()
        self._waiting_since: float | None = None
        self._consumer: Any = None

    @property
    def blocked_since(self) -> float | None:
        return self._waiting_since

    def send(self, data: bytes, now: float) -> None:
        self.last_sent = now
        self.bytes_sent += len(data)
        if self._waiting_since is None:
            self._waiting_since = now
        self._parts.append(data)
        self._flag.set()

    def finish(self, farewell: bytes, now: float) -> None:
        self.send(farewell, now)

    def abort(self) -> None:
        """End the body. If the server's greenlet is blocked in a write to the client, raise BrokenPipeError in it."""
        self._parts.clear()
        self._flag.set()
        consumer, self._consumer = self._consumer, None
        if consumer is not None and self._waiting_since is not None:
            gevent.kill(consumer, BrokenPipeError(errno.EPIPE, "the client takes no bytes"))

    def __iter__(self) -> BodyConnection:
        return self

    def __next__(self) -> bytes:
        self._consumer = gevent.getcurrent()
        if self._parts:
            self._waiting_since = self._clock()  # the client takes bytes; only one that takes none is a slow consumer
        elif self._waiting_since is not None:
            self._waiting_since = None
            if not self.closed:
                self._clients.unblocked(self)
        while not self._parts:
            if self.closed:
                raise StopIteration
            self._flag.wait()
            self._flag.clear()
        if len(self._parts[0]) > _LARGE:
            return self._parts.pop(0)  # other connections share these bytes, and joining would copy them
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    def close(self) -> None:
        """Called by the server at the end of the response, or when the client has left."""
        self._consumer = None
        self._clients.gone(self, "client left")
