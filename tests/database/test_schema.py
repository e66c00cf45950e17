"""Migrations: applied once by the process that is first, recorded, all or nothing, and never downwards.

The machinery is tested with invented migrations; the last part is about our own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import monotonic

import psycopg2.extensions as ext
import pytest
from database_parts import Session, is_waiting, opened_sessions, together, until
from release_parts import LIBRARY, Releases

from pgbus_gevent.database import Database, schema
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.database.schema import migrations
from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.databases import TestDatabases

ROOT = Path(__file__).parents[2]
BASELINE = 7  # the migrations of the first release; later ones may replace what these have made
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


@pytest.fixture
def library(releases: Releases) -> Path:
    """The folder of the release that this process is, with three invented migrations."""
    folder = releases.write("library", LIBRARY)
    releases.become(folder)
    return folder


def has_schema(sql: Session) -> bool:
    return bool(sql.one("select to_regnamespace('pgbus') is not null"))


def tables(sql: Session) -> list[str]:
    found = sql.run("select relname from pg_class where relnamespace = to_regnamespace('pgbus') and relkind = 'r'")
    return sorted(str(name) for (name,) in found)


# which files are migrations


def test_the_files_of_a_folder_are_migrations_in_the_order_of_their_numbers(releases: Releases) -> None:
    others = {"README.md": "x", "1_short.sql": "x", "0004.sql": "x", "0005_draft.sql.bak": "x", "0006-dash.sql": "x"}
    found = schema.read_folder(releases.write("mixed", {**dict(reversed(LIBRARY.items())), **others}))
    assert [(one.version, one.name, one.serves) for one in found] == [
        (1, "shelves", 1),
        (2, "books", 1),
        (3, "loans", 2),
    ]


def test_only_statements_count_in_the_checksum(releases: Releases) -> None:
    text = LIBRARY["0001_shelves.sql"]
    edits = {
        "as it was": text,
        "explained": f"-- A word more.\n\n  {text}\n",
        "changed": text.replace("integer", "bigint"),
    }
    first, second, third = (
        schema.read_folder(releases.write(name, {"0001_shelves.sql": edit}))[0].checksum for name, edit in edits.items()
    )
    assert first == second != third


# applying


def test_an_empty_database_gets_every_version_and_records_it(empty: str, sql: Session, library: Path) -> None:
    assert migrate(empty) == [1, 2, 3]
    rows = sql.run("select version, name, serves, checksum, applied_at from pgbus.migrations order by version")
    known = schema.read_folder(library)
    assert [row[:4] for row in rows] == [(one.version, one.name, one.serves, one.checksum) for one in known]
    now = datetime.now(timezone.utc)
    assert all(now - timedelta(minutes=1) < row[4] < now + timedelta(minutes=1) for row in rows)
    assert tables(sql) == ["books", "loans", "migrations", "shelves"]
    assert sql.one("insert into pgbus.books default values returning price") == "9 %s %"


def test_migrating_again_does_nothing(empty: str, sql: Session, library: Path) -> None:
    migrate(empty)
    sql.run("insert into pgbus.shelves values (7)")
    assert migrate(empty) == []
    assert sql.one("select id from pgbus.shelves") == 7


def test_a_later_release_applies_only_what_is_new(empty: str, sql: Session, library: Path, releases: Releases) -> None:
    migrate(empty)
    sql.run("insert into pgbus.shelves values (7)")
    later = {
        **LIBRARY,
        "0004_fines.sql": "create table pgbus.fines ()",
        "0005_rooms.sql": "create table pgbus.rooms ()",
    }
    releases.become(releases.write("later", later))
    assert migrate(empty) == [4, 5]
    assert sql.one("select id from pgbus.shelves") == 7
    assert {"fines", "rooms"} <= set(tables(sql))


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_one_of_eight_concurrent_callers_migrates(isolation: str, empty: str, sql: Session, library: Path) -> None:
    name = ext.parse_dsn(empty)["dbname"]
    sql.run(f"alter database {name} set default_transaction_isolation = '{isolation}'")
    applied = together(*[lambda: migrate(empty)] * 8)
    assert sorted(applied) == sorted([[1, 2, 3], *[[]] * 7])
    assert [row[0] for row in sql.run("select version from pgbus.migrations order by version")] == [1, 2, 3]


def test_one_of_several_processes_migrates(empty: str, library: Path) -> None:
    code = (
        "import sys, pathlib; from pgbus_gevent.database import schema; from pgbus_gevent.database.migrating import migrate;"
        " known = schema.read_folder(pathlib.Path(sys.argv[2])); schema.migrations = lambda: known;"
        " print(len(migrate(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, empty, str(library)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert sorted(printed) == [0, 0, 0, 3]


@pytest.mark.parametrize("already", [False, True], ids=["from nothing", "from the version before"])
def test_a_migration_that_fails_half_way_leaves_nothing(
    already: bool, empty: str, sql: Session, library: Path, releases: Releases
) -> None:
    if already:
        migrate(empty)
    bad = {"0004_good.sql": "create table pgbus.half ()", "0005_bad.sql": "create table pgbus.other (); select 1 / 0"}
    releases.become(releases.write("bad", {**LIBRARY, **bad}))
    with pytest.raises(
        DatabaseError, match=r"migration 5 \(bad\) failed, and nothing was changed: division by zero"
    ) as failed:
        migrate(empty)
    assert failed.value.sqlstate == "22012"
    assert has_schema(sql) is already
    if already:
        assert sql.one("select max(version) from pgbus.migrations") == 3
        assert tables(sql) == ["books", "loans", "migrations", "shelves"]
    releases.become(library)
    assert migrate(empty) == ([] if already else [1, 2, 3])


def test_migrating_leaves_no_session(empty: str, sql: Session, library: Path) -> None:
    migrate(empty)
    theirs = "application_name = 'pgbus-migrate' and datname = current_database()"
    until(lambda: sql.one(f"select count(*) from pg_stat_activity where {theirs}") == 0, "it is gone")


def test_a_schema_that_is_there_already_is_used(empty: str, sql: Session, library: Path) -> None:
    sql.run("create schema pgbus; create table pgbus.mine (n integer)")
    assert migrate(empty) == [1, 2, 3]
    assert "mine" in tables(sql)


def test_a_migration_that_waits_for_another_process_too_long_says_for_which(
    empty: str, sql: Session, library: Path
) -> None:
    with sql.transaction():
        sql.run("select pg_advisory_xact_lock(%s, 0)", LOCK)
        began = monotonic()
        with pytest.raises(
            DatabaseUnavailable, match=rf"other sessions hold locks on it: session {sql.pid} \(role postgres, "
        ):
            migrate(empty, timeout=1.5)  # each statement gets as much
        assert monotonic() - began < 40
    assert migrate(empty) == [1, 2, 3]
    with sql.transaction():
        sql.run("select pg_advisory_xact_lock(%s, 0)", LOCK)
        assert migrate(empty, timeout=15) == []  # with nothing to do, no lock is waited for


# our own migrations


def test_our_migrations_are_numbered_from_1_without_holes_and_have_names() -> None:
    assert [(migration.version, bool(migration.name)) for migration in migrations()] == [
        (n + 1, True) for n in range(len(KNOWN))
    ]


def test_our_files_create_each_object_once_in_the_file_of_its_subject() -> None:
    created: Counter[str] = Counter()
    homes: dict[str, set[str]] = {}
    for migration in migrations():
        changed = re.search(r"^\s*create or replace|^\s*drop |^\s*alter function", migration.sql, re.MULTILINE)
        assert migration.version > BASELINE or not changed, migration.name
        kinds = "function|table|unlogged table|sequence|index|unique index|constraint trigger"
        for kind, name, rest in re.findall(rf"\bcreate ({kinds}) ([\w.]+)([^;$]*)", migration.sql):
            arguments = re.sub(r"\s+", " ", rest.partition(" returns ")[0]) if kind == "function" else ""
            created[f"{kind.split()[-1]} {name}{arguments}"] += 1
            homes.setdefault(f"{kind.split()[-1]} {name}", set()).add(migration.name)
    assert [one for one, times in created.items() if times > 1] == []
    assert {one: names for one, names in homes.items() if len(names) > 1} == {}
    assert len(homes) > 90


def test_an_empty_database_gets_our_schema(empty: str, sql: Session) -> None:
    assert migrate(empty) == KNOWN
    assert migrate(empty) == []
    assert sql.call("broadcast", "orders", "x") == sql.call("last_id", "orders")


def test_a_database_of_the_settings_migrates(empty: str) -> None:
    database = Database(Settings(database_url=empty))
    assert database.migrate() == KNOWN
    database.close()


def test_publishers_go_on_while_there_is_nothing_to_migrate(empty: str) -> None:
    migrate(empty)
    with opened_sessions(empty) as opener:
        publisher, watcher = opener(), opener()
        with publisher.transaction():
            publisher.call("broadcast", "orders", "x")
            assert migrate(empty, timeout=15) == []
            assert not is_waiting(watcher, publisher)


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
