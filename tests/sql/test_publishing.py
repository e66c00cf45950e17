"""The functions of schema pgbus, one session at a time: their results, the rows that they store, and their errors."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg2
import pytest
from database_parts import Session, Sessions, opened_sessions, raises
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgbus_gevent.core.names import check_event, check_name
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.errors import InvalidArgument

INVALID = "22023"
PUBLISHING = ["broadcast", "broadcast_many", "broadcast_on_commit", "broadcast_ephemeral"]

many_examples = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
names = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=60)


def publish(sql: Session, function: str, stream: Any, data: Any = "x", event: Any = None) -> Any:
    return sql.call(function, stream, [data] if function == "broadcast_many" else data, event)


# broadcast


def test_broadcast_returns_the_id_under_which_read_after_gives_the_message(sql: Session, stream: str) -> None:
    before = datetime.now(timezone.utc) - timedelta(seconds=5)
    id = sql.call("broadcast", stream, "<p>paid</p>", "order.paid", "admins", "c7", "k")

    [(msg_id, created_at, *rest)] = sql.run("select * from pgbus.read_after(%s, 0)", stream)
    assert msg_id == id
    assert before < created_at < datetime.now(timezone.utc) + timedelta(seconds=5)
    assert rest == ["order.paid", "<p>paid</p>", "admins", "c7"]


def test_omitted_arguments_are_null(sql: Session, stream: str) -> None:
    sql.call("broadcast", stream, "x")
    rows = sql.run("select event, visible_to, exclude, key from pgbus.messages where stream = %s", stream)
    assert rows == [(None, None, None, None)]


@pytest.mark.parametrize("function", PUBLISHING[:3])
def test_an_empty_event_counts_as_none(function: str, sql: Session, stream: str) -> None:
    publish(sql, function, stream, event="")
    assert sql.column(stream, "event") == [None]


@pytest.mark.parametrize("function", PUBLISHING[:3])
def test_data_may_be_empty(function: str, sql: Session, stream: str) -> None:
    publish(sql, function, stream, data="")
    assert sql.data(stream) == [""]


def test_arguments_can_be_given_by_name(sql: Session, stream: str) -> None:
    sql.call("broadcast", stream=stream, data="x", exclude="c7")
    assert sql.column(stream, "exclude") == ["c7"]


def test_a_message_may_have_several_megabytes(sql: Session, stream: str) -> None:
    sql.call("broadcast", stream, "é" * 2_000_000)
    assert sql.one("select octet_length(data) from pgbus.read_after(%s, 0)", stream) == 4_000_000


@many_examples
@given(data=text, event=text, visible_to=text.filter(bool), exclude=text.filter(bool))
def test_any_text_is_returned_unchanged(sql: Session, data: str, event: str, visible_to: str, exclude: str) -> None:
    event = event.replace("\n", "").replace("\r", "")
    after = sql.call("last_id", "any text")
    sql.call("broadcast", "any text", data, event, visible_to, exclude)
    rows = sql.run("select event, data, visible_to, exclude from pgbus.read_after('any text', %s)", after)
    assert rows == [(event or None, data, visible_to, exclude)]


def test_ids_rise_across_streams_and_functions_and_stay_exact_in_javascript(sql: Session, stream: str) -> None:
    ids = [sql.call("broadcast", f"{stream} {n % 3}", "x") for n in range(9)]
    ids.append(sql.call("broadcast_many", stream, ["a", "b"]))
    sql.call("broadcast_on_commit", stream, "c")
    ids.append(sql.call("last_id", stream))

    assert ids == sorted(set(ids))
    assert ids[-1] < 2**53


def test_a_schema_that_was_dropped_and_recreated_reuses_no_id(pgbus_database: str) -> None:
    with opened_sessions(pgbus_database) as opener:
        last = opener().call("broadcast_many", "orders", [str(n) for n in range(1000)])
        opener().run("drop schema pgbus cascade")
        migrate(pgbus_database)
        again = opener()
        assert again.call("last_id", "orders") == 0
        assert again.call("broadcast", "orders", "x") > last


# broadcast_many


def test_broadcast_many_appends_in_the_order_of_the_array_and_returns_the_last_id(sql: Session, stream: str) -> None:
    data = [str(n) for n in range(1000)]
    last = sql.call("broadcast_many", stream, data, "e", "admins", "c7")

    rows = sql.run("select msg_id, data, event, visible_to, exclude from pgbus.read_after(%s, 0, 2000)", stream)
    assert [row[1] for row in rows] == data
    assert {row[2:] for row in rows} == {("e", "admins", "c7")}
    assert [row[0] for row in rows] == sorted({row[0] for row in rows}) and rows[-1][0] == last


def test_broadcast_many_with_an_empty_array_appends_nothing_and_returns_null(sql: Session, stream: str) -> None:
    assert sql.one("select pgbus.broadcast_many(%s, '{}')", stream) is None
    assert sql.call("last_id", stream) == 0


def test_the_subscripts_of_an_array_do_not_matter(sql: Session, stream: str) -> None:
    sql.one("select pgbus.broadcast_many(%s, '[7:8]={a,b}')", stream)
    assert sql.data(stream) == ["a", "b"]


# names


@many_examples
@given(st.lists(names, min_size=1, max_size=5))
def test_each_name_is_a_separate_stream(sql: Session, found: list[str]) -> None:
    spellings = {spelling for name in found for spelling in (name, name.upper(), name.lower(), f"{name} ")}
    ids = {name: sql.call("broadcast", name, name) for name in spellings if len(name.encode()) <= 255}
    assert {name: sql.call("last_id", name) for name in ids} == ids
    assert all(set(sql.data(name)) == {name} for name in ids)


@pytest.mark.parametrize(
    "twins",
    [
        ["a:b", "a_b", "a-b", "A:b", "a:b ", " a:b"],
        ["\u00e9", "e\u0301", "e", "\u00c9"],  # composed, decomposed
        ["\ufb01", "fi"],
        ["ß", "ss", "SS"],
        ["a%b", "a_b", "a\\b", "a'b", 'a"b', "a,b", "a{b}"],
        ["ı", "i", "I", "İ"],
        ["\u200b", "\u00a0", " "],
        ["K", "\u212a"],  # Kelvin
    ],
)
def test_similar_names_are_different_streams(twins: list[str], sql: Session) -> None:
    ids = {twin: sql.call("broadcast", twin, twin) for twin in twins}
    assert {twin: sql.call("last_id", twin) for twin in twins} == ids


@many_examples
@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=200))
def test_sql_and_python_accept_the_same_names(sql: Session, name: str) -> None:
    try:
        check_name(name)
    except InvalidArgument:
        with raises(INVALID, "bad stream name"):
            sql.call("last_id", name)
    else:
        assert sql.call("last_id", name) is not None


@many_examples
@given(st.one_of(text, st.sampled_from(["pgbus:x", "Pgbus:x", " pgbus:x", "x\npgbus:", "pgbus", "a\u2028b", "a\x0bb"])))
def test_sql_and_python_accept_the_same_events(sql: Session, event: str) -> None:
    try:
        check_event(event)
    except InvalidArgument:
        with raises(INVALID, "bad event name"):
            sql.call("broadcast", "events", "x", event)
    else:
        sql.call("broadcast", "events", "x", event)


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127 + "x", "\U0001f600" * 63 + "xyz"])
def test_a_name_may_have_255_bytes(name: str, sql: Session) -> None:
    assert sql.call("broadcast", name, "x") == sql.call("last_id", name)


@pytest.mark.parametrize("collation", ['"C"', '"POSIX"', '"ucs_basic"', "loose"])
def test_arguments_of_any_collation_are_accepted(collation: str, sql: Session, stream: str) -> None:
    if collation == "loose":
        try:
            sql.run("create collation loose (provider = icu, locale = 'und-u-ks-level1', deterministic = false)")
        except psycopg2.errors.FeatureNotSupported:
            pytest.skip("this PostgreSQL is built without ICU")
    for function, *arguments in (
        ("broadcast", "'x'", "'e'", "null", "null", "'k'"),
        ("broadcast", "'x'", "'e'", "null", "null", "'K'"),
        ("broadcast", "'x'", "'e'"),
        ("broadcast_on_commit", "'x'", "'e'", "null", "null", "'b'"),
        ("broadcast_on_commit", "'x'", "'e'"),
        ("broadcast_many", "array['x']", "'e'"),
        ("broadcast_ephemeral", "'x'", "'e'"),
        ("last_id",),
        ("read_after", "0"),
    ):
        collated = [f"{value} collate {collation}" if value.startswith("'") else value for value in arguments]
        sql.run(f"select pgbus.{function}({', '.join([f'%s collate {collation}', *collated])})", stream)
    assert sql.data(stream) == ["x"] * 6


# errors


@pytest.mark.parametrize("function", [*PUBLISHING, "last_id", "read_after"])
def test_a_bad_name_is_refused_by_every_function(function: str, sql: Session) -> None:
    for name in (None, "", "x" * 256, "é" * 128, "a\nb", "\t", "a\x1f", "\x7f", "a\u0085b", "\u009f"):
        with raises(INVALID, "bad stream name .*: it must be 1 to 255 bytes of UTF-8 without control characters"):
            if function == "last_id":
                sql.call(function, name)
            elif function == "read_after":
                sql.call(function, name, 0)
            else:
                publish(sql, function, name)


@pytest.mark.parametrize("function", PUBLISHING)
def test_a_bad_event_is_refused_and_nothing_is_appended(function: str, sql: Session, stream: str) -> None:
    for event in ("a\nb", "\r", "a\r\nb", "pgbus:x", "pgbus:"):
        with raises(INVALID, 'bad event name .*: it must not contain a line break or start with "pgbus:"'):
            publish(sql, function, stream, event=event)
    assert sql.call("last_id", stream) == 0


@pytest.mark.parametrize("function", PUBLISHING)
def test_data_that_is_null_is_refused(function: str, sql: Session, stream: str) -> None:
    with raises(INVALID, "data"):
        publish(sql, function, stream, data=None)


@pytest.mark.parametrize("data", ["null", "array['a', null]", "array[null]", "array[['a', 'b'], ['c', 'd']]"])
def test_an_array_that_is_not_a_list_of_texts_is_refused(data: str, sql: Session, stream: str) -> None:
    with raises(INVALID, "bad data: it must be an array of one dimension without nulls"):
        sql.run(f"select pgbus.broadcast_many(%s, {data}::text[])", stream)


@pytest.mark.parametrize("function", ["broadcast", "broadcast_on_commit"])
def test_a_key_has_1_to_1000_bytes(function: str, sql: Session) -> None:
    for key in ("", "x" * 1001, "é" * 501):
        with raises(INVALID, "bad key of .* bytes"):
            sql.call(function, "x" * 255, "x", key=key)
    sql.call(function, "x" * 255, "x", key=f"{function} {'é' * 490}")


@pytest.mark.parametrize(
    "arguments", [(None, 1), (-1, 1), (0, 0), (0, -1), (0, None)], ids=["null", "-1", "max 0", "max -1", "max null"]
)
def test_a_bad_cursor_or_limit_is_refused(arguments: tuple[Any, ...], sql: Session, stream: str) -> None:
    with raises(INVALID, '"after" is the last id|"max" is at least 1'):
        sql.call("read_after", stream, *arguments)


def test_the_error_quotes_only_the_beginning_of_a_long_name(sql: Session) -> None:
    with raises(INVALID) as refused:
        sql.call("broadcast", "x" * 100_000, "x")
    assert len(refused.value.diag.message_primary) < 200


# reading


def test_read_after_returns_messages_above_the_cursor_up_to_the_limit(sql: Session, stream: str) -> None:
    ids = [sql.call("broadcast", stream, str(n)) for n in range(5)]
    sql.call("broadcast", f"{stream} other", "x")

    assert sql.read(stream, 0) == [(id, str(n)) for n, id in enumerate(ids)]
    assert sql.read(stream, ids[1], 2) == [(ids[2], "2"), (ids[3], "3")]
    assert sql.read(stream, ids[4]) == []
    assert sql.read(stream, 2**62) == []


def test_read_after_returns_500_messages_by_default(sql: Session, stream: str) -> None:
    sql.call("broadcast_many", stream, ["x"] * 501)
    assert len(sql.run("select * from pgbus.read_after(%s, 0)", stream)) == 500


def test_last_id_is_0_for_a_stream_without_messages(sql: Session, stream: str) -> None:
    assert sql.call("last_id", stream) == 0


def test_last_id_stays_after_all_messages_were_pruned(sql: Session, stream: str) -> None:
    id = sql.call("broadcast", stream, "x")
    sql.run("delete from pgbus.messages where stream = %s", stream)
    sql.run("insert into pgbus.horizons values (%s, %s)", stream, id)

    assert sql.call("last_id", stream) == id
    sql.call("broadcast", stream, "y")
    assert sql.column(stream, "prev_id") == [id]


def test_the_watermark_agrees_with_a_read_in_the_same_snapshot(sessions: Sessions, stream: str) -> None:
    reader, writer = sessions(), sessions()
    first = writer.call("broadcast", stream, "before")
    with reader.transaction("repeatable read"):
        assert reader.call("last_id", stream) == first
        later = [writer.call("broadcast", stream, "after") for _ in range(3)]
        assert reader.call("last_id", stream) == first
        assert reader.read(stream) == [(first, "before")]
    # So a page that was rendered and connected with it misses nothing and repeats nothing.
    assert reader.read(stream, first) == [(id, "after") for id in later]


def test_the_watermark_does_not_include_uncommitted_ids_of_others(sessions: Sessions, stream: str) -> None:
    reader, writer = sessions(), sessions()
    with writer.transaction():
        id = writer.call("broadcast", stream, "x")
        assert reader.call("last_id", stream) == 0
        assert writer.call("last_id", stream) == id
    assert reader.call("last_id", stream) == id


# callers


def test_triggers_and_functions_with_their_own_settings_can_publish(sql: Session, stream: str) -> None:
    sql.run("create table orders (id integer)")
    sql.run(
        "create function announce() returns trigger language plpgsql set search_path = pg_catalog as $$ begin"
        " perform pgbus.broadcast(tg_argv[0], new.id::text); return new; end $$"
    )
    sql.run(f"create trigger announce after insert on orders for each row execute function announce('{stream}')")
    sql.run("insert into orders select generate_series(1, 3)")
    assert sql.data(stream) == ["1", "2", "3"]


@pytest.mark.parametrize(
    "setting", ["search_path = ''", "standard_conforming_strings = off", "timezone = 'Asia/Kathmandu'"]
)
def test_the_callers_settings_do_not_matter(setting: str, sql: Session, stream: str) -> None:
    sql.run(f"set {setting}")
    sql.call("broadcast", stream, "a", "order.paid", key="k")
    sql.call("broadcast_on_commit", stream, "b")
    sql.call("broadcast_many", stream, ["c", "d"])
    with raises(INVALID):
        sql.call("broadcast", "a\nb", "x")
    assert sql.data(stream) == ["a", "b", "c", "d"]
