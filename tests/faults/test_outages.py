"""Failures of the database that a worker survives: lost sessions, missing notifications, restarts."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import replace
from time import monotonic
from typing import Literal

import gevent
import psycopg2
import pytest
from database_parts import NOTIFY, listen_to_all
from support import connect, get, received, run, serve_process, serving, session, stored, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.database import Database
from pgbus_gevent.database.embedded import EmbeddedPostgres
from pgbus_gevent.errors import DatabaseError
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases

CATCH_UP = 1.0
SLACK = 15.0  # seconds, for a busy machine
KILL_LISTENERS = (
    "select pg_terminate_backend(pid) from pg_stat_activity"
    " where application_name = 'pgbus-listen' and datname = current_database()"
)


def until_all(client: StreamClient, expected: list[tuple[int, str]], timeout: float) -> None:
    try:
        until(lambda: len(client.messages) >= len(expected), f"all {len(expected)} messages arrive", timeout)
    finally:
        assert received(client) == expected


# without notifications


def test_messages_published_while_the_listen_session_is_killed_arrive_within_the_catch_up_interval(
    pgbus_settings: Settings, pgbus_database: str, pgbus_bus: Bus
) -> None:
    with serving(pgbus_settings, catch_up_interval=CATCH_UP) as server, session(pgbus_database) as connection:
        clients = [server.live(f"s:{n}") for n in range(3)]
        for n in range(300):
            pgbus_bus.stream(f"s:{n % 3}").broadcast(str(n))
            if n in (100, 290):
                listener, killed = server.instance.listener, n > 100
                until(lambda: listener.live and listener.reconnects >= killed, "it listens, so that it can be killed")  # noqa: B023
                assert run(connection, KILL_LISTENERS) == [(True,)]
        # Silent from here on, so no later notification leads to the missed message.
        for n, client in enumerate(clients):
            until_all(client, stored(connection, f"s:{n}"), timeout=CATCH_UP + SLACK)
        until(lambda: server.instance.listener.live and server.instance.listener.reconnects >= 2, "it listens again")


def test_messages_whose_notification_never_comes_arrive_within_the_catch_up_interval(
    pgbus_settings: Settings, pgbus_database: str
) -> None:
    with serving(pgbus_settings, catch_up_interval=CATCH_UP) as server, session(pgbus_database) as connection:
        client = server.live("orders")
        # The doorbells' locks are held, so transactions that commit meanwhile do not ring.
        with session(pgbus_database) as holder:
            holder.autocommit = False
            run(holder, "select pg_advisory_xact_lock(1885823596, bell) from generate_series(0, 1) bell")
            for n in range(10):
                run(connection, "select pgbus.broadcast('orders', %s)", str(n))
            until_all(client, stored(connection, "orders"), timeout=CATCH_UP + SLACK)


OLD = '["message","orders",1,0,0,null,"old",null,null]'


@pytest.mark.parametrize("damage", ["not json", "", '["message"]', '["moved","orders"]', OLD])
def test_a_notification_that_is_false_or_broken_costs_nothing(
    damage: str, pgbus_settings: Settings, pgbus_database: str, pgbus_bus: Bus
) -> None:
    with serving(pgbus_settings) as server, session(pgbus_database) as connection:
        orders = pgbus_bus.stream("orders")
        orders.broadcast("before")
        client = server.live("orders")
        run(connection, NOTIFY, "orders", damage)
        orders.broadcast("after")
        assert client.next(timeout=20).data == "after"
        assert client.quiet(0.1)
        assert server.instance.alive


def test_without_listen_messages_arrive_by_polling(pgbus_settings: Settings, pgbus_bus: Bus) -> None:
    with serving(pgbus_settings, wake="poll", catch_up_interval=2.0) as server:
        client = server.live("orders")
        known = [pgbus_bus.stream("orders").broadcast(str(n)) for n in range(50)]
        until(lambda: len(client.messages) == 50, "all arrive")
        assert [int(frame.id or 0) for frame in client.messages] == known


# load


def until_id(client: StreamClient, id: int) -> None:
    until(lambda: client.last_id == str(id), f"message {id} arrives", pause=0.001)


FULL_SPEED = """
do $$
declare ending timestamptz := clock_timestamp() + interval '%s s';
begin
  while clock_timestamp() < ending loop
    perform pgbus.broadcast('%s', clock_timestamp()::text);
    commit;
  end loop;
