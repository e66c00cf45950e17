"""Exports the spans of a serving process with OTLP, unless its application has a tracer provider of its own."""

from __future__ import annotations

import os
from collections.abc import Callable

import gevent

from ..errors import InvalidSetting

_PATIENCE = 2.0  # seconds for the last spans, when the process ends


def export_spans() -> Callable[[], object]:
    """Begin to export, as the variables ``OTEL_…`` say. Return a function that sends what is left, and ends it.

    Call it when the application has been loaded, because a process has only one tracer provider. Raises
    :class:`InvalidSetting` if OpenTelemetry is not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise InvalidSetting("tracing", True, "it needs OpenTelemetry: pip install 'pgbus-gevent[otel]'") from None
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() != "none"
    if not wanted or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return lambda: None
    named = "OTEL_SERVICE_NAME" in os.environ or SERVICE_NAME in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(
        resource=Resource.create({} if named else {SERVICE_NAME: "pgbus"}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    # A collector that does not answer must not hold up the end of the process.
    return lambda: gevent.spawn(provider.shutdown).join(_PATIENCE)
