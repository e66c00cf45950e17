"""The steps of docs/operations/secrets.md, with several servers, and with a page that stays open."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2.extensions as ext
import pytest
from page_parts import block_of
from raw_http import ask
from support import Serving, last, received, run, serving, session, stored, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.errors import DatabaseUnavailable
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases

pytestmark = [pytest.mark.docs, pytest.mark.slow]

PATIENCE = 60.0


def values(block: str, variable: str) -> list[tuple[str, ...]]:
    """Return what a variable has in each line of a block of the page."""
    found = re.findall(rf"^{variable}=(\S+)", block, re.MULTILINE)
    return [tuple(value.split(",")) for value in found]


class Fleet:
    """Two servers of one database, of which each can be replaced."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._places = [ExitStack(), ExitStack()]
        self._servers: dict[int, Serving] = {}

    @property
    def servers(self) -> list[Serving]:
        return [self._servers[0], self._servers[1]]

    def replace(self, number: int, **changes: Any) -> None:
        """Start a server with these settings, in the place of the one before."""
        self._places[number].close()
        self._servers[number] = self._places[number].enter_context(serving(replace(self._settings, **changes)))

    def close(self) -> None:
        for place in self._places:
            place.close()


@pytest.fixture
def fleet(pgbus_settings: Settings) -> Iterator[Fleet]:
    found = Fleet(replace(pgbus_settings, public=(), grace=0.1, heartbeat=0.5))
    yield found
    found.close()


class Page:
    """A page that somebody keeps open. Its EventSource comes back to any server, with its cursor and its present name."""

    def __init__(self, fleet: Fleet, path: str) -> None:
        self._fleet = fleet
        self.path = path
        self.got: list[tuple[int, str]] = []
        self._cursor: int | str = 0
        self._client = StreamClient(fleet.servers[0].url, path, since=self._cursor)

    def goes_on(self, at: int, path: str | None = None) -> None:
        """Come back to another server, perhaps with another name."""
        self.got += received(self._client)
        self._cursor = self._client.last_id or self._cursor  # it may have been cut off before its first frame
        self._client.close()
        self.path = path or self.path
        self._client = StreamClient(self._fleet.servers[at].url, self.path, since=self._cursor)
        self._client.next("pgbus:connected", timeout=PATIENCE)

    def all(self) -> list[tuple[int, str]]:
        return self.got + received(self._client)

    def close(self) -> None:
        self._client.close()


def is_let_in(server: Serving, path: str) -> bool:
    with StreamClient(server.url, path) as client:
        until(lambda: client.response is not None, "it answers", PATIENCE)
        assert client.response is not None and client.response.status in (200, 404)
        return client.response.status == 200


def test_a_page_survives_a_new_signing_secret(fleet: Fleet, pgbus_settings: Settings) -> None:
    old, *steps = values(block_of("docs/operations/secrets.md", "phases"), "PGBUS_SECRET")
    assert [len(old), *map(len, steps)] == [1, 2, 2, 1]
    with Bus(settings=pgbus_settings) as bus, ExitStack() as stack:
        for number in range(2):
            fleet.replace(number, secret=old)
        path = signed(fleet.servers[0])
        bus.stream("orders").broadcast("0")
        page = Page(fleet, path)
        stack.callback(page.close)
        for step, secret in enumerate(steps, 1):
            for number in range(2):
                fleet.replace(number, secret=secret)
                bus.stream("orders").broadcast(f"{step}.{number}")
                # What any server signs opens the stream at each of them.
                for signer in fleet.servers:
                    assert all(is_let_in(server, signed(signer)) for server in fleet.servers)
                page.goes_on(1 - number)
            page.goes_on(1, signed(fleet.servers[0]))  # it renews its name, as the guide about tokens says
        bus.stream("orders").broadcast("end")
        until(lambda: page.all()[-1:] and page.all()[-1][1] == "end", "it gets all", PATIENCE)
        with session(str(pgbus_settings.database_url)) as connection:
            assert page.all() == stored(connection, "orders")
        assert not is_let_in(fleet.servers[0], path), "what the old secret signed is worth nothing any more"


def test_without_the_first_step_a_page_may_be_refused(fleet: Fleet) -> None:
    old, _, both, _ = values(block_of("docs/operations/secrets.md", "phases"), "PGBUS_SECRET")
    fleet.replace(0, secret=old)
    fleet.replace(1, secret=both)
    assert not is_let_in(fleet.servers[0], signed(fleet.servers[1]))


def signed(server: Serving) -> str:
    with Bus(settings=server.instance.settings) as bus:
        return bus.stream_path("orders", expires_in=3600)


