"""Watched tables: every change of a row becomes a message, for every kind of statement and every owner of the table."""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from database_parts import PATIENCE, Ear, Session, Sessions, is_waiting, opened_sessions, raises

from pgbus_gevent.bus import Bus
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.testing.client import StreamClient

INVALID = "22023"
UNDEFINED_COLUMN = "42703"
FORBIDDEN = "42501"

_numbers = count(1)


@pytest.fixture
def table(sql: Session) -> str:
    """A table of three columns that no other test uses."""
    name = f"orders_{next(_numbers)}"
    sql.run(f"create table {name} (id integer primary key, customer integer, note text)")
    return name


def told(sql: Session, stream: str) -> list[dict[str, Any]]:
    return [json.loads(data) for data in sql.data(stream)]


def short(sql: Session, stream: str, key: str = "id") -> list[str]:
    """Return the messages, each as ``insert 7``: the operation, and a column of the row."""
    return [f"{one['op']} {(one['new'] or one['old'] or {}).get(key)}" for one in told(sql, stream)]


def needs(sql: Session, version: int) -> None:
    if sql.connection.server_version < version * 10_000:
        pytest.skip(f"PostgreSQL {version} introduced it")


# the content of a message


def test_every_change_is_published_with_the_row_before_and_after(sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, stream)
    sql.run(f"insert into {table} values (1, 7, 'a')")
    sql.run(f"update {table} set note = 'b'")
    sql.run(f"delete from {table}")
    sql.run(f"truncate {table}")

    a, b = ({"id": 1, "customer": 7, "note": note} for note in "ab")
    assert told(sql, stream) == [
        {"op": "insert", "table": table, "new": a, "old": None},
        {"op": "update", "table": table, "new": b, "old": a},
        {"op": "delete", "table": table, "new": None, "old": b},
        {"op": "truncate", "table": table, "new": None, "old": None},
    ]
    assert sql.column(stream, "event") == [None] * 4
    assert sql.queued() == 0


def test_the_text_of_a_message_is_compact_and_has_the_columns_in_their_order(
    sql: Session, table: str, stream: str
) -> None:
    sql.call("watch_table", table, stream)
    sql.run(f"insert into {table} values (1, null, 'é\"')")
    assert sql.data(stream) == [
        f'{{"op":"insert","table":"{table}","new":{{"id":1,"customer":null,"note":"é\\""}},"old":null}}'
    ]


@pytest.mark.parametrize("rows", [1, 3])
def test_values_come_out_as_postgresqls_own_json(rows: int, sql: Session, stream: str) -> None:
    table = f"kinds_{rows}"
    sql.run(
        f"create table {table} (n numeric, big bigint, x float8, j json, b jsonb, at timestamp, zone timestamptz, day date,"
        " list integer[], flag boolean, bytes bytea, nothing text, low json)"
    )
    sql.call("watch_table", table, stream)
    sql.run(
        f'insert into {table} select 12345678901234567890.1200, 9007199254740993, 1e300, \'{{"b": 1, "a": [1.10]}}\','
        " '{\"b\": 1, \"a\": [1.10]}', '2026-01-02 03:04:05.678', '2026-01-02 03:04:05+00', '2026-01-02',"
        " '{1,null,2}', true, '\\x00ff', null, '\"\\u0000\"' from generate_series(1, %s)",
        rows,
    )
    expected = [row for (row,) in sql.run(f"select row_to_json(r)::text from {table} r")]
    new = [data.split('"new":', 1)[1].rsplit(',"old":', 1)[0] for data in sql.data(stream)]
    assert new == expected
    assert '"n":12345678901234567890.1200,"big":9007199254740993,' in new[0]


def test_a_composite_key_and_nulls_are_columns_like_any_other(sql: Session, stream: str) -> None:
    sql.run("create table lines (a integer, b text, c integer, primary key (a, b))")
    sql.call("watch_table", "lines", stream)
    sql.run("insert into lines values (1, 'x', null)")
    sql.run("update lines set b = 'y'")
    assert told(sql, stream)[1]["old"] == {"a": 1, "b": "x", "c": None}
    assert told(sql, stream)[1]["new"] == {"a": 1, "b": "y", "c": None}


