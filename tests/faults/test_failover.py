"""A worker and its clients during a crash that loses commits, and during a failover to a standby that lacks the last ones."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from support import (
    Serving,
    gaps,
    last,
    reasons,
    received,
    run,
    serving,
    session,
    since_the_gap,
    stored,
    until,
)
from ways import Address, HAProxy, PgBouncer, SessionPgBouncer, Way, cut_off, kill_server, standby

from pgbus_gevent.bus import Bus
from pgbus_gevent.errors import DatabaseError
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases

PATIENCE = 60.0


@pytest.fixture
def primary() -> Iterator[TestDatabases]:
    """A PostgreSQL for one test, which may kill it."""
    databases = TestDatabases()
    yield databases
    databases.close()


def publish(bus: Bus, data: str) -> int:
    """Publish as soon as the database accepts it again."""
    found: list[int] = []

    def tried() -> bool:
        try:
            found.append(bus.stream("orders").broadcast(data))
        except DatabaseError:
            return False
        return True

    until(tried, "the database takes a message", PATIENCE)
    return found[0]


def check(server: Serving, bus: Bus, url: str, clients: list[StreamClient], sent: list[tuple[int, str]]) -> None:
    """Clients that were sent a lost message have a gap event, and all clients have all messages that exist."""
    assert publish(bus, "new") > sent[-1][0], "an id that somebody has seen is not given again"
    newcomers = [server.client("orders", since=0), server.client("orders", since=sent[-1][0])]
    with session(url) as connection:
        kept = stored(connection, "orders")
    lost = [message for message in sent if message not in kept]
    assert lost, "nothing was lost, so nothing was tested"
    for client in [*clients, *newcomers]:
        until(lambda client=client: last(client) == "new", "it goes on", PATIENCE)
    for client in [*clients, newcomers[1]]:
        assert reasons(client) == ["ahead"]
        assert gaps(client)[0]["requestedId"] == sent[-1][0]
        assert since_the_gap(client) == kept
    assert received(newcomers[0]) == kept
    assert not any(client.closed for client in clients)


def lives(server: Serving) -> bool:
    return server.instance.listener.live and server.instance.unready is None


def test_a_crash_that_takes_commits_along_is_noticed(primary: TestDatabases, pgbus_settings: Settings) -> None:
    with session(primary.url) as admin:
        for setting in ("synchronous_commit = off", "wal_writer_delay = '10s'"):
            run(admin, f"alter system set {setting}")
        run(admin, "select pg_reload_conf()")
    url = primary.make()
    settings = replace(pgbus_settings, database_url=url)
    with serving(settings, catch_up_interval=60.0) as server, Bus(settings=settings) as bus:
        clients = [server.live("orders"), server.live("orders")]
        for n in range(5):
            publish(bus, f"kept {n}")
        with session(url) as connection:
            run(connection, "checkpoint")
            [(writer,)] = run(connection, "select pid from pg_stat_activity where backend_type = 'walwriter'")
            os.kill(writer, signal.SIGSTOP)  # so that it does not happen to write the commits now
            try:
                for n in range(300):
                    run(connection, "select pgbus.broadcast('orders', %s)", str(n))
                for client in clients:
                    until(lambda client=client: last(client) == "299", "it gets all")
                sent = received(clients[0])
            finally:
                os.kill(writer, signal.SIGKILL)
        until(lambda: server.instance.listener.reconnects and lives(server), "it is back", PATIENCE)
        check(server, bus, url, clients, sent)


@pytest.mark.parametrize("kind", [Address, HAProxy, PgBouncer, SessionPgBouncer])
def test_a_standby_that_takes_over_without_the_last_commits_is_noticed(
    kind: Callable[[str, str], Way], primary: TestDatabases, pgbus_settings: Settings
) -> None:
    url = primary.make()
    with (
        standby(url) as other,
        way_to(kind, url, other) as way,
        serving(replace(pgbus_settings, database_url=way.url), catch_up_interval=20.0) as server,
        Bus(settings=server.instance.settings) as bus,
        session(other) as on_standby,
    ):
        clients = [server.live("orders"), server.live("orders")]
        for n in range(5):
            publish(bus, f"kept {n}")
        until(lambda: len(stored(on_standby, "orders")) == 5, "the standby has them")
        cut_off(on_standby)
        for n in range(20):
            publish(bus, str(n))
        for client in clients:
            until(lambda client=client: last(client) == "19", "it gets all")
        way.lead_to(other)
        sent = received(clients[0])
        kill_server(url)
        run(on_standby, "select pg_promote()")
        if kind is PgBouncer:
            # No session of the worker has ended, so only a sweep can notice.
            until(lambda: all(map(reasons, clients)), "it is noticed", PATIENCE)
        check(server, bus, other, clients, sent)
        until(lambda: server.instance.unready is None, "it is ready", PATIENCE)
        deaf = kind is PgBouncer
        until(lambda: bool(server.instance.listener.deaf if deaf else server.instance.listener.live), "it listens")


@contextmanager
def way_to(kind: Callable[[str, str], Way], url: str, other: str) -> Iterator[Way]:
    way = kind(url, other)
    try:
        yield way
    finally:
        way.stop()
