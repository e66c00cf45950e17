"""A URL with several hosts, or a name with several addresses, leads to the primary, wherever it is listed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from time import monotonic
from typing import Any

import gevent
import psycopg2.extensions as ext
import pytest
from gevent.server import StreamServer
from page_parts import block_of
from support import get, run, serving, session, until
from ways import kill_server, standby

from pgbus_gevent.bus import Bus
from pgbus_gevent.database import green
from pgbus_gevent.database.addresses import Route, Target, Unresolved, targets
from pgbus_gevent.database.connect import connect
from pgbus_gevent.errors import DatabaseUnavailable
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.databases import TestDatabases


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[str, str]]:
    """The URLs of a primary and of its standby."""
    databases = TestDatabases()
    green.install()
    try:
        url = databases.make()
        with standby(url) as other:
            yield url, other
    finally:
        databases.close()


@pytest.fixture
def mute() -> Iterator[tuple[str, str]]:
    """A host and port that accept connections and send nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield "127.0.0.1", str(server.getsockname()[1])


@pytest.fixture
def refusing() -> Iterator[tuple[str, str]]:
    """A host and port without a listener, which no other program gets meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield "127.0.0.1", str(held.getsockname()[1])


def place(url: str) -> tuple[str, str]:
    own = ext.parse_dsn(url)
    return own["host"], own["port"]


def at(url: str, *places: tuple[str, str], **more: Any) -> str:
    return str(ext.make_dsn(url, host=",".join(h for h, _ in places), port=",".join(p for _, p in places), **more))


def opened(url: str, connect_timeout: float = 20.0, **more: Any) -> Any:
    return closing(connect(url, application_name="x", connect_timeout=connect_timeout, statement_timeout=20.0, **more))


TIMEOUTS = (0.5, 2.0, 8.0)
"""For a URL with a host that costs the whole timeout. The servers may be too busy for the short ones."""


def soon_opened(url: str, **more: Any) -> Any:
    """Like :func:`opened`, but with the shortest timeout that will do."""
    for timeout in TIMEOUTS[:-1]:
        with suppress(DatabaseUnavailable):
            return opened(url, timeout, **more)
    return opened(url, TIMEOUTS[-1], **more)


def is_standby(connection: Any) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("select pg_is_in_recovery()")
        return bool(cursor.fetchone()[0])


@pytest.mark.parametrize("order", ["psd", "spd", "dsp", "sdmp", "mdsp"])
def test_the_primary_is_reached_whatever_is_listed_first(
    order: str, pair: tuple[str, str], mute: tuple[str, str], refusing: tuple[str, str]
) -> None:
    url, other = pair
    known = {"p": place(url), "s": place(other), "d": refusing, "m": mute}
    with soon_opened(at(url, *(known[letter] for letter in order))) as connection:
        assert not is_standby(connection)


def test_the_url_of_the_documentation_has_three_hosts() -> None:
    url = block_of("docs/failover.md", "hosts").strip().removeprefix("PGBUS_DATABASE_URL=")
    parameters = ext.parse_dsn(url)
    found = [target.reason for target in targets(parameters, Route(), 20.0) if isinstance(target, Unresolved)]
    assert [reason.split()[1] for reason in found] == ["db1", "db2", "db3"]


def test_target_session_attrs_of_the_url_count(pair: tuple[str, str], refusing: tuple[str, str]) -> None:
    url, other = pair
    both = place(url), place(other)
    for attrs, expected in {"any": False, "standby": True, "prefer-standby": True, "primary": False}.items():
        with opened(at(url, *both, target_session_attrs=attrs)) as connection:
            assert is_standby(connection) is expected, attrs
    with opened(at(url, place(url), refusing, target_session_attrs="prefer-standby")) as connection:
        assert not is_standby(connection), "the second best"
    found = set()
    for _ in range(40):
        with opened(at(url, *both, target_session_attrs="any", load_balance_hosts="random")) as connection:
            found.add(is_standby(connection))
    assert found == {True, False}


def test_a_standby_is_taken_only_if_it_is_the_only_host(pair: tuple[str, str], refusing: tuple[str, str]) -> None:
    url, other = pair
    with pytest.raises(DatabaseUnavailable), opened(at(url, place(other), refusing)):
        pass
    with opened(other) as connection:
        assert is_standby(connection)


def test_a_name_with_several_addresses_leads_to_the_primary(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, other = pair
    ways = []
    for target, address in ((other, "127.0.0.2"), (url, "127.0.0.3")):
        host, port = place(target)
        way = StreamServer(
            (address, ways[0].server_port if ways else 0),
            lambda sock, _, path=f"{host}/.s.PGSQL.{port}": forward(sock, path),
        )
        way.start()
        ways.append(way)
    original = socket.getaddrinfo

    def resolve(name: Any, *arguments: Any, **more: Any) -> Any:
        if name != "database.invalid":
            return original(name, *arguments, **more)
        return [entry for address in ("127.0.0.2", "127.0.0.3") for entry in original(address, *arguments, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    try:
        with opened(at(url, ("database.invalid", str(ways[0].server_port)))) as connection:
            assert not is_standby(connection)
    finally:
        for way in ways:
            way.stop(1)


def forward(sock: Any, path: str) -> None:
    server = gevent.socket.socket(gevent.socket.AF_UNIX)
    server.connect(path)

    def pump(source: Any, target: Any) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass

    pumps = [gevent.spawn(pump, sock, server), gevent.spawn(pump, server, sock)]
    gevent.joinall(pumps, count=1)
    gevent.killall(pumps)
    server.close()


def test_a_name_that_no_name_server_answers_is_given_up(pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = pair
    original = socket.getaddrinfo

    def resolve(name: Any, *arguments: Any, **more: Any) -> Any:
        if name == "slow.invalid":
            gevent.sleep(100)
        return original(name, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    began = monotonic()
    with soon_opened(at(url, ("slow.invalid", "5432"), place(url))) as connection:
        assert not is_standby(connection)
    assert monotonic() - began < 60.0
    with (
        pytest.raises(DatabaseUnavailable, match=r"slow\.invalid does not resolve: no name server answered in time"),
        opened(at(url, ("slow.invalid", "5432")), 0.5),
    ):
        pass


def test_an_address_is_not_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **more: pytest.fail("a resolver was asked"))
    found = list(targets({"host": "192.0.2.1,::1", "port": "5432"}, Route(), 1.0))
    assert [target.address["hostaddr"] for target in found if isinstance(target, Target)] == ["192.0.2.1", "::1"]


def test_a_second_connect_goes_straight_to_the_address_that_was_the_primary(
    pair: tuple[str, str],
) -> None:
    url, other = pair
    route = Route()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        hosts = ("127.0.0.1", str(mute.getsockname()[1])), place(other), place(url)
        with soon_opened(at(url, *hosts), route=route) as connection:
            assert not is_standby(connection)
        for _ in range(len(TIMEOUTS)):  # those that may have been made to it
            mute.settimeout(0.1)
            with suppress(TimeoutError):
                mute.accept()[0].close()
        for _ in range(5):
            with opened(at(url, *hosts), route=route) as connection:
                assert not is_standby(connection)
        with pytest.raises(TimeoutError):
            mute.accept()


def test_a_worker_follows_a_failover_to_the_host_that_was_listed_first(pgbus_settings: Settings) -> None:
    databases = TestDatabases()
    try:
        url = databases.make()
        with standby(url) as other:
            settings = replace(pgbus_settings, database_url=at(url, place(other), place(url)))
            with serving(settings, catch_up_interval=1.0) as server, Bus(settings=settings) as bus:
                client = server.live("orders")
                bus.stream("orders").broadcast("before")
                assert client.next().data == "before"
                with session(other) as on_standby:
                    until(lambda: run(on_standby, "select 1 from pgbus.messages"), "the standby has it")
                kill_server(url)
                with session(other) as on_standby:
                    run(on_standby, "select pg_promote()")
                until(lambda: get(server.url, "/pgbus/readyz").status == 200, "it is ready", 60)

                def published() -> bool:
                    try:
                        bus.stream("orders").broadcast("after", key="once")
                    except Exception:
                        return False
                    return True

                until(published, "the new primary takes it", 60)
                assert client.next(timeout=60).data == "after" and not client.closed
    finally:
        databases.close()