@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_a_large_row_arrives_whole(size: int, sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, stream)
    sql.run(f"insert into {table} values (1, 7, repeat('é', %s))", size // 2)
    sql.run(f"update {table} set customer = 8")
    inserted, updated = told(sql, stream)
    assert inserted["new"]["note"] == updated["old"]["note"] == updated["new"]["note"] == "é" * (size // 2)


def test_dozens_of_large_rows_arrive_whole(sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, f"{stream} {{customer}}")
    sql.run(f"insert into {table} select n, 7, repeat('x', 100000) from generate_series(1, 30) n")
    assert [len(one["new"]["note"]) for one in told(sql, f"{stream} 7")] == [100_000] * 30


def test_the_documents_example_works(pgbus_database: str) -> None:
    document = (Path(__file__).parents[2] / "docs" / "sql.md").read_text(encoding="utf-8")
    section = document.split("## Watching a table\n", 1)[1]
    code, messages = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)[:2]
    with opened_sessions(pgbus_database) as opener:
        sql = opener()
        *statements, query = filter(None, map(str.strip, code.split(";")))
        for statement in statements:
            sql.run(statement)
        assert [data for (data,) in sql.run(query)] == messages.splitlines()


# the stream's name


@pytest.mark.parametrize("others", [0, 2], ids=["one row", "several rows"])
def test_columns_in_the_streams_name_are_filled_from_the_row(
    others: int, sql: Session, table: str, stream: str
) -> None:
    sql.call("watch_table", table, f"{stream}:{{customer}}/{{note}}!{{customer}}")
    sql.run(f"insert into {table} select n, 7, 'ä ''\\%%b' from generate_series(0, %s) n", others)
    sql.run(f"delete from {table}")
    rows = range(others + 1)
    assert short(sql, f"{stream}:7/ä '\\%b!7") == [f"insert {n}" for n in rows] + [f"delete {n}" for n in rows]


@pytest.mark.parametrize("others", [0, 2], ids=["one row", "several rows"])
def test_a_row_that_moves_to_another_stream_is_deleted_from_one_and_inserted_in_the_other(
    others: int, sql: Session, table: str, stream: str
) -> None:
    sql.call("watch_table", table, f"{stream} {{customer}}")
    sql.run(f"insert into {table} select n, 7, 'a' from generate_series(0, %s) n", others)
    sql.run(f"update {table} set customer = 8, note = 'b' where id <> 1")
    sql.run(f"update {table} set note = 'c'")

    stay, move = [n for n in range(others + 1) if n == 1], [n for n in range(others + 1) if n != 1]
    assert short(sql, f"{stream} 7") == [
        *[f"insert {n}" for n in range(others + 1)], *[f"delete {n}" for n in move], *[f"update {n}" for n in stay],
    ]  # fmt: skip
    assert short(sql, f"{stream} 8") == [*[f"insert {n}" for n in move], *[f"update {n}" for n in move]]
    # The readers of a stream do not learn the row's content in another stream.
    assert "b" not in [(one["new"] or one["old"])["note"] for one in told(sql, f"{stream} 7")]
    assert told(sql, f"{stream} 8")[0]["old"] is None


@pytest.mark.parametrize("others", [0, 2], ids=["one row", "several rows"])
def test_a_row_with_null_in_the_name_belongs_to_no_stream(others: int, sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, f"{stream} {{customer}}")
    sql.run(f"insert into {table} select n, null, 'a' from generate_series(0, %s) n", others)
    sql.run(f"update {table} set note = 'b'")
    assert sql.queued() == 0
    sql.run(f"update {table} set customer = 7")
    sql.run(f"update {table} set customer = null")
    sql.run(f"delete from {table}")
    rows = range(others + 1)
    assert short(sql, f"{stream} 7") == [f"insert {n}" for n in rows] + [f"delete {n}" for n in rows]


def test_messages_after_rows_without_a_stream_are_not_lost(sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, f"{stream} {{customer}}")
    with sql.transaction():
        sql.run(f"insert into {table} values (1, null), (2, null)")
        sql.call("broadcast_on_commit", stream, "a")
        sql.run(f"update {table} set note = 'x' where false")
        sql.run(f"delete from {table}")
        sql.call("broadcast_on_commit", stream, "b")
    assert sql.data(stream) == ["a", "b"]
    assert sql.queued() == 0


def test_a_column_in_the_name_must_be_spelt_as_in_the_catalog(sql: Session, stream: str) -> None:
    sql.run('create table spelt ("Customer Id" integer, "r" integer, "n" integer, "new_rows" text, "50%" integer)')
    sql.call("watch_table", "spelt", f"{stream} {{Customer Id}} {{r}} {{50%}}")
    sql.run("insert into spelt values (7, 8, 9, 'x', 5)")
    sql.run("update spelt set n = 10")
    sql.run("insert into spelt values (7, 8, 11, 'y', 5), (7, 8, 12, 'z', 5)")
    assert [one["new"] for one in told(sql, f"{stream} 7 8 5")] == [
        {"Customer Id": 7, "r": 8, "n": n, "new_rows": text, "50%": 5}
        for n, text in [(9, "x"), (10, "x"), (11, "y"), (12, "z")]
    ]
    with raises(INVALID, match='table public.spelt has no column "customer id"'):
        sql.call("watch_table", "spelt", f"{stream} {{customer id}}")


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("text", "a b", "a b"),
        ("boolean", True, "true"),
        ("numeric", "1.50", "1.50"),
        ("date", "2026-01-02", "2026-01-02"),
        ("timestamp", "2026-01-02 03:04:05", "2026-01-02T03:04:05"),
        ("uuid", "6f1c1d0e-0000-4000-8000-000000000001", "6f1c1d0e-0000-4000-8000-000000000001"),
        ("jsonb", '"quoted"', "quoted"),
        ("integer[]", "{1,2}", "[1,2]"),
    ],
)
def test_a_value_in_the_name_has_the_same_text_as_in_json(
    kind: str, value: Any, text: str, sql: Session, stream: str
) -> None:
    table = f"typed_{next(_numbers)}"
    sql.run(f"create table {table} (id integer, v {kind})")
    sql.run("set datestyle = 'SQL, DMY'")
    sql.call("watch_table", table, f"{stream} {{v}}")
    sql.run(f"insert into {table} values (1, %s::{kind})", value)
    assert short(sql, f"{stream} {text}") == ["insert 1"]


