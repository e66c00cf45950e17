"""The spans of publishers, with OpenTelemetry. Imported only if the setting ``tracing`` is on."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

SYSTEM = "pgbus"
"""The attribute ``messaging.system`` of all spans."""


class Tracing:
    """Makes the spans of broadcasts with the global tracer provider. They are children of the caller's current span."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("pgbus_gevent")

    def publish(self, stream: str, messages: int) -> Span:
        """Begin the span of a broadcast."""
        attributes: dict[str, str | int] = {
            "messaging.system": SYSTEM,
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": stream,
        }
        if messages != 1:
            attributes["messaging.batch.message_count"] = messages
        return Span(self._tracer.start_span("pgbus publish", kind=SpanKind.PRODUCER, attributes=attributes))


class Span:
    """The span of one broadcast. It is not the caller's current span: nothing but the statement happens in it."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str | None:
        """The traceparent to publish with; None if the trace is not sampled."""
        context = self._span.get_span_context()
        if not (context.is_valid and context.trace_flags.sampled):
            return None
        # As in W3C Trace Context, whichever format the program's own propagators use.
        ids = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
        return f"00-{ids[0]}-{ids[1]}-{context.trace_flags:02x}"

    def end(self, error: BaseException | None) -> None:
        """End the span. With an ``error``, it has failed."""
        if error is not None:
            self._span.record_exception(error)
            self._span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        self._span.end()
