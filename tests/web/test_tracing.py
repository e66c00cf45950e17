"""One message's trace, from the publisher through the commit to the browsers. Clients see no difference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from raw_http import Answer
from redis_parts import needs_redis, redis_server
from site_parts import Site, running_site
from support import until
from tracing_parts import exporter, named, spans_of

from pgbus_gevent.core import wakes
from pgbus_gevent.core.events import Events, Passed, Traced
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web import tracing
from pgbus_gevent.web.tracing import Deliveries

TRACES = iter(range(0x1000, 0x2000))
SPAN = 0xB7AD6B7169203331


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    exporter()
    with running_site(pgbus_databases.make(), tracing=True) as site:
        yield site


def traceparent(number: int) -> str:
    return f"00-{number:032x}-{SPAN:016x}-01"


def published_in_sql(site: Site, stream: str, number: int, *data: str) -> None:
    with site.bus.transaction() as cursor:
        cursor.execute("select set_config('pgbus.traceparent', %s, true)", (traceparent(number),))
        for text in data:
            cursor.execute("select pgbus.broadcast_on_commit(%s, %s)", (stream, text))


def delivered(number: int) -> list[Any]:
    """Return the spans of the trace when the one of the delivery has ended."""
    until(lambda: any(span.name == "pgbus deliver" for span in spans_of(number)), "it is delivered")
    return spans_of(number)


def test_a_trace_leads_from_the_publisher_through_the_commit_to_the_delivery(site: Site) -> None:
    with site.watch("demo:a") as one, site.watch("demo:a") as two:
        one.next("pgbus:connected")
        two.next("pgbus:connected")
        with trace.get_tracer("shop").start_as_current_span("request") as request:
            id = site.bus.stream("demo:a").broadcast("x")
        one.next("message")
        two.next("message")
    spans = delivered(request.get_span_context().trace_id)
    publish, commit, deliver = (named(spans, f"pgbus {name}") for name in ("publish", "commit", "deliver"))
    for span in (commit, deliver):
        assert span.parent is not None and span.parent.span_id == publish.context.span_id and span.parent.is_remote
        assert span.attributes is not None and span.attributes["messaging.destination.name"] == "demo:a"
        assert span.attributes["messaging.message.id"] == str(id)
    assert deliver.kind is SpanKind.CONSUMER and deliver.attributes is not None
    assert deliver.attributes["pgbus.connections"] == 2
    assert commit.start_time is not None and deliver.end_time is not None and commit.end_time == deliver.start_time
    assert commit.start_time <= commit.end_time <= deliver.end_time  # type: ignore[operator]


def test_sql_gives_a_trace_by_a_setting(site: Site) -> None:
    number = next(TRACES)
    with site.watch("demo:sql") as client:
        client.next("pgbus:connected")
        published_in_sql(site, "demo:sql", number, "x")
        client.next("message")
    assert {span.name for span in delivered(number)} == {"pgbus commit", "pgbus deliver"}


def test_messages_of_one_transaction_share_the_spans(site: Site) -> None:
    number = next(TRACES)
    with site.watch("demo:many") as client:
        client.next("pgbus:connected")
        published_in_sql(site, "demo:many", number, "a", "b", "c")
        until(lambda: client.next("message").data == "c", "the last one came")
    deliver = named(delivered(number), "pgbus deliver")
    assert deliver.attributes is not None and deliver.attributes["messaging.batch.message_count"] == 3


def test_a_publisher_over_http_gives_a_trace_by_a_header(site: Site) -> None:
    number = next(TRACES)
    with site.watch("demo:http") as client:
        client.next("pgbus:connected")
        answer: Answer = site.publish("demo:http", b"x", Traceparent=traceparent(number))
        assert answer.status == 201
        client.next("message")
    assert {span.name for span in delivered(number)} == {"pgbus commit", "pgbus deliver"}


@pytest.mark.parametrize("size", [10, 20_000])
def test_a_message_that_no_notification_brings_has_its_trace_from_the_table(
    size: int, pgbus_databases: TestDatabases
) -> None:
    exporter()
    number = next(TRACES)
    with running_site(pgbus_databases.make(), tracing=True, wake="poll", catch_up_interval=0.2) as site:
        with site.watch("demo:poll") as client:
            client.next("pgbus:connected")
            published_in_sql(site, "demo:poll", number, "x" * size)
            client.next("message")
        assert {span.name for span in delivered(number)} == {"pgbus commit", "pgbus deliver"}


@needs_redis
def test_a_message_that_redis_brings_has_its_trace(pgbus_databases: TestDatabases) -> None:
    exporter()
    number = next(TRACES)
    with redis_server() as redis, running_site(pgbus_databases.make(), tracing=True, wake=redis.url) as site:
        relaying = site.instance.redis
        assert relaying is not None
        until(lambda: relaying.wakes.on_redis, "wakes come through Redis")
        with site.watch("demo:redis") as client:
            client.next("pgbus:connected")
            published_in_sql(site, "demo:redis", number, "x")
            client.next("message")
        assert relaying.wakes.on_redis
    assert {span.name for span in delivered(number)} == {"pgbus commit", "pgbus deliver"}


BAD = [
    "",
    "nonsense",
    traceparent(7)[:-1] + "0",
    f"00-{0:032x}-{SPAN:016x}-01",
    f"00-{7:032x}-{0:016x}-01",
    traceparent(0xA).upper(),
]


@pytest.mark.parametrize("bad", BAD)
def test_a_message_whose_trace_is_bad_arrives_like_any_other(bad: str, site: Site) -> None:
    with site.watch("demo:bad") as client:
        client.next("pgbus:connected")
        before = site.instance.board.counter.total.broadcasts
        with site.bus.transaction() as cursor:
            cursor.execute("select set_config('pgbus.traceparent', %s, true)", (bad,))
            cursor.execute("select pgbus.broadcast('demo:bad', 'sql')")
        client.next("message")
        assert site.publish("demo:bad", b"http", Traceparent=bad).status == 201
        client.next("message")
        assert site.instance.board.counter.total.broadcasts == before + 2
    with site.bus.transaction() as cursor:
        cursor.execute("select trace from pgbus.messages where stream = 'demo:bad'")
        assert {text for (text,) in cursor.fetchall()} == {None}


def test_a_large_message_has_its_trace_too(site: Site) -> None:
    number = next(TRACES)
    with site.watch("demo:large") as client:
        client.next("pgbus:connected")
        published_in_sql(site, "demo:large", number, "x" * 20_000)
        client.next("message")
    assert {span.name for span in delivered(number)} == {"pgbus commit", "pgbus deliver"}


def test_a_worker_that_cannot_read_a_notification_with_a_trace_finds_the_message(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The release before this schema reads notifications of eight parts only."""
    read = wakes._message

    def as_before(*parts: Any) -> Any:
        if len(parts) != 8:
            raise TypeError
        return read(*parts)

    monkeypatch.setattr(wakes, "_message", as_before)
    with site.watch("demo:seven") as client:
        client.next("pgbus:connected")
        site.bus.stream("demo:seven").broadcast("a")
        published_in_sql(site, "demo:seven", next(TRACES), "b")
        site.bus.stream("demo:seven").broadcast("c")
        assert [client.next("message").data for _ in range(3)] == ["a", "b", "c"]


