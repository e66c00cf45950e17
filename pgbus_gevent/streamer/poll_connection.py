"""A client that polls: it waits like one with a stream, and is answered once, with all that it would have been sent until then.

A poll that waits costs no more memory than a stream. What only an answer needs is made when there is something to answer.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from time import monotonic
from typing import Any, NamedTuple, Protocol

import gevent
from gevent.event import Event

from ..core import sse
from ..core.backlog import Backlog
from ..core.client import Client, Greets, StreamRequest, Subscription
from ..core.polled import Polled, refused
from .connection import ClientHandler, IoWriter, tune

PATIENCE = 10.0
"""Seconds after its time for which a poll waits for a read of the database, before it is refused."""

_SHORTEST_LOOK, _LONGEST_LOOK = 0.005, 0.5  # seconds between two looks whether the read is over

_LEAD = 1.0
"""Seconds before the end of a poll at which it gets a timer. Until then the heartbeat's schedule holds it, as it holds streams,
but it looks only at each tick and may be late."""


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


class _End:
    """The end of the wait of one client: what it was sent, and the timer.

    The client is ended with the reason ``answered`` as soon as the event loop runs after something was sent, or when its time is
    over and it has all that there is. The methods do not yield.
    """

    __slots__ = ("_client", "_handler", "_timer", "due", "polled")

    def __init__(self, client: Client, handler: PollHandler) -> None:
        self._client = client
        self._handler = handler
        self._timer: Any = None
        self.polled = Polled()
        self.due = False
        """Whether there is something for which the client waits."""

    def take(self, data: bytes) -> None:
        """Take frames for the answer."""
        if self.polled.add(data) and not self.due:
            self.due = True
            # Not at once, because the dispatcher may have more for it in this turn.
            gevent.get_hub().loop.run_callback(self.now)

    def now(self) -> None:
        """End the client, unless it has been ended."""
        if not self._client.closed:
            self._handler.end(self._client, "answered")

    def at(self, time: float) -> None:
        """End the client at ``time``, in seconds of the monotonic clock, or as soon as a read that it needs is over."""
        if self._timer is None:
            self._sleep(max(0.0, time - monotonic()), time)

    def _sleep(self, seconds: float, end: float) -> None:
        self._timer = gevent.get_hub().loop.timer(seconds)
        self._timer.start(self._over, end)

    def _over(self, end: float) -> None:
        self.stop()
        if self._client.closed or self._handler.settle(self._client):
            return
        late = monotonic() - end
        if late >= PATIENCE:
            self._handler.end(self._client, "unavailable")
        else:
            # An answer takes at most twice as long as it has to, and a poll that waits long costs little.
            self._sleep(min(_LONGEST_LOOK, max(_SHORTEST_LOOK, late)), end)

    def stop(self) -> None:
        """Have no timer any more. May be called again."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()