@pytest.mark.parametrize(("note", "shown"), [("x" * 250, "xxx"), ("a\nb", "a.nb"), ("\x85", "")])
@pytest.mark.parametrize("others", [0, 2], ids=["one row", "several rows"])
def test_a_row_that_makes_a_bad_name_is_refused(
    others: int, note: str, shown: str, sql: Session, table: str, stream: str
) -> None:
    sql.call("watch_table", table, f"{stream} {{note}}")
    with raises(INVALID, match=f'bad stream name "{stream} {shown}.* for a row of table public.{table}, watched as'):
        sql.run(f"insert into {table} select n, 7, %s from generate_series(0, %s) n", note, others)
    assert sql.one(f"select count(*) from {table}") == 0


def test_a_row_that_makes_an_empty_name_is_refused(sql: Session, table: str) -> None:
    sql.call("watch_table", table, "{note}")
    with raises(INVALID, match='bad stream name ""'):
        sql.run(f"insert into {table} values (1, 7, '')")


@pytest.mark.parametrize("change", ["rename column customer to client", "drop column customer"])
@pytest.mark.parametrize("rows", ["(1, 'a')", "(1, 'a'), (2, 'b')"], ids=["one row", "several rows"])
def test_a_dropped_column_of_the_name_is_an_error_until_the_table_is_watched_again(
    change: str, rows: str, sql: Session, table: str, stream: str
) -> None:
    sql.call("watch_table", table, f"{stream} {{customer}}")
    sql.run(f"insert into {table} values (0, 7)")
    sql.run(f"alter table {table} {change}")
    with raises(
        UNDEFINED_COLUMN,
        match=f'(?s)table public.{table} is watched as "{stream} {{customer}}", but has no column "customer" any more'
        f".*HINT:  Call pgbus.watch_table.'public.{table}', .* or pgbus.unwatch_table.'public.{table}'",
    ):
        sql.run(f"insert into {table} (id, note) values {rows}")
    sql.call("watch_table", table, f"{stream} {{id}}")
    sql.run(f"insert into {table} (id, note) values {rows}")
    assert short(sql, f"{stream} 1") == ["insert 1"]


def test_other_columns_may_be_added_dropped_and_renamed(sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, f"{stream} {{customer}}")
    change = f"update {table} set customer = 7 where id in (select generate_series(1, %s))"
    sql.run(f"insert into {table} values (1, 7, 'a'), (2, 7, 'b')")
    for alteration in ("add extra text default 'e'", "rename note to remark", "drop remark", "alter id type bigint"):
        sql.run(f"alter table {table} {alteration}")
        for rows in (1, 2):
            sql.run(change, rows)
    keys = [sorted(one["new"]) for one in told(sql, f"{stream} 7")[2:]]
    assert keys == [
        *[["customer", "extra", "id", "note"]] * 3,
        *[["customer", "extra", "id", "remark"]] * 3,
        *[["customer", "extra", "id"]] * 6,
    ]


def test_truncate_is_not_published_if_the_name_has_columns(sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, f"{stream} {{customer}}")
    sql.run(f"insert into {table} values (1, 7)")
    sql.run(f"truncate {table}")
    assert short(sql, f"{stream} 7") == ["insert 1"]


# errors


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (None, "bad stream name null"),
        ("", 'bad stream name ""'),
        ("a\nb", "bad stream name"),
        ("x" * 256, "bad stream name"),
        ("x" * 256 + "{id}", "bad stream name"),
        ("\x07{id}", "bad stream name"),
        ("a{b", "braces enclose the name of a column"),
        ("a}b", "braces enclose the name of a column"),
        ("a{}b", "braces enclose the name of a column"),
        ("{{id}}", "braces enclose the name of a column"),
        ("a{ID}", 'has no column "ID"'),
        ("a{id}{ctid}", 'has no column "ctid"'),
        ("a{" + "x" * 100 + "}", 'has no column "xxx'),
    ],
)
def test_a_bad_stream_is_refused(stream: str | None, message: str, sql: Session, table: str) -> None:
    with raises(INVALID, match=message):
        sql.call("watch_table", table, stream)


def test_a_dropped_column_cannot_be_in_the_name(sql: Session, table: str) -> None:
    sql.run(f"alter table {table} drop column note")
    with raises(INVALID, match=f'bad stream "a{{note}}": table public.{table} has no column "note"'):
        sql.call("watch_table", table, "a{note}")