def test_a_publisher_survives_a_new_publish_token(fleet: Fleet) -> None:
    before, both, after = values(block_of("docs/operations/secrets.md", "publish"), "PGBUS_PUBLISH_TOKEN")

    def statuses(token: str) -> list[int]:
        return [publish(server, token) for server in fleet.servers]

    for number in range(2):
        fleet.replace(number, publish_token=before, public=("*",))
    for number in range(2):
        assert statuses(before[0]) == [201, 201]
        fleet.replace(number, publish_token=both, public=("*",))
    assert statuses(before[0]) == statuses(both[1]) == [201, 201]
    for number in range(2):
        assert statuses(both[1]) == [201, 201]
        fleet.replace(number, publish_token=after, public=("*",))
    assert statuses(after[0]) == [201, 201]
    assert statuses(before[0]) == [401, 401]


def publish(server: Serving, token: str) -> int:
    port = server.server.port
    return ask(port, "/pgbus/streams/orders", "POST", b"x", Authorization=f"Bearer {token}").status


@pytest.fixture(scope="module")
def guarded() -> Iterator[TestDatabases]:
    """A PostgreSQL that asks the roles of the page for their passwords."""
    databases = TestDatabases()
    with session(databases.url) as connection:
        [(path,)] = run(connection, "show hba_file")
        file = Path(path)
        file.write_text("local all pgbus_a,pgbus_b,pgbus_c scram-sha-256\n" + file.read_text())
        run(connection, "select pg_reload_conf()")
    yield databases
    databases.close()


def test_a_client_survives_a_new_role_with_another_password(guarded: TestDatabases, pgbus_settings: Settings) -> None:
    owner = guarded.make()
    role = block_of("docs/operations/secrets.md", "role")
    with session(owner) as admin:
        for block in (role.replace("pgbus_b", "pgbus_a").replace("a-new", "an-old"), role):
            run(admin, block)
        urls = [
            str(ext.make_dsn(owner, user=user, password=password))
            for user, password in (("pgbus_a", "an-old-password"), ("pgbus_b", "a-new-password"))
        ]
        with pytest.raises(DatabaseUnavailable, match="password"), Bus(urls[1].replace("a-new", "another")) as wrong:
            wrong.stream("orders").broadcast("x")
        both = replace(pgbus_settings, database_url=urls[0]), replace(pgbus_settings, database_url=urls[1])
        with serving(both[1]) as new:
            with serving(both[0]) as server, Bus(settings=both[0]) as bus:
                client = server.live("orders")
                bus.stream("orders").broadcast("by the old role")
                until(lambda: last(client) == "by the old role", "it gets it", PATIENCE)
            client.url = new.url
            client.resume()
            used = "select count(*) from pg_stat_activity where usename = 'pgbus_a'"
            until(lambda: run(admin, used) == [(0,)], "the old role has no session", PATIENCE)
            for statement in block_of("docs/operations/secrets.md", "shut").split(";\n")[:-1]:
                run(admin, statement)
            with Bus(settings=both[1]) as bus:
                bus.stream("orders").broadcast("by the new role")
            until(lambda: last(client) == "by the new role", "it goes on", PATIENCE)
            assert [frame.data for frame in client.messages] == ["by the old role", "by the new role"]
            with pytest.raises(DatabaseUnavailable), Bus(settings=both[0]) as bus:
                bus.stream("orders").broadcast("x")
            client.close()


def test_clients_survive_new_names_of_the_channels(pgbus_settings: Settings, pgbus_bus: Bus) -> None:
    with serving(pgbus_settings) as server, session(str(pgbus_settings.database_url)) as owner:
        client = server.live("orders")
        run(owner, block_of("docs/operations/secrets.md", "channels"))
        pgbus_bus.stream("orders").broadcast("later")
        until(lambda: last(client) == "later", "it goes on", PATIENCE)


def test_a_password_in_a_file_is_read_for_each_session(guarded: TestDatabases, tmp_path: Path) -> None:
    owner = guarded.make()
    with session(owner) as admin:
        run(admin, "create role pgbus_c login password 'a-new-password'")
        run(admin, "select pgbus.grant_publisher('pgbus_c')")
        file = tmp_path / "pgpass"
        file.write_text("*:*:*:pgbus_c:a-new-password\n")
        file.chmod(0o600)
        with Bus(str(ext.make_dsn(owner, user="pgbus_c", passfile=str(file)))) as bus:
            bus.stream("orders").broadcast("a")
            run(admin, "alter role pgbus_c password 'the-next-password'")
            file.write_text("*:*:*:pgbus_c:the-next-password\n")
            run(admin, "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'pgbus_c'")
            until(lambda: published(bus), "a new session has the new password", PATIENCE)


def published(bus: Bus) -> bool:
    try:
        bus.stream("orders").broadcast("b")
    except DatabaseUnavailable:
        return False
    return True
