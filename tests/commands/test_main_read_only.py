"""Programs that only read change nothing in the database, in any state of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gevent
import psycopg2
import psycopg2.extensions as ext
import pytest
from cli_parts import Cli, Tail

from pgbus_gevent.bus import Bus
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance


def read_only(url: str) -> str:
    return str(ext.make_dsn(url, options="-c default_transaction_read_only=on"))


def execute(url: str, statement: str) -> list[Any]:
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


def content(url: str) -> dict[str, list[Any]]:
    """All rows of all tables of the schema."""
    tables = execute(
        url, "select relname from pg_class where relnamespace = 'pgbus'::regnamespace and relkind = 'r' order by 1"
    )
    # The database is a copy of a template, with its channels. The first server that asks gives it new ones.
    return {table: execute(url, f"select t::text from pgbus.{table} t order by 1") for (table,) in tables}


@pytest.fixture
def old(pgbus_database: str, pgbus_bus: Bus) -> str:
    """A database in which a server would have much to clean up: messages and members."""
    pgbus_bus.stream("orders").broadcast_many(["one", "two", "three"])
    pgbus_bus.stream("orders").presence.join("7")
    execute(pgbus_database, "update pgbus.messages set created_at = now() - interval '1 year'")
    execute(pgbus_database, "update pgbus.presence set expires_at = now() - interval '1 hour'")
    execute(
        pgbus_database,
        "insert into pgbus.workers (id, host, pid, started_at, seen_at, facts)"
        " values ('gone', 'host', 1, now(), now() - interval '1 hour', '{}')",
    )
    pgbus_bus.close()
    return pgbus_database


def test_tail_changes_nothing(old: str, tmp_path: Path) -> None:
    before = content(old)
    cli = Cli(tmp_path, old)
    with Tail(cli, "orders", "--since", "0", PGBUS_PRUNE_INTERVAL="0.05", PGBUS_PRESENCE="*") as tail:
        assert [tail.line().split()[-1] for _ in range(3)] == ["one", "two", "three"]
        gevent.sleep(1.0)  # a pruner would have run many times by now
        tail.signal()
        assert tail.end().err == ""
    assert content(old) == before


def test_an_instance_that_only_reads_has_no_part_that_writes(pgbus_settings: Settings) -> None:
    def writing(**options: bool) -> set[str]:
        instance = Instance(pgbus_settings, **options)
        instance.shutdown(0.0)
        return set(instance.tasks) & {"presence", "pruner"}

    assert writing() == {"presence", "pruner"} and not writing(read_only=True)


def test_tail_follows_with_a_role_whose_transactions_are_read_only(old: str, tmp_path: Path) -> None:
    cli = Cli(tmp_path, read_only(old))
    with Tail(cli, "orders", "--json", PGBUS_PRUNE_INTERVAL="0.05") as tail, Bus(old, migrate=False) as bus:
        tail.sync(bus, "orders")
        bus.stream("orders").broadcast("new")
        assert tail.message()["data"] == "new"
        tail.signal()
        assert tail.end().err == ""


@pytest.mark.parametrize("command", ["streams", "connections", "doctor"])
def test_the_other_readers_change_nothing(command: str, old: str, tmp_path: Path) -> None:
    before = content(old)
    ended = Cli(tmp_path, old).run(command)
    # The doctor may find a problem of this machine, which does not matter here.
    assert ended.err == "" and ended.out
    assert content(old) == before
    ended = Cli(tmp_path, read_only(old)).run(command)
    assert ended.err == "" and "read-only" not in ended.out


@pytest.fixture
def role(old: str) -> Iterator[str]:
    """A role that may log in, and has no other rights."""
    name = f"pgbus_test_looker_{os.getpid()}"
    execute(old, f"create role {name} login")
    yield name
    execute(old, f"drop owned by {name}")
    execute(old, f"drop role {name}")


@pytest.mark.parametrize("command", ["streams", "connections", "tail orders"])
def test_a_role_without_rights_is_told_what_to_do_in_one_line(
    command: str, old: str, role: str, tmp_path: Path
) -> None:
    execute(old, f"select pgbus.grant_reader('{role}')")
    told = Cli(tmp_path, str(ext.make_dsn(old, user=role))).fails(1, *command.split())
    assert "docs/sql.md" in told


def test_the_rights_of_a_server_are_enough_for_these_programs(old: str, role: str, tmp_path: Path) -> None:
    execute(old, f"select pgbus.grant_server('{role}')")
    cli = Cli(tmp_path, str(ext.make_dsn(old, user=role)))
    assert "orders" in cli.ok("streams") and cli.ok("connections")
    with Tail(cli, "orders", "--since", "0") as tail:
        assert [tail.line().split()[-1] for _ in range(3)] == ["one", "two", "three"]
        tail.signal()
        assert tail.end().err == ""
