"""The spans of publishers, and the traceparent that goes with the message."""

from __future__ import annotations

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode, TraceFlags
from tracing_parts import exporter, named, spans_of

from pgbus_gevent.bus import Bus
from pgbus_gevent.errors import DatabaseError
from pgbus_gevent.testing.fake_bus import FakeBus

NOT_SAMPLED = trace.NonRecordingSpan(trace.SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(0)))


@pytest.fixture
def bus(pgbus_database: str):
    exporter()
    with Bus(pgbus_database, tracing=True) as bus:
        yield bus


def traceparent(span: ReadableSpan) -> str:
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


def stored(bus: Bus, stream: str = "orders") -> list[str | None]:
    with bus.transaction() as cursor:
        cursor.execute("select trace from pgbus.messages where stream = %s order by msg_id", (stream,))
        return [text for (text,) in cursor.fetchall()]


def test_a_message_carries_the_span_that_published_it(bus: Bus) -> None:
    with trace.get_tracer("shop").start_as_current_span("request") as request:
        bus.stream("orders").broadcast("x")
    span = named(spans_of(request.get_span_context().trace_id), "pgbus publish")
    assert span.parent == request.get_span_context()
    assert span.kind is SpanKind.PRODUCER
    assert span.attributes is not None and span.attributes["messaging.destination.name"] == "orders"
    assert stored(bus) == [traceparent(span)]


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg 3"])
def test_so_does_one_in_the_callers_transaction(driver: str, bus: Bus, pgbus_database: str) -> None:
    with trace.get_tracer("shop").start_as_current_span("request") as request:
        if driver == "psycopg2":
            with bus.transaction() as cursor:
                bus.stream("orders").broadcast("x", using=cursor)
        else:
            bus.database  # noqa: B018  # makes the schema
            with psycopg.connect(pgbus_database) as connection:
                bus.stream("orders").broadcast("x", using=connection)
    span = named(spans_of(request.get_span_context().trace_id), "pgbus publish")
    assert stored(bus) == [traceparent(span)]


@pytest.mark.parametrize("own", [True, False])
def test_messages_of_a_batch_share_one_span(own: bool, bus: Bus) -> None:
    with trace.get_tracer("shop").start_as_current_span("request") as request:
        if own:
            bus.stream("orders").broadcast_many(["a", "b"])
        else:
            with bus.transaction() as cursor:
                bus.stream("orders").broadcast_many(["a", "b"], using=cursor)
    span = named(spans_of(request.get_span_context().trace_id), "pgbus publish")
    assert span.attributes is not None and span.attributes["messaging.batch.message_count"] == 2
    assert stored(bus) == [traceparent(span)] * 2


def test_a_trace_that_is_not_sampled_does_not_travel(bus: Bus) -> None:
    with trace.use_span(NOT_SAMPLED):
        bus.stream("orders").broadcast("x")
    assert stored(bus) == [None]
    assert spans_of(7) == []


def test_nor_does_it_take_the_trace_of_an_earlier_message_of_the_transaction(bus: Bus) -> None:
    orders = bus.stream("orders")
    with bus.transaction() as cursor:
        with trace.get_tracer("shop").start_as_current_span("request"):
            orders.broadcast("a", using=cursor)
        with trace.use_span(NOT_SAMPLED):
            orders.broadcast("b", using=cursor)
            orders.broadcast_many(["c", "d"], using=cursor)
    assert [text is not None for text in stored(bus)] == [True, False, False, False]


def test_what_is_held_back_has_no_span_and_what_is_not_stored_only_that_of_the_publisher(bus: Bus) -> None:
    with trace.get_tracer("shop").start_as_current_span("request") as request:
        bus.stream("orders").broadcast("x", coalesce=0.01, target="row")
        bus.close()  # publishes it
    assert [span.name for span in spans_of(request.get_span_context().trace_id)] == ["request"]
    with trace.get_tracer("shop").start_as_current_span("request") as request:
        bus.stream("orders").broadcast("x", ephemeral=True)
    assert {span.name for span in spans_of(request.get_span_context().trace_id)} == {"pgbus publish", "request"}
    assert stored(bus) == [None]


def test_nothing_travels_if_tracing_is_off(pgbus_database: str) -> None:
    exporter()
    with Bus(pgbus_database) as bus, trace.get_tracer("shop").start_as_current_span("request") as request:
        bus.stream("orders").broadcast("x")
        assert stored(bus) == [None]
    assert [span.name for span in spans_of(request.get_span_context().trace_id)] == ["request"]


def test_a_broadcast_that_fails_is_a_span_with_the_error(bus: Bus) -> None:
    with bus.transaction() as cursor:
        cursor.execute("drop schema pgbus cascade")
    with trace.get_tracer("shop").start_as_current_span("request") as request, pytest.raises(DatabaseError):
        bus.stream("orders").broadcast("x")
    span = named(spans_of(request.get_span_context().trace_id), "pgbus publish")
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]


def test_the_bus_for_unit_tests_takes_traces_too() -> None:
    exporter()
    with FakeBus(tracing=True) as bus, trace.get_tracer("shop").start_as_current_span("request"):
        bus.stream("orders").broadcast("x")
        with bus.transaction() as cursor:
            bus.stream("orders").broadcast("y", using=cursor, key="k")
        assert [message.data for message in bus.sent] == ["x", "y"]
