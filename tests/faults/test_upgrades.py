"""Two releases and one database: which release runs on which schema, and what an upgrade does to running publishers and servers.

The releases have invented migrations. Where publishers or servers run, a later release has our own and one more.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import gevent
import psycopg2.extensions as ext
import pytest
from cli_parts import Cli
from database_parts import PATIENCE, Session, opened_sessions, until
from host_parts import APP, Host, gunicorn, host
from release_parts import LIBRARY, Releases

from pgbus_gevent.database import Database, schema
from pgbus_gevent.database.embedded import EmbeddedPostgres
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.database.schema import Migration, migrations
from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable, SchemaMismatch, SchemaTooNew, SchemaTooOld
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.databases import TestDatabases

KNOWN = migrations()
NEWEST = KNOWN[-1].version
LATER = Migration(NEWEST + 1, "later", f"-- serves: {NEWEST}\nalter table pgbus.messages add column later integer")
FINES = {"0004_fines.sql": "-- serves: 3\ncreate table pgbus.fines ();"}
BREAKING = {"0004_breaking.sql": "drop table pgbus.loans;"}
AFTER = {**BREAKING, "0005_after.sql": "-- serves: 4\ncreate table pgbus.rooms ();"}


@pytest.fixture
def sql(database: str) -> Iterator[Session]:
    with opened_sessions(database) as opener:
        yield opener()


@pytest.fixture
def database(pgbus_databases: TestDatabases) -> Iterator[str]:
    """The URL of a database at this release's version."""
    url = pgbus_databases.make_empty()
    migrate(url)
    yield url
    pgbus_databases.drop(url)


@pytest.fixture
def library(releases: Releases) -> Path:
    """The release that this process is, with the three invented migrations."""
    folder = releases.write("library", LIBRARY)
    releases.become(folder)
    return folder


@pytest.fixture
def empty(pgbus_databases: TestDatabases) -> Iterator[str]:
    """The URL of an empty database."""
    url = pgbus_databases.make_empty()
    yield url
    pgbus_databases.drop(url)


@pytest.fixture
def shop(empty: str, library: Path) -> str:
    """The URL of a database at the version of the invented release."""
    migrate(empty)
    return empty


@pytest.fixture
def owner(shop: str) -> Iterator[Session]:
    with opened_sessions(shop) as opener:
        yield opener()


def release(monkeypatch: pytest.MonkeyPatch, *known: Migration) -> None:
    """Act as a release with these migrations."""
    monkeypatch.setattr(schema, "migrations", lambda: list(known))


def check(url: str) -> None:
    database = Database(Settings(database_url=url))
    try:
        database.check_schema()
    finally:
        database.close()


# two releases


def test_an_older_release_runs_on_a_newer_schema_that_serves_it(shop: str, library: Path, releases: Releases) -> None:
    releases.become(releases.write("later", {**LIBRARY, **FINES}))
    assert migrate(shop) == [4]
    releases.become(library)
    assert migrate(shop) == []
    check(shop)


def test_an_older_release_is_refused_by_a_schema_that_does_not_serve_it(
    shop: str, library: Path, releases: Releases
) -> None:
    releases.become(releases.write("after", {**LIBRARY, **AFTER}))
    migrate(shop)
    releases.become(library)
    for refused_by in (migrate, check):
        with pytest.raises(SchemaTooNew, match=r"version 5 and supports only .* 4 or later, .*; upgrade") as e:
            refused_by(shop)
        assert (e.value.found, e.value.serves, e.value.known) == (5, 4, 3)
    releases.become(releases.write("breaking", {**LIBRARY, **BREAKING}))
    check(shop)


def test_a_newer_release_that_does_not_migrate_is_refused_by_an_older_schema(shop: str, releases: Releases) -> None:
    releases.become(releases.write("later", {**LIBRARY, **FINES}))
    with pytest.raises(SchemaTooOld, match=r"version 3, but this release needs .* 4; run .* migrate`"):
        check(shop)
    migrate(shop)
    check(shop)


