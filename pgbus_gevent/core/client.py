"""A client as everything but its socket sees it: what it asked for, where it stands, when it last heard from us."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from . import sse
from .stream_log import StreamLog


class StreamRequest(NamedTuple):
    """What a client asks for, and who it is; checked and authorised already.

    ``since`` is a cursor, ``replay`` a number of messages; neither: from now on. ``invalid_cursor`` tells of a Last-Event-ID
    that could not be read. ``expires_at`` is in Unix seconds.
    """

    stream: str
    since: int | None = None
    replay: int | None = None
    invalid_cursor: bool = False
    address: str = ""
    owner: str | None = None
    context: Any = None
    member: str | None = None
    expires_at: float | None = None


class Subscriber(NamedTuple):
    """What an ``authorize`` hook knows of who connects.

    ``owner`` names whose connection it is, ``context`` is what audience filters are given, ``member`` is the name for presence,
    ``expires_at`` is when the connection is to end, in Unix seconds.
    """

    owner: str | None = None
    context: Any = None
    member: str | None = None
    expires_at: float | None = None


class Client(ABC):
    """One connection. ``id`` is a random hex text; times are of the monotonic clock, in seconds.

    The way its bytes take is the subclass's: a socket, or a WSGI response body.
    """

    __slots__ = ("due", "ends_at", "id", "last_sent", "opened_at", "reason", "request", "subscription")

    def __init__(self, id: str, request: StreamRequest, *, now: float) -> None:
        self.id = id
        self.request = request
        self.opened_at = now
        self.last_sent = now
        self.subscription: Subscription | None = None
        self.reason: str | None = None
        self.due = 0  # the heartbeat's own note of when it looks here next
        self.ends_at: float | None = None

    @property
    def closed(self) -> bool:
        """Whether the end has begun; nothing more is delivered then."""
        return self.reason is not None

    @property
    @abstractmethod
    def blocked_since(self) -> float | None:
        """Since when the client has taken no byte of what waits for it; None while nothing waits."""

    @abstractmethod
    def send(self, data: bytes, now: float) -> None:
        """Give the client whole frames. Only while nothing waits for it. Never blocks."""

    @abstractmethod
    def send_extra(self, data: bytes, now: float) -> bool:
        """Give the client a frame that it may go without; False when there is no room for it."""

    @abstractmethod
    def finish(self, farewell: bytes, now: float) -> None:
        """Send the last frame and close; behind what waits for the client, should there be something."""

    @abstractmethod
    def abort(self) -> None:
        """Close now, whatever waits."""


class Subscription:
    """One client's place in one stream: a cursor, nothing more.

    ``cursor`` is None until it is known where the client starts. ``waiting`` tells that the reader has it, so that passes step
    over it. ``verified`` tells that the head is as new as the client's arrival, so that a cursor beyond it is ahead.
    """

    __slots__ = ("client", "cursor", "log", "start", "verified", "waiting")

    def __init__(self, client: Client, log: StreamLog) -> None:
        self.client = client
        self.log = log
        self.cursor: int | None = None
        self.start: int | None = client.request.since
        self.waiting = False
        self.verified = False
        client.subscription = self


class Admission(NamedTuple):
    """Where a client starts, and the frame that tells it what it has missed, if anything."""

    cursor: int
    gap: bytes


def admit(subscription: Subscription) -> Admission | None:
    """Decide where a client starts; None where the database has to be asked first.

    A cursor beyond the head is not ahead before the database says so: the page may know of a commit that this worker has not
    yet heard of. That messages above the cursor were pruned is found by the read of the first page.
    """
    log, request, start = subscription.log, subscription.client.request, subscription.start
    if not log.is_open:
        return None
    if request.invalid_cursor:
        return Admission(log.head, _gap(log, None, "invalid-cursor"))
    if start is None and request.replay is not None:
        start = log.back(request.replay)
        return None if start is None else Admission(start, b"")
    if start is None:
        return Admission(log.head, b"")
    if start <= log.head:
        return Admission(start, b"")
    return Admission(0, _gap(log, start, "ahead")) if subscription.verified else None


def expired(log: StreamLog, requested: int, oldest: int) -> bytes:
    """The frame for who asks for messages that pruning has removed."""
    return sse.gap_detected(log.name, requested=requested, oldest=oldest, last=log.head, reason="expired")


def _gap(log: StreamLog, requested: int | None, reason: str) -> bytes:
    return sse.gap_detected(log.name, requested=requested, oldest=log.oldest, last=log.head, reason=reason)
