"""While the database is away for a moment, no client is refused. A longer absence, or a mute server, is noticed."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import gevent
import psycopg2.extensions as ext
import pytest
from database_parts import Proxy
from support import PATIENCE, connect, get, holds, run, session, until
from support import serving as plain_serving

from pgbus_gevent import streamer
from pgbus_gevent.bus import Bus
from pgbus_gevent.database import green, patience, pool
from pgbus_gevent.database.connect import connect as connect_to
from pgbus_gevent.database.queries import Queries
from pgbus_gevent.errors import DatabaseUnavailable
from pgbus_gevent.hosts.pywsgi import Server, listen
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import pulse
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.web.stream_app import StreamApp

KILL_LISTENERS = (
    "select pg_terminate_backend(pid) from pg_stat_activity"
    " where application_name = 'pgbus-listen' and datname = current_database()"
)


@pytest.fixture
def proxy(pgbus_database: str) -> Iterator[Proxy]:
    found = Proxy(pgbus_database)
    yield found
    found.stop()


@contextmanager
def refusing(url: str) -> Iterator[None]:
    """For this block, the database ends all its sessions and accepts no new ones."""
    name = ext.parse_dsn(url)["dbname"]

    def allow(allowed: bool) -> None:
        with session(str(ext.make_dsn(url, dbname="postgres"))) as admin:
            run(admin, f'alter database "{name}" allow_connections {str(allowed).lower()}')
            run(admin, "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", name)

    allow(False)
    try:
        yield
    finally:
        allow(True)


# a short absence


def test_a_newcomer_is_served_at_once_although_the_listen_session_was_lost_and_cannot_be_had_again(
    pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # If it waited for its session, a newcomer would have to wait for a minute.
    with (
        plain_serving(pgbus_settings, catch_up_interval=1.0, away_after=60.0) as server,
        session(pgbus_database) as connection,
    ):

        def refused() -> None:
            raise DatabaseUnavailable("no LISTEN today")

        monkeypatch.setattr(server.instance.database, "listen", refused)
        assert run(connection, KILL_LISTENERS) == [(True,)]
        until(lambda: not server.instance.listener.live, "the loss is noticed")
        client = server.live("orders")
        until(lambda: get(server.url, "/pgbus/readyz").status == 200, "it is ready")
        pgbus_bus.stream("orders").broadcast("found by a sweep")
        assert client.next(timeout=PATIENCE).data == "found by a sweep"


def test_messages_are_looked_for_ten_times_as_often_without_listen(pgbus_settings: Settings, pgbus_bus: Bus) -> None:
    with plain_serving(pgbus_settings, wake="poll", catch_up_interval=60.0) as server:
        client = server.live("orders")
        for n in range(2):  # the first message may come with the look at a newcomer's start
            pgbus_bus.stream("orders").broadcast(str(n))
            assert client.next(timeout=20).data == str(n)


def test_a_client_that_comes_while_the_database_is_away_for_a_moment_waits_and_is_served(
    pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str
) -> None:
    id = pgbus_bus.stream("orders").broadcast("before")
    pgbus_bus.close()
    with plain_serving(pgbus_settings, away_after=60.0) as server:
        server.live("other")
        with refusing(pgbus_database):
            clients = [server.client(f"new:{n}") for n in range(20)] + [server.client("orders", since=id - 1)]
            holds(lambda: not any(client.closed for client in clients), "they wait", 0.7)
            assert not any(client.frames for client in clients)
        for client in clients:
            client.next("pgbus:connected", timeout=PATIENCE)
        assert clients[-1].next(timeout=PATIENCE).data == "before"


def test_clients_that_wait_for_the_database_count_as_connections(pgbus_settings: Settings, pgbus_database: str) -> None:
    with plain_serving(pgbus_settings, max_connections=3, away_after=60.0) as server, refusing(pgbus_database):
        waiting = [server.client(f"new:{n}") for n in range(3)]
        until(lambda: len(server.instance.registry) == 3, "they wait")
        answer = get(server.url, "/pgbus/streams/orders", Accept="text/event-stream")
        assert b'data: {"reason":"overloaded"}' in answer.body
        assert not any(client.closed for client in waiting)


def test_a_client_that_waited_longer_than_the_setting_is_refused_and_served_after_the_return(
    pgbus_settings: Settings, pgbus_database: str
) -> None:
    with plain_serving(pgbus_settings, away_after=3.0) as server:
        with refusing(pgbus_database):
            early = server.client("orders")
            early.wait_closed(PATIENCE)
            assert early.frames[-1].event == "pgbus:shutdown" and "unavailable" in early.frames[-1].data
            taken = server.instance.counter.total.total_connections
            late = server.client("orders")
            late.wait_closed(PATIENCE)
            assert "unavailable" in late.frames[-1].data
            assert server.instance.counter.total.total_connections == taken, "it is refused at once"
            assert get(server.url, "/pgbus/healthz").status == 200
        until(lambda: get(server.url, "/pgbus/readyz").status == 200, "it is ready again")
        server.live("orders")


def test_a_server_that_starts_while_the_database_is_away_serves_once_it_is_there(
    pgbus_settings: Settings, pgbus_database: str
) -> None:
    settings = replace(pgbus_settings, migrate=False, connect_timeout=2.0, away_after=60.0)
    with refusing(pgbus_database), plain_serving(settings) as server:
        client = server.client("orders")
        holds(lambda: not client.closed, "it waits", 0.5)
        assert get(server.url, "/pgbus/readyz").status == 503
        with session(str(ext.make_dsn(pgbus_database, dbname="postgres"))) as admin:
            name = ext.parse_dsn(pgbus_database)["dbname"]
            run(admin, f'alter database "{name}" allow_connections true')
        client.next("pgbus:connected", timeout=PATIENCE)


# signs of life


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets deadlines to a fifth of the real ones."""
    monkeypatch.setattr(patience, "LIFE", 0.6)
    monkeypatch.setattr(pool, "LIFE", 0.6)
    monkeypatch.setattr("pgbus_gevent.database.notifications.LIFE", 0.6)
    monkeypatch.setattr("pgbus_gevent.database.queries.READ", 1.0)
    monkeypatch.setattr(pool, "DOUBT", 0.4)
    monkeypatch.setattr(pulse, "INTERVAL", 0.4)
    monkeypatch.setattr(pulse, "UNREADY_AFTER", 0.8)
    monkeypatch.setattr("pgbus_gevent.streamer.listener.PING_INTERVAL", 0.4)