def test_a_release_that_does_not_migrate_says_that_there_is_no_schema(empty: str, library: Path) -> None:
    with pytest.raises(SchemaTooOld, match="is not in this database; run `python -m pgbus_gevent migrate`") as refused:
        check(empty)
    assert refused.value.sqlstate == "3F000"


# records that no release makes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "delete from pgbus.migrations where version = 2",
            r"migration 2 \(books\) is missing, and a later one is there",
        ),
        ("update pgbus.migrations set name = 'other' where version = 2", r"calls migration 2 \(books\) 'other'"),
        (
            "update pgbus.migrations set checksum = 'x' where version = 2",
            r"2 \(books\) was applied with statements that differ",
        ),
        (
            "insert into pgbus.migrations values (0, 'zero', 0, 'x')",
            r"a migration 0 \(zero\), which this release does not have",
        ),
        ("alter table pgbus.migrations drop column checksum", "from before the first release"),
    ],
    ids=["missing", "renamed", "edited", "unknown", "unreleased"],
)
def test_a_schema_that_no_release_makes_is_refused_by_name(change: str, said: str, shop: str, owner: Session) -> None:
    owner.run(change)
    for refused_by in (migrate, check):
        with pytest.raises(SchemaMismatch, match=said):
            refused_by(shop)


def test_a_lost_row_can_be_put_back_as_the_refusal_says(shop: str, owner: Session) -> None:
    owner.run("delete from pgbus.migrations where version = 2")
    with pytest.raises(SchemaMismatch) as refused:
        migrate(shop)
    owner.run(str(refused.value).partition("was lost: ")[2].partition(";")[0])
    assert migrate(shop) == []


def test_comments_and_spaces_do_not_count(shop: str, releases: Releases) -> None:
    edited = {"0001_shelves.sql": f"-- A word more.\n\n{LIBRARY['0001_shelves.sql']}\n"}
    releases.become(releases.write("edited", {**LIBRARY, **edited}))
    assert migrate(shop) == []


# running publishers


