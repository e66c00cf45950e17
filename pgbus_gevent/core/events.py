"""What happens in a streamer, as named events; metrics, logs and users' hooks all take from here.

The parts emit, whoever is interested subscribes. Where nobody has, an event costs the part one look at an attribute: it asks for
:attr:`Signal.handlers` before it makes one. A handler is called where the thing happens, in the greenlet that delivers or reads, so
it must return at once and must not wait (no query, no request, no sleep): count, append to a queue, log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import InvalidArgument
from .retries import Seldom

logger = logging.getLogger("pgbus_gevent.events")


class Connected(NamedTuple):
    """A connection was opened. ``connection`` is its id."""

    connection: str
    streams: tuple[str, ...]
    owner: str | None


class Disconnected(NamedTuple):
    """A connection has ended, however it did, after so many ``seconds``; comes once for each :class:`Connected`.

    ``reason`` is that of the ``pgbus:shutdown`` frame, or says what the client did.
    """

    connection: str
    streams: tuple[str, ...]
    owner: str | None
    reason: str
    seconds: float


class Refused(NamedTuple):
    """A client was sent away for a passing reason, to come back: ``overloaded``, ``too-many-connections``, ``restart`` or
    ``unavailable``."""

    reason: str


class Broadcast(NamedTuple):
    """So many new ``messages`` of a stream that somebody is connected to came in, ephemeral ones included."""

    stream: str
    messages: int


class Passed(NamedTuple):
    """A pass over a stream's connections has ended; one event for all of them.

    It sent to so many ``connections``, and took so many ``seconds`` from its begin until the last one had been served; the turns of
    other streams in between are among them. ``appended_at`` is when the oldest of its messages was appended, in Unix seconds of
    the database's clock; None where no notification told.
    """

    stream: str
    connections: int
    seconds: float
    appended_at: float | None = None


class Read(NamedTuple):
    """A read for clients and streams that the ring could not serve.

    ``kind`` is ``open`` (the state of streams that are new here), ``follow`` (from their heads on) or ``page`` (for clients far
    behind). One statement for so many ``streams`` brought so many ``rows`` in so many ``seconds``.
    """

    kind: str
    streams: int
    rows: int
    seconds: float


class Gap(NamedTuple):
    """A client was told that its cursor cannot be served without a gap: ``expired``, ``ahead`` or ``invalid-cursor``."""

    stream: str
    reason: str


class SlowConsumer(NamedTuple):
    """A connection is closed, as it has taken no byte for ``seconds``. Its :class:`Disconnected` follows."""

    connection: str
    streams: tuple[str, ...]
    seconds: float


class ListenerUp(NamedTuple):
    """The LISTEN session is there, for the first time or again."""


class ListenerDown(NamedTuple):
    """The LISTEN session was lost; ``error`` says how. Until the next :class:`ListenerUp` new clients are refused."""

    error: str


KINDS: tuple[type[Any], ...] = (
    Connected,
    Disconnected,
    Refused,
    Broadcast,
    Passed,
    Read,
    Gap,
    SlowConsumer,
    ListenerUp,
    ListenerDown,
)
"""All of them, for who wants to hear of everything."""

E = TypeVar("E")
Clock = Callable[[], float]


class _Subscription:
    __slots__ = ("failures", "handler")

    def __init__(self, handler: Callable[[Any], object]) -> None:
        self.handler = handler
        self.failures = 0


class Signal(Generic[E]):
    """One kind of event: what a part is given, to say ``if signal.handlers: signal.emit(Kind(…))``.

    ``catch`` are the exceptions of a handler that stay here; without a ``clock`` only its first one is logged. A part that is built
    alone has one that nobody hears.
    """

    __slots__ = ("_catch", "_reports", "handlers")

    def __init__(self, *, clock: Clock | None = None, catch: tuple[type[BaseException], ...] = (Exception,)) -> None:
        self.handlers: tuple[_Subscription, ...] = ()
        """Who listens; empty where nobody does."""
        self._reports = Seldom(clock)
        self._catch = catch

    def subscribe(self, handler: Callable[[E], object]) -> Callable[[], None]:
        """Call ``handler`` with each event from now on; returns what ends that, which may be called again."""
        one = _Subscription(handler)
        # Always another tuple: one that is being gone through stays as it is.
        self.handlers = (*self.handlers, one)

        def unsubscribe() -> None:
            self.handlers = tuple(other for other in self.handlers if other is not one)
            self._reports.forget(one)

        return unsubscribe

    def emit(self, event: E) -> None:
        """Call all handlers, in the order in which they came. Raises nothing that ``catch`` names."""
        for one in self.handlers:
            try:
                one.handler(event)
            except self._catch:
                # Somebody's hook must not keep anybody from their messages.
                self._report(one, event)

    def _report(self, one: _Subscription, event: E) -> None:
        one.failures += 1
        if self._reports.turn(one) is not None:
            logger.exception(
                "the handler %r raised at a %s event, %d times so far; a line of this comes once a minute",
                one.handler,
                type(event).__name__,
                one.failures,
            )


class Events:
    """All kinds of one Instance, each with its :class:`Signal`; arguments as there."""

    def __init__(self, *, clock: Clock | None = None, catch: tuple[type[BaseException], ...] = (Exception,)) -> None:
        self._signals: dict[type[Any], Signal[Any]] = {kind: Signal(clock=clock, catch=catch) for kind in KINDS}

    def signal(self, kind: type[E]) -> Signal[E]:
        """That of a kind. Raises :class:`InvalidArgument` where it is none of :data:`KINDS`."""
        try:
            return self._signals[kind]
        except (KeyError, TypeError):
            names = ", ".join(one.__name__ for one in KINDS)
            raise InvalidArgument(f"{kind!r} is no kind of event; there are {names}") from None

    def subscribe(self, kind: type[E], handler: Callable[[E], object]) -> Callable[[], None]:
        """Call ``handler`` with each event of ``kind``, one of the classes here; returns what ends that.

        It must return at once. What it raises is logged, once a minute, and harms nobody. Raises :class:`InvalidArgument` for an
        unknown kind, and for a handler that cannot be called.
        """
        if not callable(handler):
            raise InvalidArgument(f"a handler is a function of the event, not {handler!r}")
        return self.signal(kind).subscribe(handler)

    def emit(self, event: Any) -> None:
        """Tell who has subscribed to this kind; for what happens seldom, as the event has to be made first."""
        self.signal(type(event)).emit(event)