@pytest.mark.usefixtures("quick")
def test_a_database_that_stops_answering_is_noticed_and_one_that_answers_new_sessions_is_used(
    pgbus_settings: Settings, pgbus_database: str, proxy: Proxy
) -> None:
    settings = replace(pgbus_settings, database_url=proxy.url, connect_timeout=1.0, catch_up_interval=1.0)
    with plain_serving(settings) as server, session(pgbus_database) as connection:
        client = server.live("orders")
        proxy.dead = True
        until(lambda: get(server.url, "/pgbus/readyz").status == 503, "it is noticed")
        assert get(server.url, "/pgbus/healthz").status == 200
        run(connection, "select pgbus.broadcast('orders', 'meanwhile')")
        proxy.dead = False  # the old sessions have lost bytes and stay mute
        # Earlier than by the statement timeout of half a minute.
        assert client.next(timeout=PATIENCE).data == "meanwhile"
        until(lambda: get(server.url, "/pgbus/readyz").status == 200, "it is ready again")


@pytest.mark.usefixtures("quick")
def test_statements_of_the_statement_timeout_end_with_the_session_that_was_found_dead(
    pgbus_settings: Settings, pgbus_database: str, proxy: Proxy
) -> None:
    # All connections of the pool run statements that may take half a minute.
    settings = replace(pgbus_settings, database_url=proxy.url, pool_size=2, connect_timeout=1.0)
    with plain_serving(settings) as server, session(pgbus_database) as connection:
        server.live("orders")
        queries = server.instance.database.queries
        asked = [gevent.spawn(queries._all, "select pg_sleep(60)") for _ in range(2)]
        running = (
            "select pid from pg_stat_activity where query = 'select pg_sleep(60)' and datname = current_database()"
        )
        until(lambda: len(run(connection, running)) == 2, "both run")
        proxy.dead = True
        gevent.joinall(asked, timeout=PATIENCE)
        assert [type(one.exception) for one in asked] == [DatabaseUnavailable] * 2
        run(connection, f"select pg_terminate_backend(pid) from ({running}) asked")
        proxy.dead = False
        until(lambda: get(server.url, "/pgbus/readyz").status == 200, "it is ready again")
        server.live("new")


