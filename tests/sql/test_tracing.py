"""A message has the trace that its session had set when it was published, in every way of publishing."""

from __future__ import annotations

import json

import pytest
from database_parts import Ear, Session, opened_sessions, raises
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.traces import sampled
from pgbus_gevent.core.wakes import NewMessage, parse
from pgbus_gevent.database import schema
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.testing.databases import TestDatabases

ONE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TWO = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03"


def put(sql: Session, value: str, local: bool = True) -> None:
    sql.run("select set_config('pgbus.traceparent', %s, %s)", value, local)


def traces(sql: Session, stream: str) -> list[str | None]:
    return sql.column(stream, "trace")


@pytest.mark.parametrize("function", ["broadcast", "broadcast_on_commit"])
@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
@pytest.mark.parametrize("key", [None, "k"])
def test_a_message_has_the_trace_of_its_transaction(
    function: str, isolation: str, key: str | None, sql: Session, stream: str
) -> None:
    with sql.transaction(isolation):
        put(sql, ONE)
        sql.call(function, stream, "traced", key=key)
    sql.call(function, stream, "not traced")
    assert traces(sql, stream) == [ONE, None]


def test_a_batch_has_it_too(sql: Session, stream: str) -> None:
    with sql.transaction():
        put(sql, ONE)
        sql.call("broadcast_many", stream, ["a", "b"])
    assert traces(sql, stream) == [ONE, ONE]


def test_changes_of_a_watched_table_have_it(sql: Session, stream: str) -> None:
    sql.run("create table watched_with_a_trace (id integer primary key)")
    sql.call("watch_table", "watched_with_a_trace", stream)
    with sql.transaction():
        put(sql, ONE)
        sql.run("insert into watched_with_a_trace values (1), (2)")
    assert traces(sql, stream) == [ONE, ONE]


def test_messages_of_one_transaction_keep_the_traces_that_they_were_queued_with(sql: Session, stream: str) -> None:
    other = f"{stream} other"
    with sql.transaction():
        sql.call("broadcast_on_commit", stream, "a")
        put(sql, ONE)
        sql.call("broadcast_on_commit", stream, "b")
        sql.call("broadcast_on_commit", other, "b")
        put(sql, TWO)
        sql.call("broadcast_on_commit", stream, "c")
        put(sql, "")
        sql.call("broadcast_on_commit", stream, "d")
    assert list(zip(sql.data(stream), traces(sql, stream), strict=True)) == [
        ("a", None),
        ("b", ONE),
        ("c", TWO),
        ("d", None),
    ]
    assert traces(sql, other) == [ONE]


@pytest.mark.parametrize("messages", [1, 2])
def test_the_flush_leaves_the_setting_as_it_was(messages: int, sql: Session, stream: str) -> None:
    with sql.transaction():
        put(sql, ONE)
        for _ in range(messages):
            sql.call("broadcast_on_commit", stream, "queued")
        put(sql, TWO)
        sql.run("set constraints all immediate")
        assert sql.one("select current_setting('pgbus.traceparent')") == TWO
        sql.call("broadcast", stream, "now")
    assert traces(sql, stream) == [ONE] * messages + [TWO]
    assert sql.one("select coalesce(current_setting('pgbus.traceparent', true), '')") == ""


@pytest.mark.parametrize("messages", [1, 3])
@pytest.mark.parametrize("value", [ONE, "", "nonsense"])
def test_what_is_set_after_the_queueing_does_not_count(messages: int, value: str, sql: Session, stream: str) -> None:
    with sql.transaction():
        for n in range(messages):
            sql.call("broadcast_on_commit", stream, str(n))
        put(sql, value)
    assert (sql.data(stream), traces(sql, stream)) == ([str(n) for n in range(messages)], [None] * messages)


def test_a_setting_of_the_session_holds_for_all_its_messages(sql: Session, stream: str) -> None:
    put(sql, ONE, local=False)
    for function in ("broadcast", "broadcast_on_commit"):
        sql.call(function, stream, "x")
    assert traces(sql, stream) == [ONE, ONE]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    st.one_of(
        st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")), st.text("0-1af", max_size=60)
    )
)
@example(ONE)
@example(ONE[:-1] + "0")
@example(ONE.upper())
@example(ONE + "\n")
@example("\n" + ONE)
@example("x" * 100_000)
@example(f"00-{'0' * 32}-b7ad6b7169203331-01")
@example(f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01")
@example("ff" + ONE[2:])
@example("01" + ONE[2:])
@example(ONE + "-more")
def test_a_value_that_is_no_sampled_trace_neither_counts_nor_fails(sql: Session, value: str) -> None:
    with sql.transaction():
        put(sql, value)
        id = sql.call("broadcast", "any text", "x")
    found = sql.one("select trace from pgbus.messages where stream = 'any text' and msg_id = %s", id)
    assert found == sampled(value)


def test_the_notification_carries_the_trace_and_otherwise_is_as_before(sql: Session, ear: Ear, stream: str) -> None:
    with sql.transaction():
        put(sql, ONE)
        sql.call("broadcast", stream, "x")
    sql.call("broadcast", stream, "y")
    traced, plain = ear.heard_until(sql)
    wake = parse(traced)
    assert isinstance(wake, NewMessage) and (wake.data, wake.trace) == ("x", ONE)
    assert len(json.loads(plain)) == 9 and json.loads(traced)[:-1] == [*json.loads(traced)[:9]]


def test_the_steward_rings_with_the_trace(sql: Session, stream: str) -> None:
    with sql.transaction():
        put(sql, ONE)
        id = sql.call("broadcast", stream, "x")
    plain = sql.call("broadcast", stream, "y")
    wakes = [parse(wake) for _, _, wake in sql.run("select * from pgbus._wakes(%s, 7900)", [id, plain])]
    assert [wake.trace for wake in wakes if isinstance(wake, NewMessage)] == [ONE, None]
    assert sql.run("select wake from pgbus._wakes(%s, 0)", [id]) == [(json.dumps(["moved", stream]),)]


def test_a_publisher_has_no_right_to_the_column(sessions: object, sql: Session, stream: str) -> None:
    sql.run("create role traced_publisher")
    try:
        sql.call("grant_publisher", "traced_publisher")
        sql.run("set role traced_publisher")
        with sql.transaction():
            put(sql, ONE)
            sql.call("broadcast", stream, "x")
            sql.call("broadcast_on_commit", stream, "y")
        with raises("42501"):
            sql.run("select trace from pgbus.messages")
        sql.run("reset role")
        assert traces(sql, stream) == [ONE, ONE]
    finally:
        sql.run("reset role")
        sql.call("revoke_rights", "traced_publisher")
        sql.run("drop role traced_publisher")


def test_messages_of_schema_7_have_no_trace_after_the_upgrade_and_are_read_as_before(
    pgbus_databases: TestDatabases, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, known = pgbus_databases.make_empty(), schema.migrations()
    with monkeypatch.context() as patch, opened_sessions(url) as sessions:
        patch.setattr(schema, "migrations", lambda: known[:7])
        migrate(url)
        old = sessions()
        old.call("broadcast", "orders", "before")
    with opened_sessions(url) as sessions, Bus(url) as bus:
        bus.database  # noqa: B018  # upgrades
        new = sessions()
        assert [message.data for message in bus.stream("orders")] == ["before"]
        # As a publisher of release 7 would, whose statements are the same.
        new.call("broadcast", "orders", "after")
        assert traces(new, "orders") == [None, None]
        assert new.one("select max(version) from pgbus.migrations") >= 8
        assert new.one("select serves from pgbus.migrations where version = 8") == 7
