"""The command that checks what the streams depend on, on databases with and without problems."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import psycopg2.extensions as ext
import pytest
from cli_parts import Cli
from database_parts import Session, opened_sessions, until
from doctor_parts import check_line, checked

from pgbus_gevent.bus import Bus
from pgbus_gevent.commands import findings as checks_of_doctor
from pgbus_gevent.commands.finding import FAIL, OK, WARN, Finding
from pgbus_gevent.commands.findings import findings
from pgbus_gevent.database import Database
from pgbus_gevent.database.checks import Checks, Oldest, Rows
from pgbus_gevent.database.notifications import ListenSession
from pgbus_gevent.database.schema import migrations
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.databases import TestDatabases

NAMES = {
    "database", "primary", "encoding", "schema", "rights", "listen", "ids", "locks", "sessions", "clock", "transactions",
    "notifications", "vacuum", "descriptors", "steward",
}  # fmt: skip


@pytest.fixture(scope="module")
def url(pgbus_databases: TestDatabases) -> str:
    return pgbus_databases.make()


@pytest.fixture
def sql(url: str) -> Iterator[Session]:
    with opened_sessions(url) as opener:
        yield opener()


def look(url: str, **settings: Any) -> dict[str, Finding]:
    settings = {"connect_timeout": 20.0, "max_connections": 10, **settings}
    return {found.check: checked(found) for found in findings(Settings(database_url=url, **settings))}


def test_there_is_no_problem_on_a_database_of_the_tests(url: str) -> None:
    found = look(url)
    assert set(found) == NAMES
    assert {name: one for name, one in found.items() if one.level == FAIL} == {}
    assert all(not one.todo for one in found.values() if one.level == OK)
    assert all(one.todo for one in found.values() if one.level != OK)


def test_an_unreachable_database_is_one_finding_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = look(f"postgresql://nobody@127.0.0.1:{port}/none")
    assert set(found) == {"database", "descriptors"}
    assert found["database"].level == FAIL and "check the URL" in found["database"].todo


def test_a_database_without_the_schema_fails_and_says_how_to_make_it(pgbus_databases: TestDatabases) -> None:
    url = pgbus_databases.make_empty()
    found = look(url)
    assert found["schema"].level == FAIL and "pgbus-gevent migrate" in found["schema"].todo
    assert "rights" not in found and "vacuum" not in found
    pgbus_databases.drop(url)


@pytest.mark.parametrize(
    ("change", "level", "word"),
    [
        ("delete from pgbus.migrations where version = %s", FAIL, "pgbus-gevent migrate"),
        ("insert into pgbus.migrations select 1 + %s, 'later', 1 + %s, ''", FAIL, "newer release"),
        ("insert into pgbus.migrations select 1 + %s, 'later', %s, ''", OK, ""),
        ("update pgbus.migrations set checksum = '' where version = %s", FAIL, "not as this release makes it"),
    ],
    ids=["older", "newer", "newer but compatible", "another"],
)
def test_a_schema_of_another_release_fails_unless_it_serves_this_one(
    change: str, level: str, word: str, pgbus_databases: TestDatabases
) -> None:
    url, newest = pgbus_databases.make(), migrations()[-1].version
    with opened_sessions(url) as opener:
        opener().run(change, *[newest] * change.count("%s"))
    found = look(url)["schema"]
    assert found.level == level and word in (found.todo or "")
    pgbus_databases.drop(url)


def test_a_role_without_rights_learns_which_it_lacks(url: str, sql: Session) -> None:
    sql.run("create role pgbus_test_doctor")
    sql.run("grant usage on schema pgbus to pgbus_test_doctor")
    sql.run("grant select on pgbus.migrations, pgbus.messages to pgbus_test_doctor")
    try:
        dsn = str(ext.make_dsn(url, options="-c role=pgbus_test_doctor"))
        found = look(dsn)["rights"]
        assert found.level == FAIL and 'role "pgbus_test_doctor" lacks ' in found.text
        assert len(found.text) < 400 and found.text.endswith(" more rights (--json has all)")
        missing = found.figures["missing"]
        assert isinstance(missing, list) and any(right.startswith("execute on pgbus.prune(") for right in missing)
        assert {"select on pgbus.horizons", "insert on pgbus.token_guesses"} <= set(missing)
        assert "select on pgbus.messages" not in missing
        assert "docs/sql.md" in found.todo and "docs/retention.md" in found.todo
        # What it says is what helps.
        for call in re.findall(r"select pgbus\.grant_\w+\('pgbus_test_doctor'\)", found.todo):
            sql.run(call)
        assert look(dsn)["rights"].level == OK
        sql.run("revoke select on pgbus.workers from pgbus_test_doctor")
        found = look(dsn)["rights"]
        assert found.level == FAIL and found.text.endswith("lacks select on pgbus.workers")
        assert "grant_server" in found.todo and "grant_pruner" not in found.todo
    finally:
        sql.run("drop owned by pgbus_test_doctor")
        sql.run("drop role pgbus_test_doctor")


def test_a_role_without_usage_of_the_schema_is_a_failure(url: str, sql: Session) -> None:
    """One finding says so and names the owner; the checks that cannot run report nothing."""
    sql.run("create role pgbus_test_stranger")
    owner = sql.one("select nspowner::regrole::text from pg_namespace where nspname = 'pgbus'")
    try:
        found = look(str(ext.make_dsn(url, options="-c role=pgbus_test_stranger")))
        assert found["rights"].level == FAIL and owner in found["rights"].todo and "docs/sql.md" in found["rights"].todo
        assert '"pgbus_test_stranger"' in found["rights"].text and "usage on schema pgbus" in found["rights"].text
        # These depend on what else the machine and the server do now.
        shared = {"database", "clock", "sessions", "transactions", "notifications", "descriptors"}
        assert [name for name, one in found.items() if one.level != OK and name not in shared] == ["rights"]
        assert found["primary"].level == OK and "listen" not in found
    finally:
        sql.run("drop role pgbus_test_stranger")


def test_a_role_is_judged_by_the_grants_that_it_is_meant_to_have(url: str, sql: Session) -> None:
    sql.run("create role pgbus_test_publisher")
    sql.run("select pgbus.grant_publisher('pgbus_test_publisher')")
    settings = Settings(database_url=str(ext.make_dsn(url, options="-c role=pgbus_test_publisher")), max_connections=10)
    try:
        assert {one.check: one.level for one in findings(settings, ["publisher"])}["rights"] == OK
        assert {one.check: one.level for one in findings(settings)}["rights"] == FAIL
    finally:
        sql.run("drop owned by pgbus_test_publisher")
        sql.run("drop role pgbus_test_publisher")


def test_a_deaf_pooler_is_found(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ListenSession, "hears", lambda self: False)
    found = look(url)["listen"]
    assert (found.level, "pooler" in found.text, "PGBUS_LISTEN_URL" in found.todo) == (FAIL, True, True)
    assert look(url, wake="poll")["listen"].level == OK


def test_a_notification_that_is_late_once_is_no_finding(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [False, True]
    monkeypatch.setattr(ListenSession, "hears", lambda self: answers.pop(0))
    assert look(url)["listen"].level == OK and answers == []


def test_an_answer_that_is_late_once_does_not_put_the_clock_off(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(Settings(database_url=url))
    ask, late = Checks._one, [True]

    def answer(checks: Checks, statement: str, *arguments: Any) -> Any:
        found = ask(checks, statement, *arguments)
        if late and "clock_timestamp" in statement:
            late.clear()
            gevent.sleep(3.0)
        return found

    monkeypatch.setattr(Checks, "_one", answer)
    assert abs(Checks(database.pool).clock_offset()) < 1.0 and not late
    database.close()


def test_more_sessions_than_the_server_has_fail(url: str) -> None:
    assert look(url, workers=1000)["sessions"].level == FAIL


def test_an_open_transaction_is_found(url: str) -> None:
    database = Database(Settings(database_url=url))
    with Bus(url) as bus, bus.transaction() as cursor:
        cursor.execute("select pgbus.broadcast('orders', 'x'), pg_backend_pid()")
        ((_, pid),) = cursor.fetchall()

        def found() -> Any:
            # It covers the whole server, so for a moment it may be a transaction of another test.
            oldest = Checks(database.pool).oldest_transaction()
            return oldest if oldest is not None and oldest.pid == pid else None

        oldest = until(found, "it is seen", 120.0)
        assert oldest.application == "pgbus-pool" and 0 <= oldest.seconds < 180
    database.close()


@pytest.mark.parametrize(("seconds", "level"), [(5, OK), (300, OK), (7200, WARN)])
def test_a_transaction_that_is_open_for_long_is_warned_of(
    seconds: float, level: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checks, "oldest_transaction", lambda self: Oldest(4711, "pg_dump", "active", seconds))
    found = look(url)["transactions"]
    assert found.level == level
    if level == WARN:
        assert "4711 (pg_dump, active)" in found.text and "2 hours" in found.text


@pytest.mark.parametrize(("usage", "level"), [(0.0, OK), (0.2, WARN), (0.9, FAIL)])
def test_a_queue_of_notifications_that_fills_up_is_reported(
    usage: float, level: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checks, "queue_usage", lambda self: usage)
    assert look(url)["notifications"].level == level


@pytest.mark.parametrize(
    ("rows", "level"),
    [
        (Rows(1000, 10, 5.0, True), OK),
        (Rows(1000, 1_000_000, None, True), WARN),
        (Rows(1000, 10, 5.0, False), WARN),
    ],
)
def test_dead_rows_and_a_missing_autovacuum_are_reported(
    rows: Rows, level: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checks, "rows", lambda self: rows)
    assert look(url)["vacuum"].level == level


def test_the_clock_and_the_descriptors_are_reported(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checks, "clock_offset", lambda self: -3.5)
    monkeypatch.setattr(checks_of_doctor.resource, "getrlimit", lambda which: (256, 256))
    found = look(url)
    assert (found["clock"].level, "3500 ms behind" in found["clock"].text) == (WARN, True)
    assert (found["descriptors"].level, "LimitNOFILE" in found["descriptors"].todo) == (WARN, True)


# as a command ---------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_line_for_each_and_ends_with_0(url: str, tmp_path: Path) -> None:
    cli = Cli(tmp_path, url)
    lines = [line for line in cli.ok("doctor").splitlines() if not line.startswith(" ")]
    assert {line.split()[1] for line in lines} == NAMES
    assert all(re.match(r"(ok|warn) +\w+ +\S", line) for line in lines)
    entries = {
        entry["check"]: entry for entry in map(check_line, map(json.loads, cli.ok("doctor", "--json").splitlines()))
    }
    assert set(entries) == NAMES
    assert entries["database"]["figures"]["answer_seconds"] > 0 and entries["sessions"]["figures"]["maximum"] > 0


def test_the_command_ends_with_1_if_a_check_fails(pgbus_databases: TestDatabases, tmp_path: Path) -> None:
    url = pgbus_databases.make_empty()
    status, out, err = Cli(tmp_path, url).run("doctor")
    assert (status, err) == (1, "")
    assert re.search(r"^fail schema .*\n +→ run `pgbus-gevent migrate`", out, re.MULTILINE)


def test_the_command_refuses_a_grant_that_does_not_exist(url: str, tmp_path: Path) -> None:
    assert "there is no grant 'king'" in Cli(tmp_path, url).fails(2, "doctor", "--rights", "server,king")


def test_connections_lists_the_workers_of_all_hosts(url: str, tmp_path: Path) -> None:
    cli = Cli(tmp_path, url)
    assert cli.ok("connections").split() == ["HOST", "PID", "CONNECTIONS", "STREAMS", "MESSAGES", "STATE", "TOLD"]

    def beat(bus: Bus) -> None:
        """Give signs of life, which hold for 20 s. A command may take half of that to start."""
        for n in (1, 2):
            facts = {"connections": 1000 * n, "streams": 3, "messages": 7, "unready": None if n == 1 else "restart"}
            bus.database.fleet.beat(f"w{n}", f"web-{n}", 4711, 0.0, facts)

    with Bus(url) as bus:
        beat(bus)
        out = [line.split() for line in cli.ok("connections").splitlines()]
        assert [line[:3] for line in out[1:3]] == [["web-1", "4711", "1,000"], ["web-2", "4711", "2,000"]]
        assert (out[1][5], out[2][5], out[3]) == ("serving", "restart", ["all", "3,000"])
        beat(bus)
        entries = [json.loads(line) for line in cli.ok("connections", "--json").splitlines()]
        assert [(entry["host"], entry["connections"]) for entry in entries] == [("web-1", 1000), ("web-2", 2000)]
        for n in (1, 2):
            bus.database.fleet.leave(f"w{n}")


def test_a_silent_worker_disappears_from_the_list_and_later_from_the_table(url: str, sql: Session) -> None:
    with Bus(url) as bus:
        bus.database.fleet.beat("silent", "web-1", 1, 0.0, {})
        assert [worker.id for worker in bus.database.fleet.workers()] == ["silent"]
        sql.run("update pgbus.workers set seen_at = seen_at - interval '1 minute'")
        assert bus.database.fleet.workers() == []
        sql.run("update pgbus.workers set seen_at = seen_at - interval '1 hour'")
        gevent.joinall([gevent.spawn(bus.database.fleet.beat, f"w{n}", "web-1", n, 0.0, {}) for n in range(3)])
        assert sql.run("select id from pgbus.workers order by id") == [("w0",), ("w1",), ("w2",)]
        sql.run("delete from pgbus.workers")