@pytest.mark.parametrize("events", [None, "", " ", ",", "insert,", "upsert", "insert;delete", "insert delete"])
def test_bad_events_are_refused(events: str | None, sql: Session, table: str, stream: str) -> None:
    with raises(INVALID, match="bad events .*: name some of insert, update, delete and truncate, with commas between"):
        sql.call("watch_table", table, stream, events)


def test_truncate_is_refused_as_an_event_if_the_name_has_columns(sql: Session, table: str) -> None:
    with raises(INVALID, match="a TRUNCATE has no row to fill the columns"):
        sql.call("watch_table", table, "a{id}", "insert,truncate")


def test_only_tables_can_be_watched(sql: Session, table: str, stream: str) -> None:
    sql.run(f"create view {table}_view as select * from {table}")
    for target, message in [
        (None, "target is null"),
        (f"{table}_view", f"public.{table}_view is not a table"),
        (f"{table}_pkey", f"public.{table}_pkey is not a table"),
        ("pgbus.outbox", "a table of pgbus itself"),
        ("pgbus.messages", "a table of pgbus itself"),
        ("99999999", "no table with oid 99999999"),
    ]:
        with raises(INVALID, match=message):
            sql.call("watch_table", target, stream)
    with raises("42P01"):
        sql.call("watch_table", "no_such_table", stream)
    with raises(INVALID, match="target is null"):
        sql.call("unwatch_table", None)


# watch and unwatch


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ("insert", ["insert 1"]),
        ("update", ["update 1"]),
        ("delete", ["delete 1", "truncate None"]),
        ("truncate", ["truncate None"]),
        (" INSERT , update", ["insert 1", "update 1"]),
        ("insert,truncate,insert", ["insert 1", "truncate None"]),
        ("insert,update,delete,truncate", ["insert 1", "update 1", "delete 1", "truncate None"]),
    ],
)
def test_events_restrict_the_published_changes(
    events: str, expected: list[str], sql: Session, table: str, stream: str
) -> None:
    sql.call("watch_table", table, stream, events=events)
    sql.run(f"insert into {table} values (1, 7)")
    sql.run(f"update {table} set customer = 8")
    sql.run(f"delete from {table}")
    sql.run(f"truncate {table}")
    assert short(sql, stream) == expected


def test_watching_a_table_again_changes_nothing_and_waits_for_no_lock(
    sessions: Sessions, sql: Session, table: str, stream: str
) -> None:
    sql.call("watch_table", table, stream)
    other = sessions()
    with other.transaction():
        other.run(f"insert into {table} values (1, 7)")
        sql.run("set lock_timeout = '15s'")
        sql.call("watch_table", table, stream)
        assert not is_waiting(other, sql)
    assert short(sql, stream) == ["insert 1"]


def test_watching_with_another_stream_or_events_replaces_the_former_ones(sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, stream)
    sql.call("watch_table", table, f"{stream} {{customer}}", "insert,delete")
    sql.run(f"insert into {table} values (1, 7)")
    sql.run(f"update {table} set note = 'x'")
    sql.call("watch_table", table, f"{stream} other", "update")
    sql.run(f"update {table} set note = 'y'")
    sql.run(f"delete from {table}")
    assert short(sql, stream) == []
    assert short(sql, f"{stream} 7") == ["insert 1"]
    assert short(sql, f"{stream} other") == ["update 1"]


def test_an_unwatched_table_publishes_nothing_more(sql: Session, table: str, stream: str) -> None:
    sql.call("unwatch_table", table)
    sql.call("watch_table", table, stream)
    sql.run(f"insert into {table} values (1, 7)")
    sql.call("unwatch_table", table)
    sql.run(f"delete from {table}")
    assert short(sql, stream) == ["insert 1"]
    assert sql.one("select count(*) from pg_trigger where tgrelid = %s::regclass", table) == 0


def test_watching_rolls_back_with_its_transaction(sql: Session, table: str, stream: str) -> None:
    sql.run("begin")
    sql.call("watch_table", table, stream)
    sql.run(f"insert into {table} values (1, 7)")
    sql.run("rollback")
    sql.run(f"insert into {table} values (2, 7)")
    assert short(sql, stream) == []


def test_a_table_that_is_renamed_stays_watched(sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, stream)
    sql.run(f"alter table {table} rename to {table}_new")
    sql.run(f"insert into {table}_new values (1, 7)")
    assert told(sql, stream)[0]["table"] == f"{table}_new"


def test_dropping_the_schema_drops_the_triggers(pgbus_database: str) -> None:
    with opened_sessions(pgbus_database) as opener:
        sql = opener()
        sql.run("create table t (id integer)")
        sql.call("watch_table", "t", "t")
        sql.run("drop schema pgbus cascade")
        sql.run("insert into t values (1)")
        migrate(pgbus_database)
        again = opener()
        again.call("watch_table", "t", "t")
        again.run("insert into t values (2)")
        assert short(again, "t") == ["insert 2"]


# statements of every kind


