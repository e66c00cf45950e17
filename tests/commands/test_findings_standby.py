"""What ``doctor`` finds about a standby."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from doctor_parts import checked
from psycopg2.extensions import make_dsn, parse_dsn
from support import run, session, until
from ways import standby

from pgbus_gevent.commands.finding import FAIL, OK, WARN, Finding
from pgbus_gevent.commands.findings import findings
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.databases import TestDatabases


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[str, str]]:
    """The URLs of a database, on a primary and on its standby."""
    databases = TestDatabases()
    try:
        url = databases.make()
        with standby(url) as other:
            yield url, other
    finally:
        databases.close()


def look(url: str, replica: str | None) -> Finding | None:
    found = map(
        checked, findings(Settings(database_url=url, replica_url=replica, connect_timeout=20.0, max_connections=10))
    )
    return {one.check: one for one in found}.get("standby")


def test_a_sound_standby(pair: tuple[str, str]) -> None:
    # A standby on a busy machine may be late at first.
    found = until(lambda: (one := look(*pair)) and one.level == OK and one, "it replays in time", 60)
    assert found.todo == ""
    assert look(pair[0], None) is None, "without a standby, nothing is said"


def test_a_standby_whose_replay_is_paused(pair: tuple[str, str]) -> None:
    with session(pair[1]) as there, session(pair[0]) as here:
        run(there, "select pg_wal_replay_pause()")
        until(lambda: run(there, "select pg_get_wal_replay_pause_state()") == [("paused",)], "it has paused")
        run(here, "select pgbus.broadcast('orders', 'x')")
        try:
            found = look(*pair)
        finally:
            run(there, "select pg_wal_replay_resume()")
    assert found is not None
    assert found.level == WARN
    assert "paused" in found.todo


def test_a_wrong_server(pair: tuple[str, str], pgbus_database: str) -> None:
    other_database = str(make_dsn(pair[1], dbname="postgres"))
    assert parse_dsn(pair[1])["dbname"] != "postgres"
    for url, part in (
        (pair[0], "not a standby"),
        (pgbus_database, "not a standby"),
        (other_database, "another database"),
    ):
        found = look(pair[0], url)
        assert found is not None
        assert (found.level, part in found.text, bool(found.todo)) == (FAIL, True, True)
    found = look(pgbus_database, pair[1])
    assert found is not None
    assert (found.level, "another server" in found.text) == (FAIL, True)
    found = look(pair[0], "postgresql://127.0.0.1:1/x")
    assert found is not None
    assert found.level == WARN
