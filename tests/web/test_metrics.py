"""The metrics, read by Prometheus's own parser: their values, their names and their cost."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, process_time, time
from timeit import repeat
from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st
from program_parts import program
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families
from raw_http import Answer, ask
from site_parts import Site, running_site
from support import PATIENCE, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.events import Events, Passed
from pgbus_gevent.core.histogram import Histogram
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web import backstage
from pgbus_gevent.web.backstage import backstage_of
from pgbus_gevent.web.families import counters, gauge, histograms, merged, of_worker, packed, unpacked, written
from pgbus_gevent.web.stream_app import StreamApp

PATH = "/pgbus/metrics"
ROOT = Path(__file__).parents[2]
TOKEN = "operator-token-of-the-site"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(text: str) -> dict[str, Any]:
    """Parse the families. Raises AssertionError if a name comes twice, which the format forbids."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.name not in found
        found[family.name] = family
    return found


class Scrape:
    """One scrape: values by sample name and labels, without the label of the worker."""

    def __init__(self, answer: Answer) -> None:
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4; charset=utf-8")
        self.families = read(answer.body.decode())
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        return sum(found)


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_site(pgbus_databases.make(), presence=["demo:room:*"]) as site:
        yield site


def scrape(site: Site) -> Scrape:
    return Scrape(site.get("/metrics"))


# values ---------------------------------------------------------------------------------------------------------------


def test_messages_deliveries_and_connections_are_counted(site: Site) -> None:
    before = scrape(site)
    with site.watch("demo:count") as one, site.watch("demo:count") as two:
        for client in (one, two):
            client.next("pgbus:connected")
        began = monotonic()
        site.bus.stream("demo:count").broadcast("x")
        for client in (one, two):
            client.next("message")
        now = before

        def more(name: str) -> float:
            return float(now.value(name) - before.value(name))

        def pass_is_counted() -> bool:
            nonlocal now
            now = scrape(site)
            return more("pgbus_append_to_send_seconds_count") > 0

        until(pass_is_counted, "the pass is counted")
        took = monotonic() - began

        assert more("pgbus_connections") == more("pgbus_connections_opened_total") == 2
        assert (more("pgbus_messages_total"), more("pgbus_sends_total"), more("pgbus_streams")) == (1, 2, 1)
        assert more("pgbus_append_to_send_seconds_count") == 1
        assert 0 < more("pgbus_append_to_send_seconds_sum") < took + 0.1
        assert more("pgbus_ring_bytes") > 0
        assert more("process_open_fds") >= 2
    until(lambda: scrape(site).value("pgbus_connections") == before.value("pgbus_connections"), "the clients have left")
    left = "pgbus_disconnects_total"
    assert scrape(site).value(left) - before.value(left) == 2


def test_ends_refusals_and_gaps_are_counted_by_reason(pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make(), max_connections=1) as site:
        with site.watch("demo:one", Last_Event_ID="nonsense") as client:
            client.next("pgbus:gap-detected")
            with site.watch("demo:one") as refused:
                refused.next("pgbus:shutdown")
            (connection,) = site.instance.registry.clients()
            site.instance.clients.end(connection, "max-age")
            client.next("pgbus:shutdown")
        now = scrape(site)
        assert now.value("pgbus_refusals_total", reason="overloaded") == 1
        assert now.value("pgbus_gaps_total", reason="invalid-cursor") == 1
        assert now.value("pgbus_disconnects_total", reason="max-age") == 1


def test_the_state_of_the_listener_and_of_the_pool_is_shown(site: Site) -> None:
    until(lambda: (now := scrape(site)).value("pgbus_listener_up") == now.value("pgbus_ready") == 1, "it is ready")
    now = scrape(site)
    assert now.value("pgbus_pool_connections_max") == site.instance.database.pool.size
    with site.instance.database.pool.connection():
        assert scrape(site).value("pgbus_pool_connections_in_use") >= 1


