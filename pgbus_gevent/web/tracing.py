"""The spans of deliveries, with OpenTelemetry: each is a child of the span that published. Imported only if ``tracing`` is on."""

from __future__ import annotations

from collections.abc import Callable
from time import time
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from ..core.events import Events, Passed, Traced
from ..publishing.tracing import SYSTEM

MOST = 1000
"""The most traced broadcasts that wait for their pass."""

LONGEST = 60.0
"""Seconds after which one that waits is given up: its stream has no connection any more."""


class Arrival(NamedTuple):
    """The messages of a stream with one traceparent: the ids of the first and the last, how many they are, and when the first was
    appended and came, in Unix seconds of this host."""

    first: int
    last: int
    number: int
    appended_at: float | None
    came_at: float


class Deliveries:
    """Makes two spans for each traced broadcast that a worker delivers, when its pass has ended.

    ``pgbus commit`` is from the append, at the commit, until the worker had the message; ``pgbus deliver`` from then until all
    connections were served. ``clock_offset`` returns how many seconds the clock of the database is ahead of this host's. Nothing
    here waits.
    """

    def __init__(
        self, events: Events, clock_offset: Callable[[], float], *, wall_clock: Callable[[], float] = time
    ) -> None:
        self._clock_offset = clock_offset
        self._wall_clock = wall_clock
        self._tracer = trace.get_tracer("pgbus_gevent")
        self._waiting: dict[str, dict[str, Arrival]] = {}  # by stream and traceparent
        self._count = 0
        events.subscribe(Traced, self._traced)
        events.subscribe(Passed, self._passed)

    def _traced(self, event: Traced) -> None:
        now = self._wall_clock()
        known = self._waiting.get(event.stream, {}).get(event.traceparent)
        if known is not None:
            self._waiting[event.stream][event.traceparent] = known._replace(last=event.id, number=known.number + 1)
            return
        if self._count >= MOST:
            self._give_up(now - LONGEST)
        if self._count < MOST:
            at = None if event.appended_at is None else min(now, event.appended_at - self._clock_offset())
            arrival = Arrival(event.id, event.id, 1, at, now)
            self._waiting.setdefault(event.stream, {})[event.traceparent] = arrival
            self._count += 1

    def _give_up(self, before: float) -> None:
        """Forget what came before that time."""
        for stream, arrivals in list(self._waiting.items()):
            self._waiting[stream] = {key: one for key, one in arrivals.items() if one.came_at >= before}
            if not self._waiting[stream]:
                del self._waiting[stream]
        self._count = sum(map(len, self._waiting.values()))

    def _passed(self, event: Passed) -> None:
        waiting = self._waiting.get(event.stream)
        if waiting is None:
            return
        now = self._wall_clock()
        for traceparent, one in list(waiting.items()):
            if one.last <= event.head:
                del waiting[traceparent]
                self._count -= 1
                self._make_spans(event.stream, traceparent, one, now, event.connections)
        if not waiting:
            del self._waiting[event.stream]

    def _make_spans(self, stream: str, traceparent: str, one: Arrival, now: float, connections: int) -> None:
        context = trace.set_span_in_context(NonRecordingSpan(_parsed(traceparent)))
        attributes: dict[str, str | int] = {
            "messaging.system": SYSTEM,
            "messaging.destination.name": stream,
            "messaging.message.id": str(one.last),
        }
        if one.number > 1:
            attributes["messaging.batch.message_count"] = one.number
        if one.appended_at is not None:
            commit = self._tracer.start_span(
                "pgbus commit", context, SpanKind.INTERNAL, attributes, start_time=_nanoseconds(one.appended_at)
            )
            commit.end(_nanoseconds(one.came_at))
        deliver = self._tracer.start_span(
            "pgbus deliver",
            context,
            SpanKind.CONSUMER,
            {
                **attributes,
                "messaging.operation.name": "deliver",
                "messaging.operation.type": "process",
                "pgbus.connections": connections,
            },
            start_time=_nanoseconds(one.came_at),
        )
        deliver.end(_nanoseconds(now))


def _parsed(traceparent: str) -> SpanContext:
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
