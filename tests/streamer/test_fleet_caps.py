"""Caps over all workers: several real workers, with their own servers, on one database."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from streamer_parts import Parts, make_board
from support import PATIENCE, Serving, holds, run, serving, session, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.fleet_counts import FleetCounts, Report, Sum
from pgbus_gevent.errors import DatabaseUnavailable
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import instance
from pgbus_gevent.streamer.clients import Clients
from pgbus_gevent.streamer.fleet_caps import FleetCaps
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.streamer.limits import Limits
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.web.stream_app import StreamApp

Serve = Callable[..., Serving]
CAP = 4


def app(instance: Instance) -> StreamApp:
    """Return an application whose authorize hook believes the headers of a request."""
    instance.fleet_caps.interval = 0.1
    instance.fleet_caps.pause = 0.1
    return StreamApp(instance, authorize=lambda environ, stream: Subscriber(owner=environ.get("HTTP_X_OWNER")))


@pytest.fixture
def serve(pgbus_settings: Settings) -> Iterator[Serve]:
    """Starts workers, which share a database."""
    with ExitStack() as stack:

        def one(**changes: Any) -> Serving:
            return stack.enter_context(serving(pgbus_settings, app=app, **{"max_per_owner": CAP, **changes}))

        yield one


def come(worker: Serving, owner: str = "ada") -> StreamClient:
    return worker.client("orders", headers={"X-Owner": owner})


def reason(client: StreamClient) -> str | None:
    """Return why a client was refused or sent away; None if it is served."""
    until(lambda: bool(client.frames), "it is answered")
    ended = [frame for frame in client.frames if frame.event == "pgbus:shutdown"]
    return str(ended[0].data) if ended else None


def served(*clients: StreamClient) -> list[StreamClient]:
    return [client for client in clients if not client.closed]


def elsewhere(worker: Serving, kind: str = "owner", text: str = "ada") -> int:
    return worker.instance.clients._elsewhere.elsewhere(kind, text)


def test_a_connection_is_refused_if_the_other_workers_have_the_rest_of_the_cap(serve: Serve) -> None:
    one, two, three = serve(), serve(), serve()
    first = [come(one), come(one), come(two)]
    until(lambda: elsewhere(three) == 3, "the third worker knows")
    last = come(three)
    assert reason(last) is None
    assert "too-many-connections" in (reason(come(three)) or "")
    until(lambda: elsewhere(one) == 2 and elsewhere(two) == 3, "they know of it")
    for worker in (one, two, three):
        assert "too-many-connections" in (reason(come(worker)) or "")
    assert reason(come(one, "bob")) is None

    first[2].close()
    until(lambda: elsewhere(three) == 2, "a place is free")
    assert reason(come(three)) is None
    assert served(first[0], first[1], last) == [first[0], first[1], last]


def test_addresses_have_their_cap_over_all_workers_too(serve: Serve) -> None:
    one, two = (serve(max_per_owner=0, max_per_address=2) for _ in range(2))
    come(one)
    come(two)
    until(lambda: elsewhere(one, "address", "127.0.0.1") == 1, "the first worker knows")
    assert "too-many-connections" in (reason(come(one)) or "")


def test_after_a_burst_at_all_workers_the_newest_above_the_cap_are_sent_away(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [serve() for _ in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(FleetCaps, "report", lambda self: None)  # the burst is over before anybody reports
        clients = [[worker.live("orders", headers={"X-Owner": "ada"}) for _ in range(CAP - 1)] for worker in workers]
        bob = [come(worker, "bob") for worker in workers]
        assert all(reason(client) is None for client in bob)
    everybody = [client for theirs in clients for client in theirs]
    until(lambda: len(served(*everybody)) == CAP, "as many as the cap remain", timeout=20)
    gevent.sleep(1.0)  # some further sums
    assert len(served(*everybody)) == CAP and len(served(*bob)) == 3
    for theirs in clients:
        assert [client.closed for client in theirs] == sorted(client.closed for client in theirs)  # the newest went
    for client in everybody:
        if client.closed:
            assert "too-many-connections" in (reason(client) or "")
            assert b"retry: " in client.raw


def test_a_burst_at_all_workers_is_over_soon_though_reports_are_rare(serve: Serve, pgbus_database: str) -> None:
    workers = [serve(max_per_owner=3) for _ in range(4)]
    for worker in workers:  # so rare that no report comes in time which the burst has not caused
        worker.instance.fleet_caps.interval, worker.instance.fleet_caps.pause = 600.0, 600.0
    with session(pgbus_database) as connection:
        until(lambda: len(run(connection, "select worker from pgbus.cap_reports")) == 4, "the first reports")
    clients = [come(workers[n % 4]) for n in range(12)]
    for client in clients:  # otherwise the first three of them could be taken for the three that remain
        until(lambda client=client: bool(client.frames), "it is answered")
    until(lambda: sum(len(worker.instance.clients._registry) for worker in workers) == 3, "the cap")
    until(lambda: len(served(*clients)) == 3, "the others see that they are closed")
    holds(lambda: len(served(*clients)) == 3, "three are served", 0.5)


def test_clients_of_a_worker_that_stops_find_room_at_another(
    serve: Serve, pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "_STOP_TIMEOUT", PATIENCE)  # it takes its report back, however slow the database is
    stops, stays = serve(), serve()
    for _ in range(CAP):
        come(stops)
    until(lambda: elsewhere(stays) == CAP, "the other worker knows")
    stops.instance.shutdown(timeout=PATIENCE)
    with session(pgbus_database) as connection:
        assert len(run(connection, "select worker from pgbus.cap_reports")) == 1
    until(lambda: elsewhere(stays) == 0, "it knows that they are gone")
    assert reason(come(stays)) is None


def test_the_report_of_a_worker_that_was_killed_expires(serve: Serve, pgbus_database: str) -> None:
    worker = serve()
    key = worker.instance.clients._elsewhere._key(("owner", "ada"))
    with session(pgbus_database) as connection:  # stands for a worker that is not heard of again
        until(lambda: run(connection, "select worker from pgbus.cap_reports"), "the worker reports")
        run(
            connection,
            "insert into pgbus.cap_reports (worker, seen_at, keys, counts, caps)"
            " values ('ghost', clock_timestamp(), array[%s::bigint], '{4}', '{4}')",
            key,
        )
        until(lambda: elsewhere(worker) == CAP, "it counts")
        # Not before: its time must not be over before it has counted.
        run(connection, "update pgbus.cap_reports set seen_at = seen_at - interval '12 seconds' where worker = 'ghost'")
    until(lambda: elsewhere(worker) == 0, "it does not count any more")
    assert reason(come(worker)) is None


def test_a_recheck_that_finds_the_same_owner_is_no_change() -> None:
    with Parts() as parts:
        counts = FleetCounts()
        clients = Clients(parts.board, limits=Limits(100, per_owner=3), elsewhere=counts)
        client = parts.connect()
        clients.adopt(client, [Subscriber(owner="ada")])
        assert not counts.settled
        for at in (1.0, 2.0):
            counts.learn(counts.report(clients.counts(), workers=1), Sum(at, at, {}, {}))
        assert counts.settled
        clients.adopt(client, [Subscriber(owner="ada", context="newer")])
        assert counts.settled
        clients.adopt(client, [Subscriber(owner="bob")])
        assert not counts.settled


def test_a_refusal_for_the_sake_of_others_has_the_worker_ask_them() -> None:
    with Parts() as parts:
        counts = FleetCounts()
        clients = Clients(parts.board, limits=Limits(100, per_owner=3), elsewhere=counts)
        counts.learn(Report([], [], []), Sum(1.0, 1.0, {counts._key(("owner", "ada")): 3}, {}))
        assert counts.settled and clients.refusal("ada") == "too-many-connections"
        assert not counts.settled


def test_one_that_is_above_the_caps_of_owner_and_address_is_sent_away_once() -> None:
    with Parts() as parts:
        clients = Clients(parts.board, limits=Limits(100))
        several = [parts.connect() for _ in range(4)]
        for client in several:
            client.owner, client.address = "ada", "10.0.0.1"
            clients._count(client, 1)
            parts.board.counter.connected(["orders"])
        part = FleetCaps(Away(), parts.board, clients, FleetCounts())
        part.end_newest({("owner", "ada"): 3, ("address", "10.0.0.1"): 2})
        assert [client.closed for client in several] == [False, False, True, True]
        assert not any(client.aborted for client in several)


def test_without_caps_nothing_is_reported(serve: Serve, pgbus_database: str) -> None:
    worker = serve(max_per_owner=0)
    assert "caps" not in worker.instance.tasks


class Away:
    """A database that is away while ``away`` is set."""

    def __init__(self) -> None:
        self.away = False
        self.counts = FleetCounts()

    def report(self, worker: str, report: Report, *, pause: float) -> Sum:
        if self.away:
            raise DatabaseUnavailable("away")
        return Sum(1.0, 1.0, {self.counts._key(("owner", "ada")): 3}, {})

    def leave(self, worker: str) -> None:
        raise AssertionError("a worker that cannot report does not say goodbye")


def test_during_an_outage_each_worker_goes_by_its_own_counts(pgbus_bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    source, clients = Away(), Instance(pgbus_bus.settings).clients
    part = FleetCaps(source, make_board(), clients, source.counts, interval=0.01)
    job = gevent.spawn(part.run)
    try:
        until(lambda: source.counts.elsewhere("owner", "ada") == 3, "it knows")
        source.away = True
        until(lambda: source.counts.elsewhere("owner", "ada") == 0, "it has forgotten")
        until(lambda: "caps hold on this worker alone" in caplog.text, "it says so")
        source.away = False
        with caplog.at_level(logging.INFO):
            until(lambda: "caps hold over all workers" in caplog.text, "it says so")
        assert source.counts.elsewhere("owner", "ada") == 3
        source.away = True
        until(lambda: source.counts.elsewhere("owner", "ada") == 0, "it has forgotten again")
    finally:
        job.kill()
    assert caplog.text.count("caps hold on this worker alone") == 2