class Poll(Client):
    """A client that polls. A subclass knows how the answer gets to it."""

    __slots__ = ("_clients", "_end", "_framed", "_greeting", "_places")
    polls = True

    def __init__(self, id: str, request: StreamRequest, *, clients: PollHandler) -> None:
        super().__init__(id, request, now=monotonic())
        self._clients = clients
        self._framed = request.framed
        self._greeting: Greets | bytes = b""
        self._places: Sequence[Subscription] = ()  # they keep the cursors after the client has been removed
        self._end: _End | None = None
        seconds = float(request.poll or 0)
        self.ends_at = self.opened_at + seconds - _LEAD
        if seconds <= 2 * _LEAD:
            self.over()

    def _ending(self) -> _End:
        end = self._end
        if end is None:
            end = self._end = _End(self, self._clients)
        return end

    @property
    def _full(self) -> bool:
        """Whether the answer takes no more."""
        return self._end is not None and self._end.polled.full

    def greet(self, greeter: Greets, gaps: bytes, now: float) -> None:
        # The greeting is nearly as large as all the rest of a poll, so mostly it is made when there is an answer. That may be in
        # the event loop, where the code of a context, which identities ask, must not wait.
        self._places = self.subscriptions
        later = all(each.place.subscriber.context is None for each in self._places)
        self._greeting = greeter if later else greeter.greeting(self.id, self._places)
        if gaps:
            self.send(gaps, now)

    def send(self, data: bytes, now: float) -> None:
        self.last_sent = now
        if not sse.is_heartbeat(data):
            self.bytes_sent += len(data)
            self._ending().take(data)

    def over(self) -> str | None:
        if self.ends_at is not None and not self.closed:
            self._ending().at(self.ends_at + _LEAD)
        return None

    def stop(self) -> None:
        """Have no timer any more."""
        if self._end is not None:
            self._end.stop()

    def answer(self, farewell: bytes) -> Answer:
        """Return the answer of the client, which has been ended. ``farewell`` is the last frame that a stream would have got."""
        end, places, greeting = self._ending(), self._places, self._greeting
        end.stop()
        self._end, self._places, self._greeting = None, (), b""
        if not isinstance(greeting, bytes):
            greeting = greeting.greeting(self.id, places)
        goodbye = b"" if self.reason == "answered" else farewell
        if self._framed:
            return Answer(200, end.polled.frames(greeting, goodbye), _FRAMES, None)
        if not places or (self.reason == "unavailable" and not end.due):
            refusal = refused(farewell)
            return Answer(refusal.status, f"{refusal.line}\n".encode(), _TEXT, refusal.retry_after)
        names = [each.log.name for each in places]
        # A client that has yet to be told of a loss comes back with the cursor that it had, and is told then.
        cursors = [each.lost if each.lost is not None else each.cursor or 0 for each in places]
        return Answer(200, end.polled.answer(names, cursors, greeting, goodbye), _JSON, None)


class PollConnection(Poll):
    """A client that polls over a socket that was taken over from the server. The parameters are those of ``Connection``.

    ``head`` has no Content-Length: it is put in with the answer. The connection ends with it, because the socket has left the
    server, which alone could read another request from it.
    """

    __slots__ = ("_head", "_writer")

    def __init__(
        self,
        id: str,
        request: StreamRequest,
        sock: socket.socket,
        head: bytes,
        *,
        clients: PollHandler,
        send_buffer: int = 65536,
        dead_after: float = 30.0,
        backlog: Backlog | None = None,
    ) -> None:
        super().__init__(id, request, clients=clients)
        self._head = _shared(head)
        tune(sock, send_buffer, dead_after)
        self._writer = IoWriter(sock, self, backlog=backlog)

    @property
    def blocked_since(self) -> float | None:
        return self.last_sent if self._full else self._writer.blocked_since

    def finish(self, farewell: bytes, now: float) -> None:
        answer = self.answer(farewell)
        self._writer.finish(answer.head(self._head) + answer.body, now)

    def abort(self) -> None:
        self.stop()
        self._writer.abort()

    def unblocked(self) -> None:
        """Do nothing: the only bytes are those of the answer, after which the connection ends."""

    def gone(self, reason: str) -> None:
        self.stop()
        self._clients.gone(self, reason)


@lru_cache(maxsize=64)
def _shared(head: bytes) -> bytes:
    """Return bytes that are equal to ``head``, the same ones for all polls whose heads are equal, as they mostly are."""
    return head


class PollBody(Poll):
    """A client that polls, and whose server does not give its socket away. The greenlet of the request waits for the answer."""

    __slots__ = ("_answer", "_done")

    def __init__(self, id: str, request: StreamRequest, *, clients: PollHandler) -> None:
        super().__init__(id, request, clients=clients)
        self._answer: Answer | None = None
        self._done = Event()

    @property
    def blocked_since(self) -> float | None:
        return self.last_sent if self._full else None

    def finish(self, farewell: bytes, now: float) -> None:
        self._answer = self.answer(farewell)
        self._done.set()
        self._clients.gone(self, "finished")

    def abort(self) -> None:
        self.stop()
        self._done.set()

    def wait(self) -> Answer:
        """Return the answer when there is one. It yields. Raises BrokenPipeError if there is none, because delivery failed."""
        try:
            self._done.wait()
        finally:
            self.stop()
            self._clients.gone(self, "client left")  # does nothing after an answer
        if self._answer is None:
            raise BrokenPipeError(errno.EPIPE, "the poll was cut off")
        return self._answer
