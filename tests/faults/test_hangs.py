"""If the database hangs, its path is cut or swallows all bytes, or the server is stopped, no message is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from typing import Any
from urllib.parse import unquote

import gevent
import gevent.socket
import psycopg2.extensions as ext
import pytest
from gevent.server import StreamServer
from support import connect, holds, received, run, serve_process, serving, session, stored, until, until_messages

from pgbus_gevent.bus import Bus
from pgbus_gevent.database import green, notifications
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import listener as listener_module

CATCH_UP = 0.5


def sessions_of(connection: Any, name: str) -> list[int]:
    """Return the process ids of this database's sessions with an application name."""
    statement = "select pid from pg_stat_activity where datname = current_database() and application_name like %s"
    return [pid for (pid,) in run(connection, statement, name)]


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Suspend these processes (SIGSTOP) for this block."""
    assert pids
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
    except (PermissionError, ProcessLookupError):
        pytest.skip("the server runs elsewhere, or as another user")
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_messages_arrive_although_the_listen_session_hangs(
    pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "LIFE", 60.0)  # so that no new session finds them
    with serving(pgbus_settings, catch_up_interval=CATCH_UP) as server, session(pgbus_database) as connection:
        client = server.live("orders")
        with stopped(sessions_of(connection, "pgbus-listen")):
            for n in range(20):
                pgbus_bus.stream("orders").broadcast(str(n))
            until(lambda: len(client.messages) == 20, "they are found by looking")
        pgbus_bus.stream("orders").broadcast("last")
        until(lambda: len(client.messages) == 21, "and once it goes on")
        assert received(client) == stored(connection, "orders")


def test_a_database_that_hangs_for_a_while_loses_nothing_and_drops_nobody(
    pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str
) -> None:
    with serving(pgbus_settings, catch_up_interval=CATCH_UP, ring_messages=4) as server:
        clients = [server.live("orders") for _ in range(5)]
        pgbus_bus.stream("orders").broadcast_many([str(n) for n in range(50)])
        until(lambda: all(len(client.messages) == 50 for client in clients), "they have the first")
        with session(pgbus_database) as connection:
            pids = sessions_of(connection, "pgbus-%")
            with stopped(pids):
                run(connection, "select pgbus.broadcast('orders', 'meanwhile')")
                late = server.client("orders", since=0)
                holds(lambda: not any(client.closed for client in clients), "all are connected", 2 * CATCH_UP)
            expected = stored(connection, "orders")
        for client in (*clients, late):
            until_messages(client, 51)
            assert received(client) == expected


def test_a_server_ends_within_its_grace_although_the_database_hangs(pgbus_database: str) -> None:
    with serve_process(pgbus_database, "--grace", "3") as server, session(pgbus_database) as connection:
        clients = [connect(server.url, f"s:{n}") for n in range(5)]
        for client in clients:
            client.next("pgbus:connected", timeout=20)
        with stopped(sessions_of(connection, "pgbus-%")):
            waiting = connect(server.url, "another")
            began = monotonic()
            server.signal()
            assert server.wait(30) == 0
            assert monotonic() - began < 15.0
        for client in (*clients, waiting):
            client.wait_closed(20)
            assert client.frames[-1].event == "pgbus:shutdown"


def test_a_server_that_was_suspended_delivers_the_messages_of_that_time(pgbus_database: str, pgbus_bus: Bus) -> None:
    with serve_process(pgbus_database) as server, session(pgbus_database) as connection:
        client = connect(server.url, "orders")
        client.next("pgbus:connected", timeout=20)
        server.signal(signal.SIGSTOP)
        pgbus_bus.stream("orders").broadcast_many([str(n) for n in range(3000)])
        for n in range(200):
            pgbus_bus.stream("orders").broadcast(str(n))
        server.signal(signal.SIGCONT)
        until_messages(client, 3200)
        assert received(client) == stored(connection, "orders")
        client.close()


def test_a_look_for_new_messages_that_hung_does_not_put_off_the_next_one(
    pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str
) -> None:
    # Without LISTEN, a sweep comes after a tenth of the interval.
    with serving(pgbus_settings, wake="poll", catch_up_interval=3.0) as server, session(pgbus_database) as connection:
        client = server.live("orders")
        connection.autocommit = False
        run(connection, "lock table pgbus.messages in access exclusive mode")
        # Within a transaction, pg_stat_activity keeps showing the sessions of its first use.
        waiting = "select 1 from pg_locks where not granted and relation = 'pgbus.messages'::regclass"
        until(lambda: run(connection, waiting), "it hangs")
        holds(lambda: not client.closed, "it is connected", 4.0)
        run(connection, "select pgbus.broadcast('orders', 'meanwhile')")
        connection.commit()
        assert client.next(timeout=20).data == "meanwhile"

        began = monotonic()
        pgbus_bus.stream("orders").broadcast("behind it")
        assert client.next(timeout=20).data == "behind it"
        assert monotonic() - began < 10.0, "a rest of four times as long as the look would have taken 16 seconds"


# the path


class Proxy:
    """Forwards TCP connections to the database's Unix socket, and can stop doing so."""

    def __init__(self, url: str) -> None:
        parameters = ext.parse_dsn(url)
        self._target = f"{unquote(parameters['host'])}/.s.PGSQL.{parameters.get('port', 5432)}"
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.url = ext.make_dsn(url, host="127.0.0.1", port=str(self._server.server_port))
        self.open: list[tuple[Any, Any]] = []
        self.swallowed: list[Any] = []
        self._pumps: list[Any] = []

    def _serve(self, client: Any, _: object) -> None:
        database = gevent.socket.socket(gevent.socket.AF_UNIX)
        database.connect(self._target)
        pair = (client, database)
        self.open.append(pair)
        pumps = [gevent.spawn(self._pump, pair, 0), gevent.spawn(self._pump, pair, 1)]
        self._pumps += pumps
        gevent.joinall(pumps, count=1)
        gevent.killall(pumps)
        if pair in self.open:
            self.open.remove(pair)
            self._close(pair)

    def _pump(self, pair: tuple[Any, Any], source: int) -> None:
        while data := pair[source].recv(65536):
            while pair in self.swallowed:
                gevent.sleep(0.05)
            pair[1 - source].sendall(data)

    def _close(self, pair: tuple[Any, Any]) -> None:
        for sock in pair:
            sock.close()

    def cut(self) -> None:
        """Close all connections."""
        for pair in list(self.open):
            self.open.remove(pair)
            for sock in pair:
                sock.shutdown(gevent.socket.SHUT_RDWR)
                sock.close()

    def swallow(self) -> None:
        """Forward nothing more on present connections. New ones work."""
        self.swallowed += self.open

    def close(self) -> None:
        self._server.stop()
        gevent.killall(self._pumps)
        for pair in self.open:
            self._close(pair)