def calls(sql: Session) -> Counter[str]:
    """Return how often some functions were called. The numbers are comparable only within one transaction."""
    counted = ["_watch", "_flush", "_append", "broadcast", "broadcast_on_commit"]
    return Counter(
        dict(sql.run("select funcname, calls from pg_stat_xact_user_functions where funcname = any(%s)", counted))
    )


def test_all_rows_of_a_statement_are_one_append(sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, stream)
    sql.run("set track_functions = 'all'")
    # This makes the join of old and new rows a hash join that exceeds its memory and returns them in another order.
    sql.run("set enable_mergejoin = off; set work_mem = '64kB'")
    sql.run(f"insert into {table} values (0, 0, 'so that every plan is made for one row')")
    sql.run(f"update {table} set customer = 1")
    sql.run(f"insert into {table} select n, 7, 'a' from generate_series(1, 9999) n")
    before = sql.call("last_id", stream)
    began = monotonic()
    with sql.transaction():
        earlier = calls(sql)
        sql.run(f"update {table} set customer = customer + 1")
        sql.run("set constraints all immediate")
        after = calls(sql)
    took = monotonic() - began
    assert after - earlier == {"_watch": 1, "_flush": 1, "_append": 1}
    order = [id for (id,) in sql.run(f"select id from {table} order by ctid")]
    messages = [json.loads(data) for _, data in sql.read(stream, before)]
    assert [one["new"]["id"] for one in messages] == order
    assert all(
        one["op"] == "update" and one["new"] == {**one["old"], "customer": one["old"]["customer"] + 1}
        for one in messages
    )
    assert took < 15


def test_rows_for_many_streams_are_one_append_for_each_stream(sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, f"{stream} {{customer}}")
    sql.run("set track_functions = 'all'")
    with sql.transaction():
        earlier = calls(sql)
        sql.run(f"insert into {table} select n, mod(n, 10), 'a' from generate_series(0, 999) n")
        sql.run("set constraints all immediate")
        assert calls(sql) - earlier == {"_watch": 1, "_flush": 1, "_append": 10}
    assert short(sql, f"{stream} 3") == [f"insert {n}" for n in range(3, 1000, 10)]


def test_row_changes_and_messages_of_a_transaction_keep_their_order(sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, stream)
    with sql.transaction():
        sql.call("broadcast_on_commit", stream, '{"op": "mine", "new": {"id": 0}}')
        sql.run(f"insert into {table} values (1, 7), (2, 7)")
        sql.call("broadcast_on_commit", stream, '{"op": "mine", "new": {"id": 1}}')
        sql.run(f"update {table} set note = 'x' where id = 2")
        sql.run(f"delete from {table} where id = 1")
        sql.call("broadcast_on_commit", stream, '{"op": "mine", "new": {"id": 2}}', key="k")
        sql.run(f"insert into {table} values (3, 7)")
        assert sql.data(stream) == []
    assert short(sql, stream) == [
        "mine 0", "insert 1", "insert 2", "mine 1", "update 2", "delete 1", "mine 2", "insert 3",
    ]  # fmt: skip


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_rollbacks_undo_changes(isolation: str, sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, stream)
    with sql.transaction(isolation):
        sql.run("savepoint a")
        sql.run(f"insert into {table} values (1, 7), (2, 7)")
        sql.run("rollback to a")
        sql.run(f"insert into {table} values (3, 7), (4, 7)")
        sql.run("savepoint b")
        sql.run(f"delete from {table}")
        sql.run("rollback to b")
        sql.run(f"insert into {table} values (5, 7)")
    sql.run("begin")
    sql.run(f"delete from {table}")
    sql.run("rollback")
    assert short(sql, stream) == ["insert 3", "insert 4", "insert 5"]
    assert sql.queued() == 0


@pytest.mark.parametrize("rows", [1, 3])
def test_changes_undone_by_an_exception_in_plpgsql_are_not_published(
    rows: int, sql: Session, table: str, stream: str
) -> None:
    sql.call("watch_table", table, stream)
    sql.run(
        f"do $$ begin begin insert into {table} select n from generate_series(1, {rows}) n; raise division_by_zero;"
        f" exception when division_by_zero then null; end; insert into {table} values (9); end $$"
    )
    assert short(sql, stream) == ["insert 9"]
    assert sql.queued() == 0


@pytest.mark.parametrize("rows", [1, 3])
def test_no_change_is_lost_if_constraints_are_immediate(rows: int, sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, stream)
    with sql.transaction():
        sql.run("set constraints all immediate")
        sql.run(f"insert into {table} select generate_series(1, %s)", rows)
        sql.run(f"insert into {table} select generate_series(11, 10 + %s)", rows)
        sql.run("set constraints all deferred")
        sql.run(f"insert into {table} select generate_series(21, 20 + %s)", rows)
    assert short(sql, stream) == [f"insert {tens + n}" for tens in (0, 10, 20) for n in range(1, rows + 1)]
    assert sql.queued() == 0