def test_a_read_that_takes_long_on_a_database_that_answers_is_not_cut_off_for_ever(
    pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    green.install()
    monkeypatch.setattr("pgbus_gevent.database.queries.READ", 0.2)
    opened = pool.Pool(
        lambda: connect_to(pgbus_database, application_name="x", connect_timeout=5.0, statement_timeout=20.0),
        size=3,
        timeout=5.0,
    )
    queries = Queries(opened)
    beating = gevent.spawn(lambda: [(queries.ping(), gevent.sleep(0.05)) for _ in range(1000)])
    tries = 0
    try:
        with session(pgbus_database) as holder:
            while True:
                tries += 1
                assert tries < 8
                # The read takes 0.7 seconds, or longer on a busy machine, but never less.
                run(holder, "select pg_advisory_lock(7)")
                releasing = gevent.spawn_later(0.7, run, holder, "select pg_advisory_unlock(7)")
                try:
                    queries._all("select pg_advisory_xact_lock(7)", read="pages")
                    break
                except DatabaseUnavailable:
                    pass
                finally:
                    releasing.join()
        assert tries > 2
        assert queries._reading["pages"].seconds == 0.2, "the next one is waited for as before"
    finally:
        beating.kill()
        opened.close()


# the schema


def test_a_server_is_not_ready_while_the_schema_is_missing(
    pgbus_settings: Settings, pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "SCHEMA_INTERVAL", 0.2)
    with plain_serving(pgbus_settings) as server, session(pgbus_database) as connection:
        server.live("orders")
        until(lambda: get(server.url, "/pgbus/readyz").status == 200, "it is ready")
        run(connection, "alter schema pgbus rename to elsewhere")
        until(lambda: "schema" in unready_detail(server.url), "it is noticed")
        refused = connect(server.url, "orders")
        refused.wait_closed(PATIENCE)
        assert "unavailable" in refused.frames[-1].data
        run(connection, "alter schema elsewhere rename to pgbus")
        until(lambda: get(server.url, "/pgbus/readyz").status == 200, "it is ready again")


def unready_detail(url: str) -> str:
    """Return why a server says that it is not ready; empty if it is ready."""
    answer = get(url, "/pgbus/readyz")
    told = json.loads(answer.body)
    assert (answer.status == 503) == (told.get("reason") == "unavailable")
    return str(told.get("detail", ""))


@pytest.mark.parametrize("what", ["usage on schema pgbus", "select on pgbus.messages"])
def test_a_server_is_not_ready_while_its_role_may_not_read(
    what: str, pgbus_settings: Settings, pgbus_database: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "SCHEMA_INTERVAL", 0.2)
    url = str(ext.make_dsn(pgbus_database, user=role))
    with plain_serving(replace(pgbus_settings, database_url=url, migrate=False)) as server:
        server.live("orders")
        with session(pgbus_database) as connection:
            run(connection, f"revoke {what} from {role}")
            until(lambda: "the log says why" in unready_detail(server.url), "it is noticed")
            run(connection, f"grant {what} to {role}")
        until(lambda: get(server.url, "/pgbus/readyz").status == 200, "it is ready again")
        server.live("orders")


@pytest.fixture
def role(pgbus_database: str) -> Iterator[str]:
    """An Instance that may serve."""
    name = f"pgbus_test_server_{os.getpid()}"
    with session(pgbus_database) as connection:
        run(connection, f"create role {name} login")
        run(connection, f"select pgbus.grant_server('{name}')")
        yield name
        run(connection, "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", name)
        run(connection, f"drop owned by {name}")
        run(connection, f"drop role {name}")


# the first start


@pytest.fixture
def mute() -> Iterator[str]:
    """The URL of a server that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"postgresql://u@127.0.0.1:{server.getsockname()[1]}/d"


@pytest.mark.slow
def test_healthz_never_waits_for_the_first_start_and_requests_share_one_attempt(
    mute: str, caplog: pytest.LogCaptureFixture
) -> None:
    instance = Instance(Settings(database_url=mute, secret="x" * 16, connect_timeout=8.0, public=("*",)))
    with server_of(StreamApp(instance)) as url:
        for _ in range(3):
            answer = get(url, "/pgbus/healthz")
            assert answer.status == 200 and b"starting" in answer.body
        assert "the streamer cannot start" not in caplog.text, "the attempt is under way"
        # One after the other they would take 48 seconds.
        asked = [gevent.spawn(get, url, "/pgbus/readyz", timeout=30) for _ in range(6)]
        gevent.joinall(asked, timeout=30, raise_error=True)
        assert {one.value.status for one in asked if one.value} == {503} and all(one.value for one in asked)
        until(lambda: "the streamer cannot start" in caplog.text, "the attempt has failed")
        assert caplog.text.count("the streamer cannot start") == 1
    instance.shutdown(1.0)


@pytest.mark.slow
def test_callers_of_current_share_one_attempt_and_a_pause_after_it(mute: str) -> None:
    def ask() -> None:
        with pytest.raises(DatabaseUnavailable):
            streamer.current(database_url=mute, secret="x" * 16, connect_timeout=1.0)

    asking = [gevent.spawn(ask) for _ in range(30)]
    gevent.joinall(asking, timeout=15, raise_error=True)
    assert all(one.ready() for one in asking), "one after the other they would take half a minute"
    ask()
    streamer.reset()


def test_a_stream_waits_for_a_first_start_that_fails_for_a_moment(
    pgbus_settings: Settings, pgbus_database: str
) -> None:
    instance = Instance(replace(pgbus_settings, public=("*",), away_after=60.0))
    with server_of(StreamApp(instance)) as url:
        with refusing(pgbus_database):
            client = connect(url, "orders")
            holds(lambda: not client.closed, "it waits", 0.5)
        client.next("pgbus:connected", timeout=PATIENCE)
        client.close()
    instance.shutdown(1.0)


@contextmanager
def server_of(app: StreamApp) -> Iterator[str]:
    server = Server(listen("127.0.0.1", 0), app)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.stop(1)