def test_reads_are_counted_by_kind(site: Site) -> None:
    with site.watch("demo:reads", "since=0") as client:
        client.next("pgbus:connected")
        assert scrape(site).value("pgbus_read_duration_seconds_count", kind="open") >= 1


def test_connects_and_broadcasts_are_timed(site: Site) -> None:
    before = scrape(site)
    stream = site.bus.stream("demo:timed")
    with site.watch("demo:timed") as client:
        client.next("pgbus:connected")
        stream.broadcast("x")
        site.publish("demo:timed", b"x")
        with site.bus.transaction() as cursor:
            stream.broadcast("x", using=cursor)
    now = scrape(site)

    def more(name: str, **labels: str) -> float:
        return now.value(name, **labels) - before.value(name, **labels)

    assert more("pgbus_connect_duration_seconds_count") == 1
    assert 0 < more("pgbus_connect_duration_seconds_sum") < PATIENCE
    counts = [more("pgbus_publish_duration_seconds_count", kind=kind) for kind in ("now", "on-commit")]
    assert counts == [2, 1]
    assert 0 < more("pgbus_publish_duration_seconds_sum", kind="now") < PATIENCE


@pytest.mark.parametrize("size", [10, 20_000])
def test_messages_without_a_notification_count_for_the_latency(size: int, pgbus_databases: TestDatabases) -> None:
    with running_site(pgbus_databases.make(), wake="poll", catch_up_interval=0.2) as site:
        with site.watch("demo:poll") as client:
            client.next("pgbus:connected")
            began = monotonic()
            site.bus.stream("demo:poll").broadcast("x" * size)
            client.next("message")
            name = "pgbus_append_to_send_seconds"
            until(lambda: scrape(site).value(f"{name}_count") == 1, "the pass is counted")
            took = monotonic() - began
        assert 0 < scrape(site).value(f"{name}_sum") < took + 0.1