def test_clients_see_no_difference(site: Site) -> None:
    number = next(TRACES)
    with site.watch("demo:same") as client:
        client.next("pgbus:connected")
        site.bus.stream("demo:same").broadcast("x", event="e")
        with site.bus.transaction() as cursor:
            cursor.execute("select set_config('pgbus.traceparent', %s, true)", (traceparent(number),))
            cursor.execute("select pgbus.broadcast('demo:same', 'x', 'e')")
        for _ in range(2):
            client.next("e")
    with site.watch("demo:same", "since=0") as client:
        client.next("e")
        client.next("e")
        plain, traced = (frame for frame in client.frames if frame.event == "e")
    assert re.sub(r"\d+", "", repr(plain)) == re.sub(r"\d+", "", repr(traced))


def test_a_replay_makes_no_span(site: Site) -> None:
    number = next(TRACES)
    published_in_sql(site, "demo:replay", number, "x")
    with site.watch("demo:replay", "since=0") as client:
        client.next("message")
        site.bus.stream("demo:replay").broadcast("y")
        client.next("message")
    assert spans_of(number) == []


def test_without_the_setting_nothing_listens(pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make()) as site:
        assert site.instance.events.signal(Traced).handlers == ()


def test_what_never_gets_a_pass_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter()
    monkeypatch.setattr(tracing, "MOST", 3)
    now, events = 1000.0, Events()
    deliveries = Deliveries(events, lambda: 0.0, wall_clock=lambda: now)
    numbers = [next(TRACES) for _ in range(5)]
    for n, number in enumerate(numbers[:4]):
        events.emit(Traced(f"left {n}", 1, traceparent(number), None))
    assert deliveries._count == 3
    now += tracing.LONGEST + 1
    events.emit(Traced("orders", 7, traceparent(numbers[4]), now - 0.5))
    assert deliveries._count == 1
    events.emit(Passed("orders", 3, 0.1, None, 6))
    assert spans_of(numbers[4]) == []
    events.emit(Passed("orders", 3, 0.1, None, 7))
    assert {span.name for span in spans_of(numbers[4])} == {"pgbus commit", "pgbus deliver"}
    assert deliveries._count == 0 and deliveries._waiting == {}