def test_copy_is_published(sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, stream)
    # The server reads the rows from a program, because psycopg2 cannot COPY under gevent.
    sql.run(f"copy {table} from program $$printf '1\\t7\\ta\\n2\\t7\\tb\\n'$$")
    assert short(sql, stream) == ["insert 1", "insert 2"]


def test_on_conflict_publishes_the_change_of_each_row(sql: Session, table: str, stream: str) -> None:
    sql.run(f"insert into {table} values (1, 7, 'a'), (3, 7, 'c')")
    sql.call("watch_table", table, stream)
    upsert = f"insert into {table} values (%s, 8, 'x'), (%s, 8, 'y') on conflict (id) do"
    sql.run(f"{upsert} update set note = excluded.note", 1, 2)
    sql.run(f"{upsert} nothing", 1, 3)
    assert short(sql, stream) == ["update 1", "insert 2"]


def test_merge_publishes_the_change_of_each_row(sql: Session, table: str, stream: str) -> None:
    needs(sql, 15)
    sql.run(f"insert into {table} select n, 7 from generate_series(1, 4) n")
    sql.call("watch_table", table, stream)
    sql.run(
        f"merge into {table} t using generate_series(1, 6) s on t.id = s"
        " when matched and s < 3 then update set note = 'x' when matched and s = 3 then delete"
        " when matched then do nothing when not matched then insert (id) values (s)"
    )
    assert sorted(short(sql, stream)) == ["delete 3", "insert 5", "insert 6", "update 1", "update 2"]


def test_several_parts_of_one_statement_are_all_published(sql: Session, table: str, stream: str) -> None:
    sql.run(f"insert into {table} select n, 7, 'a' from generate_series(1, 3) n")
    sql.call("watch_table", table, stream)
    sql.run(
        f"with one as (update {table} set note = 'x' where id = 1), two as (delete from {table} where id = 2)"
        f" update {table} set note = 'y' where id = 3"
    )
    assert sorted(short(sql, stream)) == ["delete 2", "update 1", "update 3"]
    assert all(one["old"]["id"] == (one["new"] or one["old"])["id"] for one in told(sql, stream))


def test_the_cascade_of_a_foreign_key_is_published(sql: Session, table: str, stream: str) -> None:
    sql.run(f"create table {table}_lines (id integer, orders integer references {table} on delete cascade)")
    sql.run(f"insert into {table} values (1, 7), (2, 7); insert into {table}_lines values (10, 1), (11, 1), (20, 2)")
    sql.call("watch_table", f"{table}_lines", stream)
    sql.run(f"delete from {table}")
    assert sorted(short(sql, stream)) == ["delete 10", "delete 11", "delete 20"]


def test_a_statement_that_changes_no_row_publishes_nothing(sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, stream)
    sql.run(f"update {table} set note = 'x'; delete from {table}; insert into {table} select 1 where false")
    assert sql.data(stream) == []


def test_a_transaction_that_changes_a_table_rings_once(ear: Ear, sql: Session, table: str, stream: str) -> None:
    sql.call("watch_table", table, stream)
    with sql.transaction():
        for n in range(3):
            sql.run(f"insert into {table} values (%s, 7), (%s, 7)", 2 * n, 2 * n + 1)
    assert [json.loads(payload) for payload in ear.heard_until(sql)] == [["moved", stream]]


def test_transactions_that_change_rows_in_opposite_order_do_not_block_each_other(
    sessions: Sessions, sql: Session, table: str, stream: str
) -> None:
    sql.run(f"insert into {table} values (1, 7), (2, 8)")
    sql.call("watch_table", table, f"{stream} {{customer}}")
    one, other = sessions(), sessions()
    with one.transaction(), other.transaction():
        one.run(f"update {table} set note = 'one' where id = 1")
        other.run(f"update {table} set note = 'other' where id = 2")
        one.run(f"insert into {table} values (3, 8)")
        other.run(f"insert into {table} values (4, 7)")
    assert sorted(short(sql, f"{stream} 7")) == ["insert 4", "update 1"]
    assert sorted(short(sql, f"{stream} 8")) == ["insert 3", "update 2"]


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_reader_that_applies_the_messages_of_a_stream_has_its_rows(
    isolation: str, sql: Session, table: str, stream: str
) -> None:
    chance = random.Random(7)
    sql.call("watch_table", table, f"{stream} {{customer}}")
    for _ in range(40):
        with sql.transaction(isolation):
            for n in range(chance.randrange(1, 5)):
                customer, low = chance.choice(["null", "1", "2", "3"]), chance.randrange(12)
                high = low + chance.choice([0, 0, 3])
                sql.run(f"savepoint s{n}")
                sql.run(
                    chance.choice(
                        [
                            f"insert into {table} select n, {customer} from generate_series({low}, {high}) n"
                            " on conflict (id) do update set customer = excluded.customer",
                            f"update {table} set customer = {customer} where id between {low} and {high}",
                            f"update {table} set note = {table}.id || 'x{n}' where id >= {low}",
                            f"update {table} set customer = mod(id, 3) + 1",
                            f"delete from {table} where id between {low} and {high}",
                        ]
                    )
                )
                if chance.random() < 0.2:
                    sql.run(f"rollback to s{n}")
    for customer in (1, 2, 3):
        rows: dict[int, Any] = {}
        for one in told(sql, f"{stream} {customer}"):
            assert rows.pop((one["old"] or {}).get("id"), None) == one["old"]
            if one["new"]:
                assert one["new"]["id"] not in rows
                rows[one["new"]["id"]] = one["new"]
        expected = sql.run(f"select row_to_json(t) from {table} t where customer = %s", customer)
        assert sorted(rows.values(), key=str) == sorted((row for (row,) in expected), key=str)
    assert sql.queued() == 0