def test_a_migration_that_waits_for_a_table_lets_publishers_pass(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(monkeypatch, *KNOWN, LATER)
    with opened_sessions(database) as opener:
        reader, publisher = opener(), opener()
        with reader.transaction():
            reader.run("select * from pgbus.messages")
            migration = gevent.spawn(migrate, database)
            waits = [0.0]
            begun = monotonic()
            while monotonic() - begun < 1.5 or (max(waits) <= 0.05 and monotonic() - begun < PATIENCE):
                began = monotonic()
                publisher.call("broadcast", "orders", "x")
                waits.append(monotonic() - began)
            assert not migration.ready()
        # 0.2 s behind the migration, plus the delay of a busy machine. Behind the reader, the statement would time out after 20 s.
        assert max(waits) < 10.0, f"a publisher waited for {max(waits):.2f} s"
        assert max(waits) > 0.05, "none of them met the migration"
        assert migration.get(timeout=PATIENCE) == [LATER.version]


def test_a_session_that_blocks_a_migration_for_too_long_is_named(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(monkeypatch, *KNOWN, LATER)
    with opened_sessions(database) as opener:
        reader = opener()
        with reader.transaction():
            reader.run("select * from pgbus.messages")
            with pytest.raises(DatabaseUnavailable, match=f"other sessions hold locks on it: session {reader.pid} "):
                migrate(database, timeout=2.0)


def test_one_of_several_concurrent_upgrades_migrates(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = LATER._replace(sql=f"{LATER.sql}; select pg_sleep(0.3)")
    release(monkeypatch, *KNOWN, slow)
    jobs = [gevent.spawn(migrate, database) for _ in range(6)]
    assert sorted(job.get(timeout=60) for job in jobs) == [[], [], [], [], [], [slow.version]]


def test_a_migrator_that_dies_half_way_leaves_nothing_and_the_next_one_begins_again(
    database: str, sql: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(monkeypatch, *KNOWN, LATER, Migration(NEWEST + 2, "slow", "select pg_sleep(30)"))
    job = gevent.spawn(migrate, database)
    pid = until(
        lambda: sql.run(
            "select pid from pg_stat_activity where query like '%%pg_sleep(30)' and state = 'active'"
            " and datname = current_database() and pid <> pg_backend_pid()"
        ),
        "it is at it",
    )[0][0]
    sql.run("select pg_terminate_backend(%s)", pid)
    with pytest.raises(DatabaseUnavailable):
        job.get(timeout=20)
    release(monkeypatch, *KNOWN, LATER)
    assert migrate(database) == [LATER.version]


# roles and servers that cannot migrate


@pytest.fixture
def role(owner: Session, shop: str) -> Iterator[str]:
    name = f"pgbus_{ext.parse_dsn(shop)['dbname']}"
    owner.run(
        f"create role {name} login; grant usage on schema pgbus to {name}; grant select on pgbus.migrations to {name}"
    )
    yield name
    owner.run(f"drop owned by {name}; drop role {name}")


def as_role(database: str, role: str) -> str:
    return str(ext.make_dsn(database, options=f"-c role={role}"))


def test_a_role_that_may_not_upgrade_is_told_the_owner(shop: str, role: str, releases: Releases) -> None:
    assert migrate(as_role(shop, role)) == []
    releases.become(releases.write("later", {**LIBRARY, **FINES}))
    with pytest.raises(
        DatabaseError, match=f"role {role} may not .*belongs to postgres: run .* as postgres.*--no-migrate"
    ) as refused:
        migrate(as_role(shop, role))
    assert refused.value.sqlstate == "42501"


def test_a_role_that_may_not_create_the_schema_gets_the_statement_for_an_administrator(
    shop: str, owner: Session, role: str
) -> None:
    owner.run("drop schema pgbus cascade")
    with pytest.raises(DatabaseError, match=f"an administrator run: create schema pgbus authorization {role}"):
        migrate(as_role(shop, role))
    owner.run(f"create schema pgbus authorization {role}")
    assert migrate(as_role(shop, role)) == [1, 2, 3]


def test_a_role_that_may_not_read_the_record_may_still_serve(shop: str, owner: Session, role: str) -> None:
    owner.run(f"revoke select on pgbus.migrations from {role}")
    check(as_role(shop, role))


def test_read_only_transactions_are_named_as_the_reason(shop: str, releases: Releases) -> None:
    url = str(ext.make_dsn(shop, options="-c default_transaction_read_only=on"))
    assert migrate(url) == []
    releases.become(releases.write("later", {**LIBRARY, **FINES}))
    with pytest.raises(DatabaseError, match="transactions are read-only here"):
        migrate(url)


def test_on_a_standby_the_message_asks_for_the_primary(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="pgbus-test-") as folder:
        os.chmod(folder, 0o755)  # the server's user must be able to enter
        with EmbeddedPostgres.open(folder) as server:
            migrate(server.url)
        (Path(folder) / "postgres-18" / "standby.signal").touch()
        with EmbeddedPostgres.open(folder) as server:
            assert migrate(server.url) == []
            check(server.url)
            release(monkeypatch, *KNOWN, LATER)
            with pytest.raises(DatabaseError, match=r"this server is a standby.*: give the primary's URL"):
                migrate(server.url)


def test_a_short_statement_timeout_of_the_role_is_not_ours(shop: str, owner: Session, releases: Releases) -> None:
    owner.run(f"alter database {ext.parse_dsn(shop)['dbname']} set statement_timeout = '50ms'")
    releases.become(releases.write("slow", {**LIBRARY, "0004_slow.sql": "select pg_sleep(0.2)"}))
    assert migrate(shop) == [4]


# as processes: a release that is older than the schema, or newer

NEWER = f"insert into pgbus.migrations (version, name, serves, checksum) values ({NEWEST + 1}, 'newer', %s, '')"


def both(served: Host) -> set[int]:
    """Return the two workers of a server, once both answer."""
    found: set[int] = until(lambda: len(found := served.serving(2)) == 2 and found, "both serve")
    return found


def test_a_worker_that_restarts_beside_a_schema_that_does_not_serve_it_leaves_the_port_to_the_others(
    database: str, sql: Session, tmp_path: Path
) -> None:
    # A worker that ran on would notice within ten seconds, and also refuse new clients.
    (tmp_path / "app.py").write_text(f"from pgbus_gevent.streamer import pulse\npulse.SCHEMA_INTERVAL = 3600.0\n{APP}")
    with host(tmp_path, database, *gunicorn("-w", "2"), workers=2) as served, ExitStack() as stack:
        stays, restarts = both(served)
        sql.run(NEWER, NEWEST + 1)
        os.kill(restarts, signal.SIGKILL)
        until(lambda: "upgrade pgbus-gevent here too" in served.errors, "the next one is refused, and says so")
        for _ in range(40):
            stack.enter_context(served.live())
        assert {served.about()[0] for _ in range(10)} == {stays}
        assert {served.ask("/pgbus/readyz").status for _ in range(10)} == {200}
        sql.run("delete from pgbus.migrations where version = %s", NEWEST + 1)
        served.wait_until_it_serves(2)


def test_a_worker_beside_a_schema_that_stops_serving_it_is_not_ready_until_that_is_undone(
    database: str, sql: Session, tmp_path: Path
) -> None:
    with host(tmp_path, database, *gunicorn("-w", "1")) as served:
        here = served.live()
        sql.run(NEWER, NEWEST + 1)
        until(lambda: b"upgrade pgbus-gevent here too" in served.ask("/pgbus/readyz").body, "it notices")
        assert served.ask("/pgbus/readyz").status == 503
        assert served.ask("/pgbus/healthz").status == 200
        assert not here.closed
        sql.run("delete from pgbus.migrations where version = %s", NEWEST + 1)
        served.wait_until_it_serves(1)


def test_a_worker_restarts_beside_a_newer_schema_that_serves_it(database: str, sql: Session, tmp_path: Path) -> None:
    with host(tmp_path, database, *gunicorn("-w", "2"), workers=2) as served:
        sql.run(NEWER, NEWEST)
        restarts = both(served).pop()
        os.kill(restarts, signal.SIGKILL)
        until(lambda: restarts not in served.children(), "it has gone")
        served.wait_until_it_serves(2)


def test_migrate_of_an_older_release_says_that_the_schema_is_a_newer_one(
    database: str, sql: Session, tmp_path: Path
) -> None:
    sql.run(NEWER, NEWEST)
    said = Cli(tmp_path, database).ok("migrate")
    assert (
        said
        == f"schema pgbus is at version {NEWEST + 1} of a newer release, and still supports this one (version {NEWEST})\n"
    )


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        (NEWER.replace("%s", str(NEWEST + 1)), [], "upgrade pgbus-gevent here too"),
        (
            f"delete from pgbus.migrations where version = {NEWEST}",
            ["--no-migrate"],
            "run `python -m pgbus_gevent migrate`",
        ),
        ("drop schema pgbus cascade", ["--no-migrate"], "schema pgbus is not in this database"),
    ],
    ids=["newer schema", "older schema", "no schema"],
)
def test_serve_refuses_a_schema_that_it_cannot_work_on_in_one_line(
    workers: str, change: str, flags: list[str], said: str, database: str, sql: Session, tmp_path: Path
) -> None:
    sql.run(change)
    command = [sys.executable, "-m", "pgbus_gevent.serve", "--port", "PORT", "--workers", workers, *flags, "app:app"]
    served = Host(tmp_path, database, command)
    try:
        assert served.wait(60) == 1
        last = served.errors.splitlines()[-1]
        assert last.startswith("pgbus-gevent: ") and said in last and "Traceback" not in served.errors
    finally:
        served.close()
