"""A client that polls: it waits like one with a stream, and is answered once, with all that it would have been sent until then."""

from __future__ import annotations

import errno
import socket
from http import HTTPStatus
from time import monotonic
from typing import Any, NamedTuple, Protocol

import gevent
from gevent.event import Event

from ..core.client import Client, StreamRequest, Subscription
from ..core.polled import Polled, refused
from .connection import ClientHandler, Connection

PATIENCE = 10.0
"""Seconds after its time for which a poll waits for a read of the database, before it is refused."""

_SHORTEST_LOOK, _LONGEST_LOOK = 0.005, 0.5  # seconds between two looks whether the read is over


_JSON = b"application/json"
_FRAMES = b"text/event-stream; charset=utf-8"
_TEXT = b"text/plain; charset=utf-8"


class Answer(NamedTuple):
    """The answer to a poll. ``retry_after`` is in whole seconds."""

    status: int
    body: bytes
    content_type: bytes
    retry_after: int | None

    def head(self, head: bytes) -> bytes:
        """Return the head of an answer of 200, which has no length, as that of this answer."""
        _, *lines = head[:-4].split(b"\r\n")
        if self.status != 200:
            lines = [line for line in lines if not line.lower().startswith(b"content-type:")]
            lines.append(b"content-type: " + self.content_type)
        if self.retry_after is not None:
            lines.append(b"retry-after: %d" % self.retry_after)
        lines.append(b"content-length: %d" % len(self.body))
        status = f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}".encode()
        return b"\r\n".join([status, *lines, b"", b""])


class PollHandler(ClientHandler, Protocol):
    """The methods that a polling client calls; :class:`pgbus_gevent.streamer.clients.Clients` has them."""

    def end(self, client: Client, reason: str) -> None: ...
    def settle(self, client: Client) -> bool: ...


class _Wait:
    """The wait of one client: collects what it is sent, and ends it.

    The client is ended with the reason ``answered`` as soon as the event loop runs after something was sent, or when its time is
    over and it has all that there is. The methods do not yield.
    """

    __slots__ = ("_client", "_due", "_ends_at", "_framed", "_handler", "_places", "_polled", "_timer")

    def __init__(self, client: Client, request: StreamRequest, handler: PollHandler) -> None:
        self._client = client
        self._framed = request.framed
        self._handler = handler
        self._polled = Polled()
        self._places: tuple[Subscription, ...] = ()
        self._due = False
        self._timer: Any = None
        seconds = float(request.poll or 0)
        self._ends_at = monotonic() + seconds
        self._sleep(seconds)

    def _sleep(self, seconds: float) -> None:
        self._timer = gevent.get_hub().loop.timer(seconds)
        self._timer.start(self._over)

    def stop(self) -> None:
        """Do not end the client any more. May be called again."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()

    @property
    def full(self) -> bool:
        """Whether the answer takes no more."""
        return self._polled.full

    def take(self, data: bytes) -> None:
        """Take frames for the answer."""
        self._places = self._client.subscriptions  # they keep the cursors after the client has been removed
        if self._polled.add(data) and not self._due:
            self._due = True
            # Not at once, because the dispatcher may have more for it in this turn.
            gevent.get_hub().loop.run_callback(self._end)

    def _end(self) -> None:
        if not self._client.closed and self._timer is not None:
            self._handler.end(self._client, "answered")

    def _over(self) -> None:
        """The time of the poll is over. It is answered now, or as soon as a read of the database that it needs is over."""
        self.stop()
        if self._handler.settle(self._client):
            return
        late = monotonic() - self._ends_at
        if late >= PATIENCE:
            self._handler.end(self._client, "unavailable")
        else:
            # An answer takes at most twice as long as it has to, and a poll that waits long costs little.
            self._sleep(min(_LONGEST_LOOK, max(_SHORTEST_LOOK, late)))

    def answer(self, farewell: bytes) -> Answer:
        """Return the answer of the client, which has been ended. ``farewell`` is the last frame that a stream would have got."""
        self.stop()
        places, self._places = self._places, ()
        reason = self._client.reason
        if self._framed:
            return Answer(200, self._polled.frames() + (b"" if reason == "answered" else farewell), _FRAMES, None)
        if not places or (reason == "unavailable" and not self._due):
            refusal = refused(farewell)
            return Answer(refusal.status, f"{refusal.line}\n".encode(), _TEXT, refusal.retry_after)
        names = [each.log.name for each in places]
        # A client that has yet to be told of a loss comes back with the cursor that it had, and is told then.
        cursors = [each.lost if each.lost is not None else each.cursor or 0 for each in places]
        body = self._polled.answer(names, cursors, b"" if reason == "answered" else farewell)
        return Answer(200, body, _JSON, None)


class PollConnection(Connection):
    """A client that polls over a socket that was taken over from the server.

    ``head`` has no Content-Length: it is put in with the answer. The connection ends with it, because the socket has left the
    server, which alone could read another request from it.
    """

    __slots__ = ("_wait",)
    polls = True

    def __init__(
        self, id: str, request: StreamRequest, sock: socket.socket, head: bytes, *, clients: PollHandler, **more: Any
    ) -> None:
        super().__init__(id, request, sock, head, clients=clients, **more)
        self._wait = _Wait(self, request, clients)

    @property
    def blocked_since(self) -> float | None:
        return self.last_sent if self._wait.full else self._writer.blocked_since

    def send(self, data: bytes, now: float) -> None:
        self.last_sent = now
        self.bytes_sent += len(data)
        self._wait.take(data)

    def finish(self, farewell: bytes, now: float) -> None:
        answer = self._wait.answer(farewell)
        self._writer.finish(answer.head(self._head) + answer.body, now)
        self._head = b""

    def abort(self) -> None:
        self._wait.stop()
        super().abort()

    def gone(self, reason: str) -> None:
        self._wait.stop()
        super().gone(reason)


class PollBody(Client):
    """A client that polls, and whose server does not give its socket away. The greenlet of the request waits for the answer."""

    __slots__ = ("_answer", "_clients", "_done", "_wait")
    polls = True

    def __init__(self, id: str, request: StreamRequest, *, clients: PollHandler) -> None:
        super().__init__(id, request, now=monotonic())
        self._answer: Answer | None = None
        self._clients = clients
        self._done = Event()
        self._wait = _Wait(self, request, clients)

    @property
    def blocked_since(self) -> float | None:
        return self.last_sent if self._wait.full else None

    def send(self, data: bytes, now: float) -> None:
        self.last_sent = now
        self.bytes_sent += len(data)
        self._wait.take(data)

    def finish(self, farewell: bytes, now: float) -> None:
        self._answer = self._wait.answer(farewell)
        self._done.set()
        self._clients.gone(self, "finished")

    def abort(self) -> None:
        self._wait.stop()
        self._done.set()

    def wait(self) -> Answer:
        """Return the answer when there is one. It yields. Raises BrokenPipeError if there is none, because delivery failed."""
        try:
            self._done.wait()
        finally:
            self._wait.stop()
            self._clients.gone(self, "client left")  # does nothing after an answer
        if self._answer is None:
            raise BrokenPipeError(errno.EPIPE, "the poll was cut off")
        return self._answer