# tables of every kind


def test_a_partitioned_table_publishes_the_rows_of_all_its_partitions(sql: Session, stream: str) -> None:
    sql.run(
        "create table parts (id integer, region integer) partition by list (region);"
        "create table parts_1 partition of parts for values in (1);"
        "create table parts_2 (region integer, gone text, id integer);"  # its columns are in another order
        "alter table parts_2 drop column gone; alter table parts attach partition parts_2 for values in (2)"
    )
    sql.call("watch_table", "parts", f"{stream} {{region}}")
    sql.run("insert into parts values (1, 1), (2, 2)")
    sql.run("update parts set region = 2")
    sql.run("create table parts_3 partition of parts for values in (3)")
    sql.run("insert into parts values (3, 3)")
    sql.run("delete from parts")
    assert short(sql, f"{stream} 1") == ["insert 1", "delete 1"]
    assert sorted(short(sql, f"{stream} 2")) == sorted(["insert 2", "insert 1", "update 2", "delete 2", "delete 1"])
    assert short(sql, f"{stream} 3") == ["insert 3", "delete 3"]
    assert {one["table"] for one in told(sql, f"{stream} 2")} == {"parts"}


def test_direct_writes_to_a_partition_are_published_if_the_partition_is_watched(sql: Session, stream: str) -> None:
    sql.run("create table logs (id integer) partition by list (id)")
    sql.run("create table logs_1 partition of logs for values in (1)")
    sql.call("watch_table", "logs", stream)
    sql.run("insert into logs_1 values (1)")
    assert short(sql, stream) == []
    sql.call("watch_table", "logs_1", stream)
    sql.run("insert into logs_1 values (1); insert into logs values (1)")
    assert [one["table"] for one in told(sql, stream)] == ["logs_1", "logs"]


def test_only_rows_refused_by_their_new_partition_are_deleted_without_an_insert(sql: Session, stream: str) -> None:
    sql.run(
        "create table picky (id integer, region integer) partition by list (region);"
        "create table picky_1 partition of picky for values in (1);"
        "create table picky_2 partition of picky for values in (2);"
        "create function refuse_some() returns trigger language plpgsql as"
        " $$ begin if new.id in (1, 3) then return null; end if; return new; end $$;"
        "create trigger refuse before insert on picky_2 for each row execute function refuse_some();"
        "insert into picky select n, 1 from generate_series(1, 4) n"
    )
    sql.call("watch_table", "picky", stream)
    sql.run("update picky set region = 2")
    assert short(sql, stream) == ["delete 1", "delete 2", "delete 3", "delete 4", "insert 2", "insert 4"]
    assert sql.run("select id from picky order by id") == [(2,), (4,)]


def test_a_parent_publishes_the_rows_of_its_children_with_its_own_columns(sql: Session, stream: str) -> None:
    sql.run("create table parents (id integer); create table children (extra integer) inherits (parents)")
    sql.call("watch_table", "parents", stream)
    sql.run("insert into children values (1, 2)")
    sql.run("update parents set id = 3; delete from parents")
    assert short(sql, stream) == ["update 3", "delete 3"]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("kind", "version"), [("stored", 12), ("virtual", 18)])
def test_generated_columns_are_published(kind: str, version: int, rows: int, sql: Session, stream: str) -> None:
    needs(sql, version)
    table = f"generated_{kind}_{rows}"
    sql.run(
        f"create table {table} (id integer, gone text, twice integer generated always as (id * 2) {kind}, r text,"
        f" \"Lower 'R'\" text generated always as (lower(r) || '%{{x}}') {kind})"
    )
    sql.run(f"alter table {table} drop column gone")
    sql.call("watch_table", table, f"{stream} {{twice}}" if rows == 1 else stream)
    sql.run(f"insert into {table} (id, r) select n, 'R' from generate_series(1, {rows}) n")
    sql.run(f"update {table} set r = 'S'")
    stream = f"{stream} 2" if rows == 1 else stream
    assert [one["new"] for one in told(sql, stream)] == [
        {"id": n, "twice": 2 * n, "r": letter, "Lower 'R'": f"{letter.lower()}%{{x}}"}
        for letter in "RS"
        for n in range(1, rows + 1)
    ]
    assert told(sql, stream)[-1]["old"]["twice"] == 2 * rows


