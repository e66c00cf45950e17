"""Migrations are applied once, by the first process, all or none, are recorded, and never go backwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import monotonic

import psycopg2.extensions as ext
import pytest
from database_parts import Session, is_waiting, opened_sessions, together, until

from pgbus_gevent.database import Database, schema
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.database.schema import Migration, migrations
from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.databases import TestDatabases

ROOT = Path(schema.__file__).parents[2]
KNOWN = [migration.version for migration in migrations()]
LOCK = 1885823597


@pytest.fixture
def empty(pgbus_databases: TestDatabases) -> Iterator[str]:
    """The URL of an empty database."""
    url = pgbus_databases.make_empty()
    yield url
    pgbus_databases.drop(url)


@pytest.fixture
def sql(empty: str) -> Iterator[Session]:
    with opened_sessions(empty) as opener:
        yield opener()


def has_schema(sql: Session) -> bool:
    return bool(sql.one("select to_regnamespace('pgbus') is not null"))


def test_migrations_are_numbered_from_1_without_holes_and_have_names() -> None:
    assert [(migration.version, bool(migration.name)) for migration in migrations()] == [
        (n + 1, True) for n in range(len(KNOWN))
    ]


def test_an_empty_database_gets_every_version_and_records_it(empty: str, sql: Session) -> None:
    assert migrate(empty) == KNOWN
    rows = sql.run("select version, name, applied_at from pgbus.migrations order by version")
    assert [row[:2] for row in rows] == [(migration.version, migration.name) for migration in migrations()]
    now = datetime.now(timezone.utc)
    assert all(now - timedelta(minutes=1) < row[2] < now + timedelta(minutes=1) for row in rows)
    assert sql.call("broadcast", "orders", "x") == sql.call("last_id", "orders")


def test_migrating_again_does_nothing(empty: str, sql: Session) -> None:
    migrate(empty)
    id = sql.call("broadcast", "orders", "x")
    assert migrate(empty) == []
    assert sql.read("orders") == [(id, "x")]


def test_migrating_leaves_no_session(empty: str, sql: Session) -> None:
    migrate(empty)
    theirs = "application_name = 'pgbus-migrate' and datname = current_database()"
    until(lambda: sql.one(f"select count(*) from pg_stat_activity where {theirs}") == 0, "it is gone")


def test_a_schema_that_is_there_already_is_used(empty: str, sql: Session) -> None:
    sql.run("create schema pgbus; create table pgbus.mine (n integer)")
    assert migrate(empty) == KNOWN
    assert sql.one("select to_regclass('pgbus.mine') is not null")


def test_a_database_of_the_settings_migrates(empty: str) -> None:
    database = Database(Settings(database_url=empty))
    assert database.migrate() == KNOWN
    database.close()


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_of_eight_at_once_one_migrates(isolation: str, empty: str, sql: Session) -> None:
    name = ext.parse_dsn(empty)["dbname"]
    sql.run(f"alter database {name} set default_transaction_isolation = '{isolation}'")
    applied = together(*[lambda: migrate(empty)] * 8)
    assert sorted(applied) == sorted([KNOWN, *[[]] * 7])
    assert [row[0] for row in sql.run("select version from pgbus.migrations order by version")] == KNOWN


def test_of_several_processes_one_migrates(empty: str) -> None:
    code = "import sys; from pgbus_gevent.database.migrating import migrate; print(len(migrate(sys.argv[1])))"
    command = [sys.executable, "-c", code, empty]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = [int(process.communicate(timeout=30)[0]) for process in processes]
    assert sorted(printed) == [0, 0, 0, len(KNOWN)]


def test_a_migration_that_waits_too_long_names_the_session_in_its_way(empty: str, sql: Session) -> None:
    with sql.transaction():
        sql.run("select pg_advisory_xact_lock(%s, 0)", LOCK)
        began = monotonic()
        with pytest.raises(
            DatabaseUnavailable, match=rf"other sessions hold locks on it: session {sql.pid} \(role postgres, "
        ):
            migrate(empty, timeout=0.3)
        assert monotonic() - began < 5
    assert migrate(empty) == KNOWN
    with sql.transaction():
        sql.run("select pg_advisory_xact_lock(%s, 0)", LOCK)
        assert migrate(empty, timeout=0.3) == []  # if there is nothing to do, it waits for no lock


def test_publishers_go_on_while_there_is_nothing_to_migrate(empty: str) -> None:
    migrate(empty)
    with opened_sessions(empty) as opener:
        publisher, watcher = opener(), opener()
        with publisher.transaction():
            publisher.call("broadcast", "orders", "x")
            assert migrate(empty, timeout=5) == []
            assert not is_waiting(watcher, publisher)


@pytest.mark.parametrize("already", [False, True], ids=["from nothing", "from the version before"])
def test_a_migration_that_fails_leaves_nothing(
    already: bool, empty: str, sql: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    if already:
        migrate(empty)
    bad = [
        *migrations(),
        Migration(998, "good", "create table pgbus.half (n integer)"),
        Migration(999, "bad", "create table pgbus.other (n integer); select 1 / 0"),
    ]
    monkeypatch.setattr(schema, "migrations", lambda: bad)
    with pytest.raises(
        DatabaseError, match=r"migration 999 \(bad\) failed, and nothing was .*: division by zero"
    ) as failed:
        migrate(empty)
    assert failed.value.sqlstate == "22012"
    assert has_schema(sql) is already
    if already:
        assert sql.one("select max(version) from pgbus.migrations") == KNOWN[-1]
        assert sql.one("select to_regclass('pgbus.half') is null and to_regclass('pgbus.other') is null")


def test_a_later_release_applies_only_its_new_migrations(
    empty: str, sql: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(empty)
    later = [*migrations(), Migration(998, "more", "create table pgbus.more (percent text default '100 %s %')")]
    monkeypatch.setattr(schema, "migrations", lambda: later)
    assert migrate(empty) == [998]
    assert sql.one("select name from pgbus.migrations where version = 998") == "more"


def test_a_database_in_another_encoding_is_refused(pgbus_databases: TestDatabases) -> None:
    name = f"pgbus_test_latin_{os.getpid()}"
    with opened_sessions(pgbus_databases.url) as opener:
        sql = opener()
        provider = " locale_provider libc" if sql.connection.server_version >= 150000 else ""
        sql.run(f"create database {name} template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'{provider}")
        try:
            with pytest.raises(DatabaseError, match="encoding is LATIN1; pgbus needs a database with encoding UTF8"):
                migrate(pgbus_databases.url_of(name))
            with opened_sessions(pgbus_databases.url_of(name)) as there:
                assert not has_schema(there())
        finally:
            sql.run(f"drop database {name} with (force)")


@pytest.mark.parametrize(
    "setting", ["standard_conforming_strings = off", "search_path = ''", "check_function_bodies = off"]
)
def test_the_databases_own_settings_do_not_matter(setting: str, empty: str, sql: Session) -> None:
    sql.run(f"alter database {ext.parse_dsn(empty)['dbname']} set {setting}")
    assert migrate(empty) == KNOWN
    with opened_sessions(empty) as opener:
        assert opener().call("broadcast", "orders", "x", "e", key="k")


def test_nothing_of_ours_is_outside_the_schema(empty: str, sql: Session) -> None:
    outside = "select count(*) from pg_class where relnamespace <> 'pg_toast'::regnamespace"
    before = sql.one(outside)
    migrate(empty)
    sql.run("drop schema pgbus cascade")
    assert sql.one(outside) == before
