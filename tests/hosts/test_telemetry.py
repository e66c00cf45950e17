"""``serve`` exports spans with OTLP. A collector of the test, with OpenTelemetry's own message types, receives them."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gevent.pywsgi import WSGIServer
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from program_parts import program
from support import until

from pgbus_gevent.bus import Bus
from pgbus_gevent.hosts.telemetry import export_spans

TRACE = 0x0AF7651916CD43DD8448EB211C80319C
TRACEPARENT = f"00-{TRACE:032x}-b7ad6b7169203331-01"


class Collector:
    """Keeps the spans that are sent to it, each with the name of its service."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read()
        if environ.get("HTTP_CONTENT_ENCODING") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                if int.from_bytes(span.trace_id, "big") == TRACE:
                    self.spans.append((names["service.name"], span.name))
        start_response("200 OK", [("content-type", "application/x-protobuf")])
        return [b""]


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    collector = Collector()
    server = WSGIServer(("127.0.0.1", 0), collector, log=None)
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.stop(1)


def test_the_workers_of_serve_export_the_spans_of_their_deliveries(pgbus_database: str, tmp_path: Path) -> None:
    with collecting() as (collector, url), Bus(pgbus_database) as bus:
        variables = {
            "PGBUS_TRACING": "on",
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        arguments = ["-m", "pgbus_gevent.serve", "--workers", "2", "--public", "demo:*"]
        with program(*arguments, database_url=pgbus_database, cwd=tmp_path, **variables) as serving:
            with serving.watch("/pgbus/streams/demo:traced") as client:
                with bus.transaction() as cursor:
                    cursor.execute("select set_config('pgbus.traceparent', %s, true)", (TRACEPARENT,))
                    cursor.execute("select pgbus.broadcast('demo:traced', 'x')")
                client.next("message")
                until(lambda: len(collector.spans) == 2, "the spans are exported")
            assert serving.stop() == 0
        assert sorted(collector.spans) == [("pgbus", "pgbus commit"), ("pgbus", "pgbus deliver")]


def test_a_collector_that_is_away_delays_neither_messages_nor_the_end(pgbus_database: str, tmp_path: Path) -> None:
    variables = {"PGBUS_TRACING": "on", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    arguments = ["-m", "pgbus_gevent.serve", "--public", "demo:*"]
    serving_one = program(*arguments, database_url=pgbus_database, cwd=tmp_path, **variables)
    with Bus(pgbus_database) as bus, serving_one as serving:
        with serving.watch("/pgbus/streams/demo:traced") as client:
            with bus.transaction() as cursor:
                cursor.execute("select set_config('pgbus.traceparent', %s, true)", (TRACEPARENT,))
                cursor.execute("select pgbus.broadcast('demo:traced', 'x')")
            client.next("message")
        assert serving.stop() == 0


@pytest.mark.parametrize("reason", ["no exporter is wanted", "the application has a provider"])
def test_nothing_is_set_up_if(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason == "no exporter is wanted":
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    found = trace.NoOpTracerProvider() if "application" in reason else trace.ProxyTracerProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: found)
    made: list[object] = []
    monkeypatch.setattr(trace, "set_tracer_provider", made.append)
    export_spans()()
    assert made == []