def test_the_latency_is_corrected_for_the_clock_of_the_database_and_never_negative(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(ahead: float, appended_at: float) -> tuple[float, float]:
        before = scrape(site)
        monkeypatch.setattr(site.instance.roll_call, "clock_offset", ahead)
        site.instance.events.emit(Passed("demo:clock", 1, 0.01, appended_at))
        now, name = scrape(site), "pgbus_append_to_send_seconds"
        count, total = (now.value(f"{name}_{each}") - before.value(f"{name}_{each}") for each in ("count", "sum"))
        return count, total

    count, seconds = counted(3600.0, time() + 3600.0 - 0.5)
    assert count == 1 and 0.5 <= seconds < PATIENCE
    assert counted(0.0, time() + 3600.0) == (1, 0.0)
    assert counted(0.0, 0.0) == (0, 0.0)  # a row that was written by hand, with a time of 1970


def test_a_stream_or_an_owner_is_never_a_label(site: Site) -> None:
    with site.watch("demo:secret-name") as client:
        client.next("pgbus:connected")
        site.bus.stream("demo:secret-name").broadcast("x")
        client.next("message")
        now = scrape(site)
    labels = {label for sample in now.samples for label in sample.labels}
    assert labels <= {"worker", "reason", "kind", "le", "version"}
    assert "secret-name" not in site.get("/metrics").body.decode()
    assert len(now.samples) < 200


def test_names_have_units_and_counters_end_in_total(site: Site) -> None:
    for line in site.get("/metrics").body.decode().splitlines():
        if line.startswith("# TYPE"):
            _, _, name, type = line.split()
            assert name.endswith("_total") == (type == "counter"), name
            assert name.startswith(("pgbus_", "process_"))
            assert "milli" not in name and (type != "histogram" or name.endswith("_seconds"))


def test_every_sample_names_its_worker(site: Site) -> None:
    assert {sample.labels["worker"] for sample in scrape(site).samples} == {str(os.getpid())}


def test_a_head_answers_without_the_body(site: Site) -> None:
    head = ask(site.port, PATH, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_the_coalescer_has_metrics_if_it_is_used(site: Site) -> None:
    site.bus.stream("demo:coalesced").broadcast("x", coalesce=0.01)
    until(lambda: scrape(site).value("pgbus_coalesced_published_total") >= 1, "it was published")


def test_two_applications_of_one_instance_count_once(site: Site) -> None:
    StreamApp(site.instance)
    assert list(site.instance.tasks).count("roll-call") == 1


# access ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        ({}, {}, 200),
        ({"host": "0.0.0.0"}, {}, 200),
        ({"operator_token": TOKEN}, {}, 401),
        ({"operator_token": TOKEN}, {"Host": "localhost"}, 401),
        ({"operator_token": TOKEN}, {"X_Forwarded_For": "203.0.113.7"}, 401),
        ({"operator_token": TOKEN}, {"Host": "shop.example"}, 401),
        ({"operator_token": TOKEN, "host": "0.0.0.0"}, {}, 401),
        ({"operator_token": TOKEN, "host": "0.0.0.0"}, {"Authorization": "Bearer wrong"}, 401),
        ({"operator_token": TOKEN, "host": "0.0.0.0"}, {"Authorization": f"Bearer {TOKEN}"}, 200),
    ],
)
def test_a_configured_token_is_needed_by_every_client(
    pgbus_database: str, settings: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    with running_site(pgbus_database, **settings) as site:
        assert site.get("/metrics", **headers).status == status


# several workers ------------------------------------------------------------------------------------------------------


def test_any_worker_answers_for_all_workers_of_its_port(pgbus_databases: TestDatabases, tmp_path: Path) -> None:
    url = pgbus_databases.make_empty()
    migrate(url)
    arguments = ["-m", "pgbus_gevent.serve", "--workers", "2"]
    with program(*arguments, database_url=url, cwd=tmp_path) as serving, Bus(url) as bus:

        def workers() -> set[str]:
            return {sample.labels["worker"] for sample in Scrape(serving.get(PATH)).samples}

        until(lambda: len(bus.database.fleet.workers()) == 2, "both are on the roll", pause=0.1)
        both = {str(worker.pid) for worker in bus.database.fleet.workers()}
        # The worker that answers waits only so long for PostgreSQL to tell it of the other one.
        until(lambda: [workers() for _ in range(5)] == [both] * 5, "each answers for both")
        serving.stop()
        cut_off = "roll-call did not stop" in serving.log  # PostgreSQL did not answer in time; the row expires
    with Bus(url) as bus:
        assert bus.database.fleet.workers() == [] or cut_off


@pytest.fixture
def two_hosts(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Beside the site, another worker of it, a worker of another server of its host, and one of another host."""
    monkeypatch.setattr(backstage, "ROLL_TIMEOUT", PATIENCE)
    roll_call, fleet = site.instance.roll_call, site.instance.database.fleet
    here = socket.gethostname()
    samples = packed(site.instance.backstage.metrics.collect())  # type: ignore[attr-defined]
    others = {
        "sibling": (here, 11, roll_call.service),
        "stranger": (here, 12, "x 1 2"),
        "far": ("far.away", 13, "x 1 2"),
    }
    for id, (host, pid, service) in others.items():
        fleet.beat(id, host, pid, 1.0, {"service": service, "samples": samples})
    yield
    for id in others:
        fleet.leave(id)


@pytest.mark.parametrize(
    ("query", "found"),
    [("", {(None, 0), (None, 11)}), ("?hosts=own", {(None, 0), (None, 11)}),
     ("?hosts=all", {("here", 0), ("here", 11), ("here", 12), ("far.away", 13)})],
)  # fmt: skip
def test_a_scrape_is_answered_for_the_own_server_or_for_all_hosts(
    query: str, found: set[tuple[str | None, int]], site: Site, two_hosts: None
) -> None:
    environ = {"QUERY_STRING": query[1:], "wsgi.multiprocess": True, "REQUEST_METHOD": "GET", "HTTP_ACCEPT": ""}
    answer = site.instance.backstage._metrics(environ)  # type: ignore[attr-defined]
    [family] = [each for each in text_string_to_metric_families(answer.body.decode()) if each.name == "pgbus_ready"]
    names = {socket.gethostname(): "here"}
    told = {
        (names.get(host := sample.labels.get("host"), host), int(sample.labels["worker"])) for sample in family.samples
    }
    assert {(host, 0 if pid == os.getpid() else pid) for host, pid in told} == found
    assert len(family.samples) == len(found)


def test_another_value_of_hosts_is_refused(site: Site) -> None:
    answer = site.get("/metrics?hosts=some")
    assert (answer.status, answer.body) == (400, b"hosts is own or all\n")


def test_a_worker_that_cannot_write_its_numbers_still_serves(pgbus_database: str) -> None:
    with Bus(pgbus_database) as bus, bus.transaction() as cursor:
        cursor.execute("drop table pgbus.workers")
    with running_site(pgbus_database) as site:
        gevent.sleep(0.7)
        until(lambda: scrape(site).value("pgbus_ready") == 1, "it is ready")
        assert site.get("/healthz").status == 200


# the format -----------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])), st.floats())
def test_the_parser_reads_every_value_that_is_written(label: str, value: float) -> None:
    if any(c in label for c in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r"):
        return  # the parser takes these for line ends, but the format does not
    text, _ = written([counters("pgbus_x", "x", "name", {label: value})], "")
    (found,) = text_string_to_metric_families(text.decode())
    (sample,) = found.samples
    assert sample.labels == {"name": label}
    assert sample.value == value or value != value


@given(st.lists(st.floats(0, 10)))
def test_a_histogram_counts_each_value_in_its_buckets(values: list[float]) -> None:
    histogram = Histogram((0.1, 1, 5))
    for value in values:
        histogram.observe(value)
    text, _ = written([histograms("pgbus_x_seconds", "x", {(): histogram})], "")
    (family,) = text_string_to_metric_families(text.decode())
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    for bound in ("0.1", "1", "5", "+Inf"):
        (found,) = (count for le, count in buckets.items() if float(le) == float(bound))
        assert found == sum(value <= float(bound) for value in values)


def test_the_families_of_several_workers_come_once_each() -> None:
    one, two = (of_worker([gauge("pgbus_x", "x", 1)], worker) for worker in (1, 2))
    assert [len(family.samples) for family in merged([one, two])] == [2]


def test_packed_metrics_are_unpacked_without_the_unknown_ones() -> None:
    mine = [gauge("pgbus_x", "x", 1), counters("pgbus_y", "y", "kind", {"a": 2})]
    theirs = [*mine, gauge("pgbus_newer", "z", 3)]
    assert [each.samples for each in unpacked(packed(theirs), mine)] == [each.samples for each in mine]
    assert unpacked(None, mine) == []


def test_a_client_that_accepts_openmetrics_gets_it(site: Site) -> None:
    answer = site.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in open_metrics(answer.body.decode())}
    assert {"pgbus", "pgbus_connections", "pgbus_messages", "process_cpu_seconds"} <= names


# cost -----------------------------------------------------------------------------------------------------------------


def test_counting_a_pass_costs_a_few_microseconds() -> None:
    """The pass itself takes at least ten times as long."""
    events = Events()
    instance = Instance(Settings(database_url="postgresql://nowhere/x"), events=events)
    backstage_of(instance)
    signal = events.signal(Passed)
    cost = (
        min(repeat(lambda: signal.emit(Passed("orders", 10, 0.001, 1.0)), number=5000, repeat=5, timer=process_time))
        / 5000
    )
    print(f"counting a pass: {cost * 1e6:.2f} µs")
    assert cost < 20e-6


def test_a_scrape_is_quick(site: Site) -> None:
    took = min(repeat(lambda: site.get("/metrics"), number=1, repeat=5))
    print(f"a scrape: {took * 1e3:.1f} ms")
    assert took < PATIENCE / 40
