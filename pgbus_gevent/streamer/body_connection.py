"""A client behind a WSGI server that keeps its socket to itself: the response body is an iterator fed by the same cursor.

It costs the server's greenlet for as long as it lasts.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from ..core.client import Client, StreamRequest
from .connection import Keeper

_LARGE = 64 * 1024  # bytes of what is handed on as it is


class BodyConnection(Client):
    """Iterate over it in the server's greenlet, and close it there; everything else is for the streamer.

    A chunk counts as sent when the server asks for the next one: until then something waits, and :attr:`blocked_since`
    says since when.
    """

    keeps_time = True
    """For a server that bounds how slowly an answer may be read: the heartbeat ends the slow ones, and says why."""

    __slots__ = ("_clients", "_clock", "_consumer", "_parts", "_ready", "_waiting_since")

    def __init__(
        self,
        id: str,
        request: StreamRequest,
        *,
        clients: Keeper,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(id, request, now=clock())
        self._clock = clock
        self._clients = clients
        self._parts: list[bytes] = []
        self._ready = Event()
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
        self._ready.set()

    def finish(self, farewell: bytes, now: float) -> None:
        self.send(farewell, now)

    def abort(self) -> None:
        """End the body; a server that is stuck in a write to the client is thrown out of it."""
        self._parts.clear()
        self._ready.set()
        consumer, self._consumer = self._consumer, None
        if consumer is not None and self._waiting_since is not None:
            gevent.kill(consumer, BrokenPipeError(errno.EPIPE, "the client takes no bytes"))

    def __iter__(self) -> BodyConnection:
        return self

    def __next__(self) -> bytes:
        self._consumer = gevent.getcurrent()
        if self._parts:
            self._waiting_since = self._clock()  # it does take bytes: the deadline is for who takes none
        elif self._waiting_since is not None:
            self._waiting_since = None
            if not self.closed:
                self._clients.drained(self)
        while not self._parts:
            if self.closed:
                raise StopIteration
            self._ready.wait()
            self._ready.clear()
        if len(self._parts[0]) > _LARGE:
            return self._parts.pop(0)  # shared with others; a copy of it would be this client's alone
        data = b"".join(self._parts)
        self._parts.clear()
        return data

    def close(self) -> None:
        """The server is done with the body: the client has left, or the end was reached."""
        self._consumer = None
        self._clients.gone(self, "client left")