end $$
"""


def test_64_publishers_at_full_speed_lose_nothing_and_all_is_there_at_once_when_they_stop(
    pgbus_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    streams = [f"load:{n}" for n in range(32)]

    def publish(n: int) -> float:
        with session(pgbus_database) as connection:
            run(connection, FULL_SPEED % (3, streams[n % len(streams)]))
        return monotonic()

    with serve_process(pgbus_database) as server, session(pgbus_database) as connection:
        clients = [connect(server.url, stream) for stream in streams]
        for client in clients:
            client.next("pgbus:connected", timeout=20)
        run(connection, listen_to_all(*run(connection, "select doorbell, control from pgbus.channels()")[0]))
        publishers = [gevent.spawn(publish, n) for n in range(64)]
        gevent.joinall(publishers, raise_error=True, timeout=60)
        stopped = max(publisher.value or 0.0 for publisher in publishers)
        heads = {stream: run(connection, "select pgbus.last_id(%s)", stream)[0][0] for stream in streams}
        for stream, client in zip(streams, clients, strict=True):
            until_id(client, heads[stream])
        late = [client.times[-1] - stopped for client in clients]
        expected = {stream: stored(connection, stream) for stream in streams}
        for stream, client in zip(streams, clients, strict=True):
            assert received(client) == expected[stream]
            client.close()
        total, rung = sum(map(len, expected.values())), len(connection.notifies)
    with capsys.disabled():
        print(
            f"\n64 publishers: {total / 3:.0f} messages/s, {rung / total:.0%} of them rang;"
            f" the last one {max(late) * 1000:.0f} ms after they stopped"
        )
    assert 0 < rung < total
    assert max(late) <= SLACK


# restarts


@pytest.fixture(scope="module")
def own_databases() -> Iterator[TestDatabases]:
    """A PostgreSQL for this module, which its tests may restart."""
    databases = TestDatabases()
    yield databases
    databases.close()


class Retrying:
    """A publisher that tries again until it succeeds, with a key, so that no message is published twice."""

    def __init__(self, bus: Bus, stream: str) -> None:
        self.sent = 0
        self.failures = 0
        self.stopping = False
        self._stream = bus.stream(stream)

    def run(self) -> None:
        while not self.stopping:
            try:
                self._stream.broadcast(str(self.sent), key=f"key-{self.sent}")
            except DatabaseError:
                self.failures += 1
                gevent.sleep(0.02)
            else:
                self.sent += 1
                gevent.sleep(0.002)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_postgresql_loses_nothing_and_drops_nobody(
    mode: Literal["fast", "immediate"], own_databases: TestDatabases, pgbus_settings: Settings
) -> None:
    embedded = own_databases.embedded
    assert isinstance(embedded, EmbeddedPostgres)
    url = own_databases.make()
    settings = replace(pgbus_settings, database_url=url)
    with serving(settings, catch_up_interval=CATCH_UP) as server, Bus(settings=settings) as bus:
        publishers = [Retrying(bus, f"s:{n}") for n in range(2)]
        running = [gevent.spawn(publisher.run) for publisher in publishers]
        clients = [server.live(f"s:{n % 2}", since=0) for n in range(50)]
        until(lambda: all(publisher.sent > 30 for publisher in publishers), "they publish")

        embedded.restart(mode)

        sent = [publisher.sent for publisher in publishers]
        until(lambda: all(p.sent > n + 30 for p, n in zip(publishers, sent, strict=True)), "they publish again")
        until(lambda: server.instance.unready is None, "it is ready again")
        newcomer = server.client("s:0", since=0)
        for publisher in publishers:
            publisher.stopping = True
        gevent.joinall(running, raise_error=True, timeout=20)
        with session(url) as connection:
            for n in range(2):
                expected = stored(connection, f"s:{n}")
                assert [data for _, data in expected] == [str(number) for number in range(publishers[n].sent)]
                for client in clients[n::2] + [newcomer][n:]:
                    until_all(client, expected, timeout=CATCH_UP + 2 * SLACK)
        assert sum(publisher.failures for publisher in publishers) > 0, "the restart was noticed"
        assert not any(client.closed for client in clients)
        assert server.instance.alive


def test_while_the_database_is_away_readyz_says_so_and_new_clients_are_sent_away(
    own_databases: TestDatabases, pgbus_settings: Settings
) -> None:
    embedded = own_databases.embedded
    assert isinstance(embedded, EmbeddedPostgres)
    settings = replace(pgbus_settings, database_url=own_databases.make(), away_after=4.0)
    with serving(settings) as server:
        client = server.live("orders")
        with refusing_connections(settings.database_url or ""):
            until(lambda: get(server.url, "/pgbus/readyz").status == 503, "readyz says so")
            assert get(server.url, "/pgbus/healthz").status == 200
            assert b"unavailable" in get(server.url, "/pgbus/readyz").body
            answer = get(server.url, "/pgbus/streams/orders", Accept="text/event-stream")
            assert answer.status == 200 and b'data: {"reason":"unavailable"}' in answer.body
            assert get(server.url, "/pgbus/streams/orders").status == 503
        until(lambda: get(server.url, "/pgbus/readyz").status == 200, "it is ready again")
        with Bus(settings=settings) as bus:
            bus.stream("orders").broadcast("after the outage")
        assert client.next(timeout=20).data == "after the outage"


def test_attempts_to_connect_that_fail_leave_no_socket_open_until_some_collection(
    own_databases: TestDatabases, pgbus_settings: Settings
) -> None:
    settings = replace(pgbus_settings, database_url=own_databases.make())
    with refusing_connections(settings.database_url or ""):
        gc.collect()
        gc.disable()
        try:
            before = len(os.listdir("/proc/self/fd"))
            failures = []
            for _ in range(5):
                with pytest.raises(DatabaseError) as failure:
                    Database(settings).queries.ping()
                failures.append(failure.value)
            assert len(os.listdir("/proc/self/fd")) <= before
        finally:
            gc.enable()


class refusing_connections:
    """For this block, the database ends all its sessions and accepts no new ones."""

    def __init__(self, url: str) -> None:
        parsed = psycopg2.extensions.parse_dsn(url)
        self._name = parsed["dbname"]
        self._admin = psycopg2.extensions.make_dsn(url, dbname="postgres")

    def _allow(self, allowed: bool) -> None:
        with session(self._admin) as connection:
            run(connection, f'alter database "{self._name}" allow_connections {str(allowed).lower()}')
            run(connection, "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", self._name)

    def __enter__(self) -> None:
        self._allow(False)

    def __exit__(self, *_: object) -> None:
        self._allow(True)