@pytest.fixture
def proxy(pgbus_database: str) -> Iterator[Proxy]:
    if not ext.parse_dsn(pgbus_database).get("host", "").startswith("/"):
        pytest.skip("the database is not on a unix socket")
    found = Proxy(pgbus_database)
    yield found
    found.close()


def test_a_path_that_is_cut_again_and_again_loses_nothing_and_drops_nobody(
    proxy: Proxy, pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str
) -> None:
    settings = replace(pgbus_settings, database_url=proxy.url)
    with serving(settings, catch_up_interval=CATCH_UP, ring_messages=4) as server:
        clients = [server.live("orders") for _ in range(5)]
        for n in range(200):
            pgbus_bus.stream("orders").broadcast(str(n))
            if n % 40 == 20:
                proxy.cut()
        with session(pgbus_database) as connection:
            expected = stored(connection, "orders")
        for client in clients:
            until_messages(client, 200)
            assert received(client) == expected and not client.closed


def test_a_path_that_swallows_everything_is_given_up_at_the_deadline(
    proxy: Proxy, pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(green, "STATEMENT_GRACE", 0.5)
    monkeypatch.setattr(listener_module, "PING_INTERVAL", 0.5)
    settings = replace(pgbus_settings, database_url=proxy.url, statement_timeout=1.0)
    with serving(settings, catch_up_interval=CATCH_UP) as server:
        clients = [server.live("orders") for _ in range(5)]
        pgbus_bus.stream("orders").broadcast("before")
        until(lambda: all(len(client.messages) == 1 for client in clients), "they have the first")
        proxy.swallow()
        pgbus_bus.stream("orders").broadcast("meanwhile")
        with session(pgbus_database) as connection:
            expected = stored(connection, "orders")
        for client in clients:
            until_messages(client, 2)
            assert received(client) == expected and not client.closed
        until(lambda: server.instance.unready is None, "it listens by a new session")
        pgbus_bus.stream("orders").broadcast("live")
        assert until(lambda: clients[0].messages[-1].data == "live", "live again")
