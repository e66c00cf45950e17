"""A client as everything but its socket sees it: what it asked for, where it stands, when it last heard from us."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .members import check_member
from .names import check_owner, check_time
from .stream_log import StreamLog


class _Subscriber(NamedTuple):
    owner: str | None = None
    context: Any = None
    member: str | None = None
    expires_at: float | None = None


class Subscriber(_Subscriber):
    """What an ``authorize`` hook knows of who connects.

    ``owner`` names whose connection it is, ``context`` is what audience filters are given, ``member`` is the name for presence,
    ``expires_at`` is when the connection is to end, in Unix seconds. Raises :class:`InvalidArgument` for an owner or member that
    is no text, and for a time that is none.
    """

    __slots__ = ()

    def __new__(
        cls,
        owner: str | None = None,
        context: Any = None,
        member: str | None = None,
        expires_at: float | None = None,
    ) -> Subscriber:
        return check_subscriber(super().__new__(cls, owner, context, member, expires_at))


def check_subscriber(subscriber: Subscriber) -> Subscriber:
    """Return ``subscriber``, or raise :class:`InvalidArgument`; one that ``_replace`` made is checked by nobody else."""
    if subscriber.owner is not None:
        check_owner(subscriber.owner)
    if subscriber.member is not None:
        check_member(subscriber.member)
    if subscriber.expires_at is not None:
        check_time(subscriber.expires_at, "expires_at")
    return subscriber


ANYBODY = Subscriber()


class Place(NamedTuple):
    """What a client asks of one stream, and as whom; checked and authorised already.

    ``since`` is a cursor, ``replay`` a number of messages; neither: from now on. ``invalid_cursor`` tells of a Last-Event-ID
    that could not be read, ``foreign`` of a cursor that may be another stream's.
    """

    stream: str
    since: int | None = None
    replay: int | None = None
    invalid_cursor: bool = False
    subscriber: Subscriber = ANYBODY
    foreign: bool = False


class StreamRequest(NamedTuple):
    """What a client asks for: one place or several, in the order in which it named the streams.

    ``connection`` is the id that it had before, if it sent one back; ``recheck`` asks again who it is at each of the places,
    as configured, and answers None where it may no longer watch one of them.
    """

    places: tuple[Place, ...]
    address: str = ""
    connection: str | None = None
    recheck: Callable[[], tuple[Subscriber, ...] | None] | None = None

    @property
    def owner(self) -> str | None:
        """Whose connection it is."""
        return owner_of(place.subscriber for place in self.places)

    @property
    def expires_at(self) -> float | None:
        """When the first of the rights to the streams expires, in Unix seconds."""
        return end_of(place.subscriber for place in self.places)


def owner_of(subscribers: Iterable[Subscriber]) -> str | None:
    """Whose connection it is, as far as any of the streams' answers tells."""
    return next((each.owner for each in subscribers if each.owner is not None), None)


def end_of(subscribers: Iterable[Subscriber]) -> float | None:
    """When the first of the rights expires, in Unix seconds."""
    return min((each.expires_at for each in subscribers if each.expires_at is not None), default=None)


class Client(ABC):
    """One connection. ``id`` is a random hex text; times are of the monotonic clock, in seconds.

    The way its bytes take is the subclass's: a socket, or a WSGI response body.
    """

    __slots__ = (
        "address", "bytes_sent", "due", "ends_at", "expires_at", "id", "last_sent", "opened_at", "owner", "reason", "recheck",
        "subscriptions", "turn",
    )  # fmt: skip

    def __init__(self, id: str, request: StreamRequest, *, now: float) -> None:
        self.id = id
        self.address = request.address
        self.owner = request.owner
        self.expires_at = request.expires_at
        self.recheck = request.recheck
        self.opened_at = now
        self.last_sent = now
        self.bytes_sent = 0  # what still waits for it included
        self.subscriptions: tuple[Subscription, ...] = ()
        self.turn = 0  # which of them is the first to be served when it can take more
        self.reason: str | None = None
        self.due = 0  # the heartbeat's own note of when it looks here next
        self.ends_at: float | None = None

    @property
    def admitted(self) -> bool:
        """Whether it has been told where it starts, in all of its streams, and gets messages from now on."""
        return bool(self.subscriptions) and self.subscriptions[0].cursor is not None

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
    def finish(self, farewell: bytes, now: float) -> None:
        """Send the last frame and close; behind what waits for the client, should there be something."""

    @abstractmethod
    def abort(self) -> None:
        """Close now, whatever waits."""


class Subscription:
    """One client's place in one stream: a cursor, nothing more.

    ``cursor`` is None until it is known where the client starts, in all of its streams. ``start`` is what is known of that before:
    the cursor that it came with, or what the database made of its ``replay``. ``verified`` tells that the head is as new as the
    client's arrival, so that a cursor beyond it is ahead. ``lost`` is the cursor that it had when the table turned out to have
    lost what it was sent, until it has been told. ``hinted`` tells that ephemeral messages had the first turn when it was last
    brought forward.
    """

    __slots__ = ("client", "cursor", "hinted", "lives", "log", "lost", "place", "start", "verified")

    def __init__(self, client: Client, log: StreamLog, place: Place) -> None:
        self.client = client
        self.log = log
        self.place = place
        self.lives = 0  # how many members it was before this one
        self.cursor: int | None = None
        self.start: int | None = place.since
        self.lost: int | None = None
        self.hinted = False
        self.verified = False

    @property
    def unproven(self) -> bool:
        """Whether it stands where it said that it does: only it says that there was a message with this id."""
        return self.cursor == self.place.since and not self.place.foreign

    @property
    def lease(self) -> str:
        """Names this place and member alone: a client keeps its id when it comes back, be it to another worker."""
        return f"{self.client.id}.{id(self):x}" + (f".{self.lives}" if self.lives else "")
