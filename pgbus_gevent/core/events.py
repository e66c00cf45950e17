"""Instrumentation events: what happens in a streamer, for metrics, logs and the handlers of an application.

The parts emit events, and handlers subscribe to them. A part makes an event only if its :attr:`Signal.handlers` is not empty, so
an event without handlers costs one attribute access. A handler runs in the greenlet that delivers or reads, or in the event loop.
It must therefore return at once and must not wait: no query, no request, no sleep. It may count, append to a queue, or log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import InvalidArgument
from .retries import Seldom
from .shown import described, kind_of, traceable

logger = logging.getLogger("pgbus_gevent.events")


class Connected(NamedTuple):
    """A connection was opened. ``connection`` is its id, and ``streams`` are the names of its streams. ``address`` is the address
    of the client, or of the proxy before it. ``poll`` is True if the client polls: then each poll is a connection.
    """

    connection: str
    streams: tuple[str, ...]
    owner: str | None
    address: str = ""
    poll: bool = False


class Admitted(NamedTuple):
    """A connection was sent ``pgbus:connected``, ``seconds`` after its request came. It comes at most once for each
    :class:`Connected`, and not if the client leaves before.
    """

    connection: str
    seconds: float


class Disconnected(NamedTuple):
    """A connection has ended. This event comes exactly once for each :class:`Connected`.

    ``reason`` is the reason in the ``pgbus:shutdown`` frame, or a text about what the client did, or ``answered`` for a poll.
    ``seconds`` is how long the connection lasted. ``messages`` and ``bytes`` are how many were sent to it, including what it did
    not take any more. ``last_ids`` are its cursors, in the order of ``streams``; None for a stream from which it had no cursor
    yet. ``address`` and ``poll`` are as in :class:`Connected`.
    """

    connection: str
    streams: tuple[str, ...]
    owner: str | None
    reason: str
    seconds: float
    messages: int = 0
    bytes: int = 0
    last_ids: tuple[int | None, ...] = ()
    address: str = ""
    poll: bool = False


class Refused(NamedTuple):
    """A client was sent away, to come back later. ``reason`` is ``overloaded``, ``too-many-connections``, ``restart`` or
    ``unavailable``."""

    reason: str


class Broadcast(NamedTuple):
    """New messages of a stream that has connections came in. ``messages`` is their number; ephemeral messages count."""

    stream: str
    messages: int


class Passed(NamedTuple):
    """A pass over a stream's connections has ended. There is one event for the whole pass.

    ``connections`` is the number of connections that were sent something. ``seconds`` is the time from the start of the pass
    until the last connection was served, including the turns of other streams in between. ``appended_at`` is when the oldest of
    its messages was appended, in Unix seconds of the database's clock, or None if that is not known. All connections have been
    served up to the id ``head``.
    """

    stream: str
    connections: int
    seconds: float
    appended_at: float | None = None
    head: int = 0


class Traced(NamedTuple):
    """A message of a stream that has connections came in, whose publisher gave a ``traceparent`` that is sampled.

    ``traceparent`` is text as in W3C Trace Context. ``appended_at`` is as in :class:`Passed`. The :class:`Passed` event of its
    delivery follows.
    """

    stream: str
    id: int
    traceparent: str
    appended_at: float | None


class Published(NamedTuple):
    """A Bus has published messages, or has failed to. It is an event of the Bus, not of a streamer.

    ``kind`` is ``now`` (in a transaction of its own) or ``on-commit`` (queued in the caller's transaction). ``seconds`` is how long
    the statement took, with the commit if the kind is ``now``. ``error`` is the name of the exception, or None.
    """

    stream: str
    messages: int
    kind: str
    seconds: float
    error: str | None = None


class Read(NamedTuple):
    """A reader has read from the database what the rings do not have.

    ``kind`` is ``open`` (the state of streams that are new here), ``follow`` (the messages above the heads of open logs) or
    ``page`` (older messages for clients that are behind). The read is one statement: ``streams`` is how many streams it asked
    about, ``rows`` how many messages it returned, and ``seconds`` how long it took.
    """

    kind: str
    streams: int
    rows: int
    seconds: float


class Gap(NamedTuple):
    """A client was sent a gap event. ``reason`` is ``expired``, ``ahead`` or ``invalid-cursor``."""

    stream: str
    reason: str


class SlowConsumer(NamedTuple):
    """A connection is closed because its client has taken no byte for ``seconds``. Its :class:`Disconnected` follows."""

    connection: str
    streams: tuple[str, ...]
    seconds: float


class ListenerUp(NamedTuple):
    """The LISTEN session was opened, for the first time or again."""


class ListenerDown(NamedTuple):
    """The LISTEN session was lost, and messages are found by sweeps until the next :class:`ListenerUp`.

    ``error`` is the message of the error.
    """

    error: str


KINDS: tuple[type[Any], ...] = (
    Connected,
    Admitted,
    Disconnected,
    Refused,
    Broadcast,
    Traced,
    Passed,
    Read,
    Gap,
    SlowConsumer,
    ListenerUp,
    ListenerDown,
    Published,
)
"""The classes of all events, for a handler that subscribes to every one."""

E = TypeVar("E")
Clock = Callable[[], float]


class _Handler:
    __slots__ = ("failures", "handler")

    def __init__(self, handler: Callable[[Any], object]) -> None:
        self.handler = handler
        self.failures = 0


class Signal(Generic[E]):
    """The handlers of one kind of event. A part uses it so: ``if signal.handlers: signal.emit(Kind(…))``.

    Whatever a handler raises does no harm. With a ``clock``, which returns monotonic seconds, exceptions
    are logged once a minute for each handler; without one, only the first exception of each handler is logged.
    """

    __slots__ = ("_reports", "handlers")

    def __init__(self, *, clock: Clock | None = None) -> None:
        self.handlers: tuple[_Handler, ...] = ()
        """The handlers in the order in which they subscribed; empty if there are none."""
        self._reports = Seldom(clock)

    def subscribe(self, handler: Callable[[E], object]) -> Callable[[], None]:
        """Call ``handler`` with each event from now on. Return a function that ends this; it may be called again."""
        one = _Handler(handler)
        # A new tuple each time, because a handler may subscribe or unsubscribe while emit() iterates over the old one.
        self.handlers = (*self.handlers, one)

        def unsubscribe() -> None:
            self.handlers = tuple(other for other in self.handlers if other is not one)
            self._reports.forget(one)

        return unsubscribe

    def emit(self, event: E) -> None:
        """Call all handlers, in the order in which they subscribed. Exceptions are logged, not raised."""
        for one in self.handlers:
            try:
                one.handler(event)
            except BaseException as error:
                # An application's handler must not stop the delivery of messages.
                self._report(one, event, error)

    def _report(self, one: _Handler, event: E, error: BaseException) -> None:
        one.failures += 1
        if self._reports.due(one) is not None:
            logger.error(
                "the handler %s raised %s at a %s event, %d times so far; this is logged once a minute",
                described(one.handler),
                kind_of(error),
                type(event).__name__,
                one.failures,
                exc_info=traceable(error),
            )


class Events:
    """The events of one Instance: a :class:`Signal` for each kind, made with the same ``clock``."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._signals: dict[type[Any], Signal[Any]] = {kind: Signal(clock=clock) for kind in KINDS}

    def signal(self, kind: type[E]) -> Signal[E]:
        """Return the signal of a kind. Raises :class:`InvalidArgument` if it is not one of :data:`KINDS`."""
        try:
            return self._signals[kind]
        except (KeyError, TypeError):
            names = ", ".join(one.__name__ for one in KINDS)
            raise InvalidArgument(f"{kind!r} is no kind of event; there are {names}") from None

    def subscribe(self, kind: type[E], handler: Callable[[E], object]) -> Callable[[], None]:
        """Call ``handler`` with each event of ``kind``, one of the classes in :data:`KINDS`.

        Return a function that ends the subscription. The handler must return at once. If it raises, the exception is logged, at
        most once a minute, and the streamer goes on. Raises :class:`InvalidArgument` if the kind is unknown, or if the handler
        cannot be called.
        """
        if not callable(handler):
            raise InvalidArgument(f"a handler is a function of the event, not {handler!r}")
        return self.signal(kind).subscribe(handler)

    def emit(self, event: Any) -> None:
        """Call the handlers of the event's kind. This is for rare events, because the caller has to make the event first."""
        self.signal(type(event)).emit(event)
