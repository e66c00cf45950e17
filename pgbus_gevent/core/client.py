"""A client, without its socket: what it asked for, its cursors, and when it was last sent something."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, cast

from ..errors import InvalidArgument
from .events import Disconnected
from .members import check_member
from .names import check_label, check_owner, check_time
from .shown import kind_of
from .stream_log import StreamLog

MAX_LABELS = 1000
"""The most labels of a subscriber."""


class _Subscriber(NamedTuple):
    owner: str | None = None
    context: Any = None
    member: str | None = None
    expires_at: float | None = None
    labels: frozenset[str] = frozenset()


class Subscriber(_Subscriber):
    """The person or program behind a connection, as an ``authorize`` hook answers.

    ``owner`` (str) is the name of the connection's owner in the application; caps and ``pgbus.disconnect`` go by it.
    ``context`` is any value; audience filters get it. ``member`` (str) is the name under which presence counts the connection.
    ``expires_at`` (float) is the time at which the connection ends, in Unix seconds. None, the default of each, means that there
    is none. ``labels`` (a collection of str) are the labels whose messages the connection gets (``visible_to``), beside those
    that a filter lets it see. There are at most 1000. An index leads from a label to the connections that hold it, so a message
    costs only those.

    Raises :class:`InvalidArgument` if the owner, the member or a label is not a valid text, or if the time is not a valid time.
    """

    __slots__ = ()

    def __new__(
        cls,
        owner: str | None = None,
        context: Any = None,
        member: str | None = None,
        expires_at: float | None = None,
        labels: Collection[str] = (),
    ) -> Subscriber:
        if isinstance(labels, str):
            raise InvalidArgument(f"labels is a set of texts, not one text: use labels={{{labels!r}}}")
        return super().__new__(cls, *_checked(owner, context, member, expires_at, _frozen(labels)))


def _frozen(labels: Collection[str]) -> frozenset[str]:
    try:
        return frozenset(labels)
    except TypeError:
        raise InvalidArgument(f"labels is a set of texts, not {labels!r:.100}") from None


def check_subscriber(subscriber: Subscriber) -> Subscriber:
    """Return a subscriber with the same fields, or raise :class:`InvalidArgument` if one is not valid.

    A subscriber that ``_replace`` made is checked only here. If it is of a subclass, the fields are those of the tuple.
    """
    owner, context, member, expires_at, labels = tuple.__iter__(subscriber)
    return Subscriber._make(_checked(owner, context, member, expires_at, labels))


def checked_answer(answer: object) -> Subscriber | None:
    """Return the subscriber that an authorize hook answers for the user of a page; None for None, or if it refuses the user.

    Raises :class:`InvalidArgument` for anything that a hook may not answer.
    """
    if answer is None or answer is False:
        return None
    if answer is True:
        return ANYBODY
    if not issubclass(type(answer), Subscriber):
        raise InvalidArgument(f"subscriber is a Subscriber, as the authorize hook answers it, not {kind_of(answer)}")
    return check_subscriber(cast(Subscriber, answer))


def _checked(owner: Any, context: Any, member: Any, expires_at: Any, labels: Any) -> tuple[Any, ...]:
    """Return the fields of a subscriber, or raise :class:`InvalidArgument`.

    Texts and numbers of subclasses become ones of the types themselves. The methods of a subclass may raise, or compare otherwise,
    and they would be called where nothing may fail, such as in the counts of owners.
    """
    if owner is not None:
        owner = check_owner(_plain(owner))
    if member is not None:
        member = check_member(_plain(member))
    if expires_at is not None:
        expires_at = check_time(_plain(expires_at), "expires_at")
    if not issubclass(type(labels), frozenset) or frozenset.__len__(labels) > MAX_LABELS:
        raise InvalidArgument(f"labels is a frozenset of at most {MAX_LABELS} texts")
    plain = [label if type(label) is str else _plain(label) for label in frozenset.__iter__(labels)]
    for label in plain:
        if check_label(label, "a label") is None:
            raise InvalidArgument("a label is text, not None")
    return owner, context, member, expires_at, frozenset(plain)


def _plain(value: Any) -> Any:
    """Return a text or number of a subclass as one of the type itself, and anything else unchanged."""
    kind = type(value)
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, float):
        return float.__float__(value)
    return int.__int__(value) if issubclass(kind, int) and kind is not bool else value


ANYBODY = Subscriber()


class Place(NamedTuple):
    """A client's request for one stream, and the subscriber behind it. The request has been checked and authorised.

    ``since`` is a cursor, and ``replay`` a number of messages; without either, the client gets only new messages.
    ``invalid_cursor`` is True if the client sent a Last-Event-ID that could not be read. ``foreign`` is True if the cursor may
    belong to another stream.
    """

    stream: str
    since: int | None = None
    replay: int | None = None
    invalid_cursor: bool = False
    subscriber: Subscriber = ANYBODY
    foreign: bool = False


class StreamRequest(NamedTuple):
    """A client's request: one place or several, in the order in which it named the streams.

    ``connection`` is the id of the client's earlier connection, if it sent one. ``recheck`` asks the authorize hook again. It
    returns one subscriber for each place, or None if the client may no longer watch one of the streams. ``asked_at`` is when the
    request came, in seconds of the monotonic clock. ``poll`` is how many seconds a client that polls waits at most; None for a
    client of an event stream. ``framed`` is True if the answer to the poll is to be frames, and not JSON.
    """

    places: tuple[Place, ...]
    address: str = ""
    connection: str | None = None
    recheck: Callable[[], tuple[Subscriber, ...] | None] | None = None
    asked_at: float | None = None
    poll: float | None = None
    framed: bool = False

    @property
    def owner(self) -> str | None:
        """The owner of the connection, or None."""
        return owner_of(place.subscriber for place in self.places)

    @property
    def expires_at(self) -> float | None:
        """When the first of the rights to the streams expires, in Unix seconds."""
        return end_of(place.subscriber for place in self.places)


def owner_of(subscribers: Iterable[Subscriber]) -> str | None:
    """Return the first owner that one of ``subscribers`` has, or None."""
    return next((each.owner for each in subscribers if each.owner is not None), None)


def end_of(subscribers: Iterable[Subscriber]) -> float | None:
    """Return when the first of the rights expires, in Unix seconds, or None."""
    return min((each.expires_at for each in subscribers if each.expires_at is not None), default=None)


class Greets(Protocol):
    """Makes the first frame of each client; :class:`pgbus_gevent.core.greeting.Greeter` does."""

    def greeting(self, id: str, subscriptions: Sequence[Subscription]) -> bytes: ...


class Client(ABC):
    """One connection. ``id`` is a random hexadecimal text; times are in seconds of the monotonic clock.

    A subclass sends the bytes: :class:`pgbus_gevent.streamer.connection.Connection` over a socket, and
    :class:`pgbus_gevent.streamer.body_connection.BodyConnection` through a WSGI response body. Those of
    :mod:`pgbus_gevent.streamer.poll_connection` answer a poll.
    """

    polls = False
    """Whether the client is answered once, and asks again."""

    __slots__ = (
        "address",
        "asked_at",
        "bytes_sent",
        "due",
        "ends_at",
        "expires_at",
        "first",
        "id",
        "last_sent",
        "messages_sent",
        "opened_at",
        "owner",
        "reason",
        "recheck",
        "subscriptions",
    )  # fmt: skip

    def __init__(self, id: str, request: StreamRequest, *, now: float) -> None:
        self.id = id
        self.address = request.address
        self.owner = request.owner
        self.expires_at = request.expires_at
        self.recheck = request.recheck
        self.asked_at = now if request.asked_at is None else request.asked_at
        self.opened_at = now
        self.last_sent = now
        self.bytes_sent = 0  # including bytes that still wait to be sent
        self.messages_sent = 0  # as far as the audience let the client see them
        self.subscriptions: tuple[Subscription, ...] = ()
        self.first = 0  # the index of the subscription that is served first when the client takes bytes again
        self.reason: str | None = None
        self.due = 0  # the number of the client's slot in the schedule
        self.ends_at: float | None = None

    @property
    def admitted(self) -> bool:
        """Whether the client has been greeted, with a cursor in each of its streams, and gets messages."""
        return bool(self.subscriptions) and self.subscriptions[0].cursor is not None

    @property
    def closed(self) -> bool:
        """Whether the connection is ending; then nothing more is delivered to it."""
        return self.reason is not None

    @property
    @abstractmethod
    def blocked_since(self) -> float | None:
        """Since when the client has taken no byte of the data that waits for it; None if nothing waits."""

    def greet(self, greeter: Greets, gaps: bytes, now: float) -> None:
        """Send the first frame, and ``gaps`` after it: frames about messages that are gone."""
        self.send(greeter.greeting(self.id, self.subscriptions) + gaps, now)

    def over(self) -> str | None:
        """The time of the client, ``ends_at``, has come. Return the reason with which to end it, or None if it ends by itself."""
        return "max-age"

    @abstractmethod
    def send(self, data: bytes, now: float) -> None:
        """Send whole frames. Call it only while :attr:`blocked_since` is None. It never blocks."""

    @abstractmethod
    def finish(self, farewell: bytes, now: float) -> None:
        """Send the last frame, after the data that still waits for the client, and then close."""

    @abstractmethod
    def abort(self) -> None:
        """Close now, and discard the data that waits."""


class Subscription:
    """One client in one stream: its place, and the cursor that moves.

    ``cursor`` is None until the client is admitted. ``start`` is the cursor that the client came with, or the cursor that the
    database found for its ``replay``; once the client is admitted, it is the cursor from which it started. ``verified`` is True if
    the head is at least as new as the client's arrival; then a cursor above the head is ahead. ``lost`` is the client's cursor at
    the moment when the table turned out to have lost messages that the client was sent; it is None again once the client has got
    its gap event. ``ephemerals_first`` alternates, so that messages and ephemeral messages are sent first by turns.
    ``earlier_members`` counts the members that this subscription was before.
    """

    __slots__ = ("client", "cursor", "earlier_members", "ephemerals_first", "log", "lost", "place", "start", "verified")

    def __init__(self, client: Client, log: StreamLog, place: Place) -> None:
        self.client = client
        self.log = log
        self.place = place
        self.earlier_members = 0
        self.cursor: int | None = None
        self.start: int | None = place.since
        self.lost: int | None = None
        self.ephemerals_first = False
        self.verified = False

    @property
    def unproven(self) -> bool:
        """Whether the table may never have had the message of the cursor, or has lost it, although nobody noticed.

        Either the cursor is still the one that the client came with, so that only the client claims that this message existed; or
        it is from before pruned messages that the log passed over, which may hide a loss.
        """
        if self.cursor == self.place.since:
            return not self.place.foreign
        return self.cursor is not None and self.cursor <= self.log.passed_over

    def rewind(self, to: int) -> bool:
        """The table has lost the messages above ``to``. Return whether the client was sent one, and must be told of it."""
        if self.cursor is None:
            self.start = self.place.since  # what the database found for its replay may be lost as well
        if self.cursor is None or self.cursor <= to:
            return False
        self.lost, self.cursor = max(self.cursor, self.lost or 0), 0
        return True

    @property
    def lease(self) -> str:
        """The name of this subscription's lease. It is unique to the subscription and its member.

        The client's id alone would not do, because a client keeps its id when it comes back, even to another worker.
        """
        return f"{self.client.id}.{id(self):x}" + (f".{self.earlier_members}" if self.earlier_members else "")


def ended(client: Client, subscriptions: Iterable[Subscription], reason: str, now: float) -> Disconnected:
    """Return the event about the end of a client that had ``subscriptions``. ``now`` is in seconds of the monotonic clock."""
    places = [(each.log.name, each.cursor) for each in subscriptions]
    return Disconnected(
        client.id,
        tuple(name for name, _ in places),
        client.owner,
        reason,
        now - client.opened_at,
        client.messages_sent,
        client.bytes_sent,
        tuple(cursor for _, cursor in places),
        client.address,
        client.polls,
    )
