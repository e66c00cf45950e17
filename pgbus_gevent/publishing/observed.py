"""Observes broadcasts: how long they take, for metrics and events, and their spans, if tracing is on."""

from __future__ import annotations

from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING

from ..core.events import Events, Published
from ..core.histogram import Histogram
from ..errors import InvalidSetting

if TYPE_CHECKING:
    from .tracing import Span, Tracing

NOW, ON_COMMIT = "now", "on-commit"
"""The kinds: in a transaction of its own, with the commit; or queued in the caller's transaction."""

_BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

durations = {kind: Histogram(_BOUNDS) for kind in (NOW, ON_COMMIT)}
"""How long the broadcasts of this process took, by the kind, in seconds. Between threads, a count may be missed."""


def tracing_of(wanted: bool) -> Tracing | None:
    """Return what makes spans, if that is ``wanted``. Raises :class:`InvalidSetting` if OpenTelemetry is not installed."""
    if not wanted:
        return None
    try:
        from .tracing import Tracing
    except ImportError:
        raise InvalidSetting("tracing", True, "it needs OpenTelemetry: pip install 'pgbus-gevent[otel]'") from None
    return Tracing()


class Observer:
    """Observes the broadcasts of one Bus, or of one server. ``events`` gets a :class:`Published` for each of them."""

    def __init__(self, events: Events | None = None, tracing: Tracing | None = None) -> None:
        self.events = events or Events(clock=monotonic)
        self._published = self.events.signal(Published)
        self._tracing = tracing

    def broadcast(self, stream: str, kind: str = NOW, messages: int = 1) -> Observed:
        """Return a context manager for the statement. It yields the traceparent to publish with, or None.

        In the caller's transaction, it yields an empty text for a trace that is not sampled: otherwise the message would get the
        trace of an earlier broadcast.
        """
        return Observed(self, stream, kind, messages)

    def begun(self, stream: str, messages: int) -> Span | None:
        """Begin the span of a broadcast, if tracing is on."""
        return None if self._tracing is None else self._tracing.publish(stream, messages)

    def ended(self, stream: str, kind: str, messages: int, seconds: float, error: str | None) -> None:
        """Count a broadcast, and tell the handlers."""
        durations[kind].observe(seconds)
        if self._published.handlers:
            self._published.emit(Published(stream, messages, kind, seconds, error))


class Observed:
    """One broadcast. If the block raises, the broadcast has failed."""

    __slots__ = ("_began", "_kind", "_messages", "_observer", "_span", "_stream")

    def __init__(self, observer: Observer, stream: str, kind: str, messages: int) -> None:
        self._observer = observer
        self._stream = stream
        self._kind = kind
        self._messages = messages

    def __enter__(self) -> str | None:
        self._span = self._observer.begun(self._stream, self._messages)
        self._began = monotonic()
        if self._span is None:
            return None
        return self._span.traceparent or ("" if self._kind == ON_COMMIT else None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        seconds = monotonic() - self._began
        self._observer.ended(self._stream, self._kind, self._messages, seconds, None if kind is None else kind.__name__)
        if self._span is not None:
            self._span.end(error)