def test_names_in_mixed_case_and_other_schemas_are_published_unchanged(sql: Session, stream: str) -> None:
    sql.run('create schema "My Shop"; create table "My Shop"."Order ""Items""" ("Id" integer, "select" integer)')
    target = '"My Shop"."Order ""Items"""'
    sql.call("watch_table", target, f"{stream} {{select}}")
    sql.run(f"insert into {target} values (1, 7)")
    sql.run(f"insert into {target} values (2, 7), (3, 7)")
    assert short(sql, f"{stream} 7", "Id") == ["insert 1", "insert 2", "insert 3"]
    assert {one["table"] for one in told(sql, f"{stream} 7")} == {'My Shop.Order "Items"'}
    sql.call("unwatch_table", target)
    sql.run(f"delete from {target}")
    assert len(sql.data(f"{stream} 7")) == 3


def test_a_table_with_dropped_columns_can_be_watched(sql: Session, table: str, stream: str) -> None:
    sql.run(f"alter table {table} drop column customer")
    sql.call("watch_table", table, f"{stream} {{note}}")
    sql.run(f"insert into {table} values (1, 'a')")
    sql.run(f"insert into {table} values (2, 'a'), (3, 'a')")
    assert [one["new"] for one in told(sql, f"{stream} a")] == [{"id": n, "note": "a"} for n in (1, 2, 3)]


# roles that write


@pytest.mark.parametrize("path", ["''", "evil, pg_catalog", "pg_temp"])
def test_the_writers_search_path_does_not_matter(path: str, sql: Session, table: str, stream: str) -> None:
    sql.run("create schema if not exists evil")
    sql.run("create or replace function evil.never(text, text) returns text language sql as $$ select 'evil' $$")
    if not sql.one("select exists (select from pg_operator where oprnamespace = 'evil'::regnamespace)"):
        sql.run("create operator evil.|| (function = evil.never, leftarg = text, rightarg = text)")
    sql.call("watch_table", table, f"{stream} {{customer}}")
    sql.run(f"set search_path = {path}")
    sql.run(f"insert into public.{table} values (1, 7)")
    sql.run(f"insert into public.{table} values (2, 7), (3, 7)")
    sql.call("watch_table", f"public.{table}", f"{stream} {{id}}")
    sql.run("reset search_path")
    assert short(sql, f"{stream} 7") == ["insert 1", "insert 2", "insert 3"]


@contextmanager
def roles(sql: Session, *names: str) -> Iterator[None]:
    for name in names:
        sql.run(f"create role {name}")
    try:
        yield
    finally:
        for name in names:
            sql.run(f"drop owned by {name}; drop role {name}")


def test_a_publisher_can_watch_its_table_and_writers_need_no_other_rights(
    sessions: Sessions, sql: Session, stream: str
) -> None:
    owner, writer = (f"pgbus_test_watch_{kind}_{os.getpid()}" for kind in ("owner", "writer"))
    with roles(sql, owner, writer):
        sql.run(f"create schema theirs authorization {owner}")
        for role in (owner, writer):
            sql.call("grant_publisher", role)
        session, other = sessions(role=owner), sessions(role=writer)
        session.run("create table theirs.orders (id integer, customer integer)")
        session.run(f"grant usage on schema theirs to {writer}; grant insert on theirs.orders to {writer}")
        session.call("watch_table", "theirs.orders", f"{stream} {{customer}}")
        session.run("insert into theirs.orders values (1, 7)")
        other.run("insert into theirs.orders values (2, 7)")
        other.run("insert into theirs.orders values (3, 7), (4, 7)")
        assert short(sql, f"{stream} 7") == ["insert 1", "insert 2", "insert 3", "insert 4"]
        with raises(FORBIDDEN):
            other.call("watch_table", "theirs.orders", stream)
        with raises(FORBIDDEN):
            other.call("unwatch_table", "theirs.orders")
        session.call("unwatch_table", "theirs.orders")


# to the browser


def test_a_change_of_a_row_reaches_the_client_of_its_stream(
    pgbus_bus: Bus, pgbus_client: Callable[..., StreamClient]
) -> None:
    with pgbus_bus.transaction() as cursor:
        cursor.execute("create table orders (id integer primary key, customer integer, note text)")
        cursor.execute("select pgbus.watch_table('orders', 'customer:{customer}')")
    client = pgbus_client("customer:7")
    client.next("pgbus:connected", timeout=PATIENCE)
    with pgbus_bus.transaction() as cursor:
        cursor.execute("insert into orders values (1, 7, 'a'), (2, 8, 'b')")
        cursor.execute("update orders set note = repeat('x', 100000) where id = 1")
        cursor.execute("update orders set customer = 8 where id = 1")
    frames = [json.loads(client.next(timeout=PATIENCE).data) for _ in range(3)]
    assert [frame["op"] for frame in frames] == ["insert", "update", "delete"]
    assert frames[1]["new"] == {"id": 1, "customer": 7, "note": "x" * 100_000}
    assert client.quiet(0.2)
