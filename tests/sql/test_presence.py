"""Presence from SQL: members, announcements, and leases that expire by themselves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import gevent
import psycopg2
import pytest
from database_parts import Ear, Session, Sessions, is_waiting, opened_sessions, raises, together, until

from pgbus_gevent.core.wakes import Ephemeral, parse

INVALID = "22023"
LOCK = 1885823600
PAST = timedelta(milliseconds=1)


@pytest.fixture(autouse=True)
def empty(sql: Session) -> Iterator[None]:
    sql.run("truncate pgbus.presence, pgbus.presence_crowds, pgbus.presence_news")
    pause = sql.one("select pg_get_functiondef('pgbus._presence_pause'::regproc)")
    yield
    sql.run(pause)


def members(sql: Session, stream: str) -> list[str]:
    return [member for (member,) in sql.run("select member from pgbus.presence_members(%s)", stream)]


def announced(ear: Ear, sql: Session) -> list[dict[str, Any]]:
    """Return the announcements since the last call."""
    found = []
    for payload in ear.heard_until(sql):
        wake = parse(payload)
        assert isinstance(wake, Ephemeral)
        event, data = wake.event, wake.data
        if data is None:  # it is too large for a notification
            [(event, data)] = sql.run("select event, data from pgbus.ephemerals where id = %s", wake.number)
        assert event == "presence"
        found.append(json.loads(data))
    return found


def heard(ear: Ear, sql: Session) -> list[tuple[str, str, int]]:
    """Return the changes that were announced since the last call: op, member and count."""
    found = []
    for news in announced(ear, sql):
        for change in news.get("members", [news]):
            assert set(change) - {"count"} == {"op", "member", "metadata"}
            found.append((change["op"], change["member"], news["count"]))
    return found


def hold(sql: Session, pause: str = "1 hour") -> None:
    """Let the pause after an announcement last so long, until the end of the test."""
    sql.run(
        "create or replace function pgbus._presence_pause(members bigint) returns interval"
        f" language sql immutable parallel safe return interval '{pause}'"
    )


def let_go(sql: Session) -> None:
    """Make what waits due."""
    sql.run("update pgbus.presence_crowds set due_at = clock_timestamp()")


def flush(sql: Session) -> None:
    """Announce all that waits."""

    def nothing_waits() -> bool:
        sql.call("_presence_flush")
        return bool(sql.one("select count(due_at) from pgbus.presence_crowds") == 0)

    until(nothing_waits, "nothing waits")


def expire(sql: Session, stream: str, member: str | None = None) -> None:
    sql.run(
        "update pgbus.presence set expires_at = clock_timestamp() - interval '1 second'"
        " where stream = %s and member = coalesce(%s, member)",
        *(stream, member),
    )


def record(sql: Session, changes: list[tuple[str, str, str, str | None]], grace: str = "0") -> list[int]:
    streams, names, connections, metadata = (list(column) for column in zip(*changes, strict=True))
    call = "pgbus._presence_record(%s::text[], %s::text[], %s::text[], %s::jsonb[], '1 minute', %s)"
    found: list[int] = sql.one(f"select again from {call}", streams, names, connections, metadata, grace)
    return found


def due(sql: Session, changes: list[tuple[str, str, str, str | None]]) -> list[float]:
    streams, names, connections, metadata = (list(column) for column in zip(*changes, strict=True))
    call = "pgbus._presence_record(%s::text[], %s::text[], %s::text[], %s::jsonb[], '1 minute', '0')"
    found: list[float] = sql.one(f"select due from {call}", streams, names, connections, metadata)
    return found


# joining and leaving


def test_a_member_that_joins_is_present_and_announced_until_it_leaves(sql: Session, ear: Ear, stream: str) -> None:
    assert sql.call("presence_join", stream, "ada", '{"name": "Ada"}') is True
    [(member, metadata, joined_at, connections)] = sql.run("select * from pgbus.presence_members(%s)", stream)
    assert (member, metadata, connections) == ("ada", {"name": "Ada"}, 1)
    assert joined_at == sql.one("select joined_at from pgbus.presence where stream = %s", stream)
    assert heard(ear, sql) == [("join", "ada", 1)]

    assert sql.call("presence_leave", stream, "ada") is True
    assert members(sql, stream) == []
    assert heard(ear, sql) == [("leave", "ada", 0)]


def test_several_connections_of_a_member_are_one_member(sql: Session, ear: Ear, stream: str) -> None:
    assert [sql.call("presence_join", stream, "ada", "{}", tab) for tab in ("1", "2", "3")] == [True, False, False]
    assert sql.call("presence_count", stream) == 1
    assert sql.one("select connections from pgbus.presence_members(%s)", stream) == 3
    assert [sql.call("presence_leave", stream, "ada", tab) for tab in ("2", "1", "3")] == [False, False, True]
    assert heard(ear, sql) == [("join", "ada", 1), ("leave", "ada", 0)]


def test_joining_again_changes_the_metadata_and_announces_nothing(sql: Session, ear: Ear, stream: str) -> None:
    sql.call("presence_join", stream, "ada", '{"n": 1}')
    sql.call("presence_join", stream, "ada", '{"n": 2}')
    assert sql.one("select metadata from pgbus.presence_members(%s)", stream) == {"n": 2}
    assert heard(ear, sql) == [("join", "ada", 1)]


def test_a_member_keeps_the_time_of_its_first_connection(sql: Session, stream: str) -> None:
    sql.call("presence_join", stream, "ada", "{}", "1")
    first = sql.one("select joined_at from pgbus.presence_members(%s)", stream)
    sql.call("presence_join", stream, "ada", "{}", "2")
    sql.call("presence_leave", stream, "ada", "1")
    assert sql.one("select joined_at from pgbus.presence_members(%s)", stream) == first


def test_members_are_listed_in_the_order_of_joining(sql: Session, stream: str) -> None:
    for name in ("zoe", "ada", "max"):
        sql.call("presence_join", stream, name)
    assert members(sql, stream) == ["zoe", "ada", "max"]


def test_streams_and_members_are_compared_as_bytes(sql: Session, stream: str) -> None:
    for name in ("a:b", "A:b", "é", "e\u0301"):
        sql.call("presence_join", stream, name)
        sql.call("presence_join", name, "ada")
    assert set(members(sql, stream)) == {"a:b", "A:b", "é", "e\u0301"}
    assert all(members(sql, name) == ["ada"] for name in ("a:b", "A:b", "é", "e\u0301"))


def test_leaving_without_having_joined_does_nothing(sql: Session, ear: Ear, stream: str) -> None:
    assert sql.call("presence_leave", stream, "nobody") is False
    assert heard(ear, sql) == []


def test_a_rollback_undoes_presence(sql: Session, ear: Ear, stream: str) -> None:
    with pytest.raises(ZeroDivisionError), sql.transaction():
        sql.call("presence_join", stream, "ada")
        raise ZeroDivisionError
    assert members(sql, stream) == [] and heard(ear, sql) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "ada"), "bad stream name"),
        (("s\n", "ada"), "bad stream name"),
        ((None, "ada"), "bad stream name"),
        (("s", ""), "bad member"),
        (("s", "a\tb"), "bad member"),
        (("s", "x" * 256), "bad member"),
        (("s", None), "bad member"),
        (("s", "ada", "[1]"), "bad metadata"),
        (("s", "ada", json.dumps({"x": "x" * 4096})), "bad metadata"),
        (("s", "ada", "{}", "x" * 256), "bad connection"),
        (("s", "ada", "{}", None), "bad connection"),
        (("s", "ada", "{}", "", timedelta(0)), "bad ttl"),
        (("s", "ada", "{}", "", None), "bad ttl"),
    ],
)
def test_bad_arguments_are_refused(sql: Session, arguments: tuple[Any, ...], message: str) -> None:
    with raises(INVALID, message):
        sql.call("presence_join", *arguments)


def test_a_negative_grace_is_refused(sql: Session) -> None:
    with raises(INVALID, "bad grace"):
        sql.call("presence_leave", "s", "ada", "", timedelta(seconds=-1))


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_transaction_with_one_snapshot_is_refused(sql: Session, stream: str, isolation: str) -> None:
    sql.call("presence_join", stream, "ada")
    for function in ("presence_join", "presence_leave"):
        with raises("0A000", f"in {isolation.upper()}: use one in READ COMMITTED"), sql.transaction(isolation):
            sql.call(function, stream, "ada")
    with sql.transaction(isolation):
        assert members(sql, stream) == ["ada"]


@pytest.mark.parametrize("collation", ['"C"', '"und-x-icu"'])
def test_the_callers_collation_does_not_matter(sql: Session, stream: str, collation: str) -> None:
    try:
        sql.run(f"select 'x' collate {collation}")
    except psycopg2.Error:
        pytest.skip("this server was built without ICU")
    statement = f"select pgbus.presence_join(%s collate {collation}, 'ada' collate {collation})"
    assert sql.one(statement, stream) is True
    assert sql.one(f"select count(*) from pgbus.presence_members(%s collate {collation})", stream) == 1


# grace


def test_a_member_that_returns_within_the_grace_is_not_announced(sql: Session, ear: Ear, stream: str) -> None:
    sql.call("presence_join", stream, "ada", "{}", "old")
    sql.call("presence_leave", stream, "ada", "old", timedelta(minutes=1))
    assert sql.run("select member, connections from pgbus.presence_members(%s)", stream) == [("ada", 0)]
    sql.call("presence_join", stream, "ada", "{}", "new")
    expire(sql, stream)
    # The member is present, and only its old connection is left to expire.
    sql.call("presence_join", stream, "ada", "{}", "new")
    heard(ear, sql)
    sql.call("presence_sweep")
    assert members(sql, stream) == ["ada"] and heard(ear, sql) == []


def test_a_member_that_does_not_return_within_the_grace_leaves_at_the_sweep(
    sql: Session, ear: Ear, stream: str
) -> None:
    sql.call("presence_join", stream, "ada")
    sql.call("presence_leave", stream, "ada", "", timedelta(milliseconds=50))
    assert heard(ear, sql) == [("join", "ada", 1)]
    until(lambda: not members(sql, stream), "the grace is over")
    sql.call("presence_sweep")
    assert heard(ear, sql) == [("leave", "ada", 0)]


# expiry


def test_an_expired_member_is_hidden_before_the_sweep_and_announced_once(sql: Session, ear: Ear, stream: str) -> None:
    for name in ("ada", "max"):
        sql.call("presence_join", stream, name)
    heard(ear, sql)
    expire(sql, stream, "ada")
    assert members(sql, stream) == ["max"] and sql.call("presence_count", stream) == 1
    for _ in range(3):
        sql.call("presence_sweep")
    assert heard(ear, sql) == [("leave", "ada", 1)]


def test_a_transaction_that_stays_open_sees_members_expire(sql: Session, stream: str) -> None:
    with sql.transaction():
        sql.call("presence_join", stream, "ada", "{}", "", timedelta(milliseconds=30))
        until(lambda: not members(sql, stream), "the member expires")


def test_a_member_that_joins_between_expiry_and_sweep_is_announced_and_does_not_leave(
    sql: Session, ear: Ear, stream: str
) -> None:
    """A page that was made between the two did not show the member."""
    sql.call("presence_join", stream, "ada", "{}", "1")
    expire(sql, stream)
    assert sql.call("presence_join", stream, "ada", "{}", "2") is True
    sql.call("presence_sweep")
    assert heard(ear, sql) == [("join", "ada", 1), ("join", "ada", 1)]
    assert sql.one("select count(*) from pgbus.presence") == 1


def test_the_sweep_returns_the_time_to_the_next_expiry(sql: Session, stream: str) -> None:
    assert sql.call("presence_sweep") is None
    sql.call("presence_join", stream, "ada", "{}", "", timedelta(seconds=100))
    assert 90 < sql.call("presence_sweep") <= 100


def test_concurrent_sweeps_announce_each_member_once(sql: Session, sessions: Sessions, ear: Ear, stream: str) -> None:
    record(sql, [(stream, f"m{n}", str(n), "{}") for n in range(100)])
    heard(ear, sql)
    expire(sql, stream)
    sweepers = [sessions() for _ in range(6)]
    together(*[lambda one=one: one.call("presence_sweep") for one in sweepers])
    sql.call("presence_sweep")
    flush(sql)
    news = heard(ear, sql)
    assert sorted(member for _, member, _ in news) == sorted(f"m{n}" for n in range(100))
    assert {(op, count) for op, _, count in news} == {("leave", 0)}


def test_the_sweep_reads_the_table_once_and_an_empty_one_not_at_all(pgbus_database: str, stream: str) -> None:
    with opened_sessions(pgbus_database) as opener:  # in which no session of an earlier test reports its reads late
        check_scans(opener(), stream)


def check_scans(sql: Session, stream: str) -> None:
    def scans() -> int:
        sql.run(
            "select pg_stat_force_next_flush()" if sql.connection.server_version >= 150000 else "select pg_sleep(1)"
        )
        return int(
            sql.one("select seq_scan + idx_scan from pg_stat_user_tables where relid = 'pgbus.presence'::regclass")
        )

    before = scans()
    assert sql.call("presence_sweep") is None
    assert scans() == before
    record(sql, [(stream, f"m{n}", str(n), "{}") for n in range(100)])
    before = scans()
    assert sql.call("presence_sweep") > 0
    assert scans() - before == 1


def test_a_sweep_removes_a_thousand_and_asks_to_be_called_again(sql: Session, ear: Ear, stream: str) -> None:
    sql.run("truncate pgbus.presence")
    sql.run(
        "insert into pgbus.presence (stream, member, connection, metadata, joined_at, connected_at, expires_at)"
        " select %s, 'm' || n, 'c', '{}', now(), now(), now() + case when n <= 1500 then '-1 s' else '1 h' end::interval"
        " from generate_series(1, 1600) n",
        stream,
    )
    assert sql.call("presence_sweep") == 0
    assert sql.one("select count(*) from pgbus.presence") == 600
    until(lambda: sql.call("presence_sweep") > 1, "the rest has been removed")
    assert sql.one("select count(*) from pgbus.presence") == 100
    until(lambda: sql.call("presence_sweep") > 3000, "nothing waits")
    assert announced(ear, sql)
    sql.run("truncate pgbus.presence")


def test_a_sweep_asks_to_be_called_again_if_a_stream_is_locked(sql: Session, sessions: Sessions, stream: str) -> None:
    other = sessions()
    sql.run("truncate pgbus.presence")
    sql.call("presence_join", stream, "ada")
    expire(sql, stream)
    with other.transaction():
        other.run("select pgbus._lock_presence(%s)", stream)
        assert sql.call("presence_sweep") == 0
    assert sql.call("presence_sweep") is None
    assert sql.one("select count(*) from pgbus.presence") == 0


# touching


def test_a_touch_renews_leases_and_returns_the_connections_without_one(sql: Session, ear: Ear, stream: str) -> None:
    short = timedelta(seconds=20)
    sql.call("presence_join", stream, "here", "{}", "1", short)
    sql.call("presence_join", stream, "expired", "{}", "1", short)
    sql.call("presence_join", stream, "leaving", "{}", "1", short)
    sql.call("presence_leave", stream, "leaving", "1", timedelta(minutes=1))
    expire(sql, stream, "expired")
    names = ["nobody", "here", "expired", "leaving"]
    rows = sql.run(
        "select pgbus.presence_touch_many(array_fill(%s::text, array[4]), %s::text[], array_fill('1'::text, array[4]))",
        *(stream, names),
    )
    assert [place for (place,) in rows] == [1, 3, 4]
    left = "select extract(epoch from expires_at - clock_timestamp()) from pgbus.presence where member = %s"
    assert 30 < sql.one(left, "here") <= 45
    assert sql.one(left, "leaving") <= 20
    assert [news[0] for news in heard(ear, sql)] == ["join"] * 3


def test_one_connection_can_be_touched(sql: Session, stream: str) -> None:
    assert sql.call("presence_touch", stream, "ada") is False
    sql.call("presence_join", stream, "ada")
    assert sql.call("presence_touch", stream, "ada") is True
    assert sql.call("presence_touch", stream, "ada", "another") is False


def test_touches_change_no_index(sql: Session, stream: str) -> None:
    """Otherwise, each touch of ten thousand members would cost ten thousand index entries."""
    places = [(stream, f"m{n}", str(n), "{}") for n in range(200)]
    record(sql, places)
    statement = "select count(*) from pgbus.presence_touch_many(%s::text[], %s::text[], %s::text[])"
    for _ in range(5):
        assert sql.one(statement, *(list(column) for column in list(zip(*places, strict=True))[:3])) == 0
    sql.run("select pg_stat_force_next_flush()") if sql.connection.server_version >= 150000 else None
    updates = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relid = 'pgbus.presence'::regclass"
    until(lambda: sql.run(updates)[0][0] >= 1000, "the statistics are in")
    [(all_of_them, hot)] = sql.run(updates)
    # With an index on a touched column, no update would be HOT. Not all are, because a page that is not pruned yet has no room
    # for one, and pruning depends on the snapshots of all sessions.
    assert hot > all_of_them * 0.3


# workers


def test_a_batch_records_joins_and_leaves_at_many_streams(sql: Session, ear: Ear, stream: str) -> None:
    a, b = f"{stream} a", f"{stream} b"
    assert record(sql, [(a, "ada", "1", '{"x": 1}'), (b, "ada", "2", "{}"), (a, "max", "3", "{}")]) == []
    assert sorted(heard(ear, sql)) == [("join", "ada", 1), ("join", "ada", 2), ("join", "max", 2)]
    assert (
        record(sql, [(a, "ada", "1", None), (a, "ada", "4", "{}"), (b, "ada", "2", None), (b, "no", "9", None)]) == []
    )
    assert heard(ear, sql) == [("leave", "ada", 0)]
    assert set(members(sql, a)) == {"ada", "max"} and members(sql, b) == []


def test_a_connection_that_is_twice_in_a_batch_has_the_last_metadata(sql: Session, stream: str) -> None:
    record(sql, [(stream, "ada", "1", '{"n": 1}'), (stream, "ada", "1", '{"n": 2}')])
    assert sql.one("select metadata from pgbus.presence_members(%s)", stream) == {"n": 2}


def test_a_batch_skips_a_stream_that_a_transaction_holds(
    sql: Session, sessions: Sessions, ear: Ear, stream: str
) -> None:
    held, free = f"{stream} held", f"{stream} free"
    slow, watcher = sessions(), sessions()
    with slow.transaction():
        slow.call("presence_join", held, "slow")
        changes: list[tuple[str, str, str, str | None]] = [(held, "ada", "1", "{}"), (free, "ada", "2", "{}")]
        assert record(sql, changes) == [1]
        assert members(sql, free) == ["ada"] and members(sql, held) == []
        waiting = sql.spawn("select pgbus.presence_join(%s, 'max')", held)
        until(lambda: is_waiting(watcher, sql), "a join in SQL waits for its turn")
    waiting.get(timeout=10)
    assert record(sql, changes[:1]) == []
    assert members(sql, held) == ["slow", "max", "ada"]
    assert heard(ear, sql)[-3:] == [("join", "slow", 1), ("join", "max", 2), ("join", "ada", 3)]


def test_no_transaction_waits_for_one_that_touches(sql: Session, sessions: Sessions, stream: str) -> None:
    toucher = sessions()
    for name in ("ada", "max"):
        sql.call("presence_join", stream, name)
    with toucher.transaction():
        assert toucher.call("presence_touch", stream, "ada") is True
        sql.run("set lock_timeout = '15s'")
        expire(sql, stream, "max")
        sql.call("presence_sweep")
        assert sql.call("presence_touch", stream, "ada") is True
        assert members(sql, stream) == ["ada"]
    sql.run("reset lock_timeout")


def test_the_announcements_of_concurrent_joins_and_leaves_add_up(
    sessions: Sessions, sql: Session, ear: Ear, stream: str
) -> None:
    """A reader that follows the announcements ends up with the present members, in any order of the transactions."""

    def worker(session: Session, n: int) -> None:
        for turn in range(25):
            change = None if turn % 2 else "{}"
            places = record(session, [(stream, f"m{turn % 3}", f"{n}", change)])
            while places:
                places = record(session, [(stream, f"m{turn % 3}", f"{n}", change)])
            if turn % 5 == 0:
                session.call("presence_sweep")

    workers = [sessions() for _ in range(5)]
    together(*[lambda one=one, n=n: worker(one, n) for n, one in enumerate(workers)])
    there: set[str] = set()
    for op, member, count in heard(ear, sql):
        (there.add if op == "join" else there.remove)(member)
        assert count == len(there)
    assert there == set(members(sql, stream))


# announcements of many


def joins(stream: str, numbers: range) -> list[tuple[str, str, str, str | None]]:
    return [(stream, f"m{n:04}", str(n), "{}") for n in numbers]


def leaves(stream: str, numbers: range) -> list[tuple[str, str, str, str | None]]:
    return [(stream, f"m{n:04}", str(n), None) for n in numbers]


def test_members_that_come_together_are_announced_together(sql: Session, ear: Ear, stream: str) -> None:
    record(sql, [(stream, "ada", "1", '{"n": 1}'), (stream, "max", "2", "{}")])
    assert announced(ear, sql) == [
        {
            "members": [
                {"op": "join", "member": "ada", "metadata": {"n": 1}},
                {"op": "join", "member": "max", "metadata": {}},
            ],
            "count": 2,
        }
    ]
    record(sql, [(stream, "ada", "1", None), (stream, "zoe", "3", "{}")])
    [news] = announced(ear, sql)
    assert [(one["op"], one["member"]) for one in news["members"]] == [("join", "zoe"), ("leave", "ada")]
    assert news["count"] == 2


def test_changes_of_a_small_room_never_wait(sql: Session, ear: Ear, stream: str) -> None:
    for n in range(19):
        record(sql, joins(stream, range(n, n + 1)))
    assert [count for *_, count in heard(ear, sql)] == list(range(1, 20))
    assert sql.call("_presence_flush") is None
    assert sql.one("select count(*) from pgbus.presence_crowds") == 0  # a small room costs no further row


def test_changes_of_a_crowd_wait_for_others_and_come_once_in_order(sql: Session, ear: Ear, stream: str) -> None:
    record(sql, joins(stream, range(30)))
    assert len(announced(ear, sql)) == 1
    hold(sql)
    record(sql, joins(stream, range(30, 35)))
    record(sql, leaves(stream, range(30, 32)))
    record(sql, joins(stream, range(31, 32)))
    assert sql.call("_presence_flush") is None and announced(ear, sql) == []
    let_go(sql)
    assert sql.call("_presence_flush") is None
    [news] = announced(ear, sql)
    assert [(one["op"], one["member"]) for one in news["members"]] == [
        *(("join", f"m{n:04}") for n in range(30, 35)),
        *(("leave", "m0030"), ("leave", "m0031"), ("join", "m0031")),
    ]
    assert news["count"] == 34
    assert sql.one("select count(*) from pgbus.presence_news") == 0


def test_the_first_worker_whose_changes_wait_comes_back_for_all(
    sql: Session, sessions: Sessions, ear: Ear, stream: str
) -> None:
    assert due(sql, joins(stream, range(30))) == []
    hold(sql)
    [seconds] = due(sql, joins(stream, range(30, 32)))
    assert seconds > 1000
    assert due(sql, joins(stream, range(32, 34))) == [] == due(sql, joins(stream, range(32, 34)))
    let_go(sql)
    other = sessions()
    with other.transaction():
        other.run("select pgbus._lock_presence(%s)", stream)
        assert sql.call("_presence_flush") == 0.25
    assert sql.call("_presence_flush") is None
    assert len(heard(ear, sql)) == 34


def test_a_worker_comes_back_also_for_what_an_application_has_changed(sql: Session, ear: Ear, stream: str) -> None:
    record(sql, joins(stream, range(300)))
    hold(sql)
    sql.call("presence_join", stream, "bot")  # it is only counted, so it waits
    assert len(due(sql, joins(stream, range(300, 301)))) == 1
    expire(sql, stream, "m0001")
    assert sql.call("presence_sweep") < 100  # the worker comes back
    let_go(sql)
    flush(sql)
    hold(sql)
    expire(sql, stream, "m0002")
    sql.run("update pgbus.presence set expires_at = clock_timestamp() + interval '2 hours' where member <> 'm0002'")
    assert 3000 < sql.call("presence_sweep") < 3700  # the sweep comes back for what it has changed
    assert [news["count"] for news in announced(ear, sql)] == [300, 301]


def test_what_waits_comes_before_a_later_change(sql: Session, ear: Ear, stream: str) -> None:
    record(sql, joins(stream, range(30)))
    hold(sql)
    record(sql, joins(stream, range(30, 31)))
    announced(ear, sql)
    sql.call("presence_join", stream, "bot")  # alone, so it does not wait
    [news] = announced(ear, sql)
    assert [one["member"] for one in news["members"]] == ["m0030", "bot"] and news["count"] == 32


def test_changes_do_not_wait_until_the_database_s_clock_is_as_late_as_before(
    sql: Session, ear: Ear, stream: str
) -> None:
    hold(sql, "1 minute")
    record(sql, joins(stream, range(30)))
    announced(ear, sql)
    sql.run("update pgbus.presence_crowds set announced_at = announced_at + interval '1 hour'")
    [seconds] = due(sql, joins(stream, range(30, 31)))
    assert 0 < seconds <= 60
    let_go(sql)
    flush(sql)
    assert heard(ear, sql) == [("join", "m0030", 31)]


def test_what_was_to_wait_for_a_moment_does_not_wait_until_the_clock_is_as_late_as_before(
    sql: Session, ear: Ear, stream: str
) -> None:
    hold(sql, "1 minute")
    record(sql, joins(stream, range(30)))
    record(sql, joins(stream, range(30, 31)))
    sql.run("update pgbus.presence_crowds set announced_at = announced_at + interval '1 hour'")
    sql.run("update pgbus.presence_crowds set due_at = announced_at + interval '1 minute'")
    record(sql, joins(stream, range(31, 32)))  # it does not put off what waits
    assert sql.one("select due_at <= clock_timestamp() + interval '1 minute' from pgbus.presence_crowds") is True
    sql.run("update pgbus.presence_crowds set due_at = announced_at + interval '1 minute'")
    announced(ear, sql)
    assert sql.call("_presence_flush") is None
    assert heard(ear, sql) == [("join", "m0030", 32), ("join", "m0031", 32)]


def test_the_sweep_announces_what_a_worker_that_died_has_left(sql: Session, ear: Ear, stream: str) -> None:
    record(sql, joins(stream, range(30)))
    hold(sql)
    record(sql, joins(stream, range(30, 31)))
    announced(ear, sql)
    let_go(sql)
    assert sql.call("presence_sweep") > 1  # nothing waits any more
    assert heard(ear, sql) == [("join", "m0030", 31)]


def test_a_stream_that_is_locked_does_not_keep_the_sweep_from_others(
    sql: Session, sessions: Sessions, ear: Ear, stream: str
) -> None:
    record(sql, joins(f"{stream} locked", range(2000)))
    record(sql, [(stream, "ada", "1", "{}")])
    sql.run("update pgbus.presence set expires_at = clock_timestamp() - interval '1 second'")
    other = sessions()
    with other.transaction():
        other.run("select pgbus._lock_presence(%s)", f"{stream} locked")
        for _ in range(50):
            assert sql.call("presence_sweep") == 0
    assert sql.one("select count(*) from pgbus.presence where stream = %s", stream) == 0


def test_a_large_crowd_is_only_counted_and_a_smaller_one_asks_for_a_refresh(
    sql: Session, ear: Ear, stream: str
) -> None:
    record(sql, joins(stream, range(250)))
    [news] = announced(ear, sql)
    assert len(news["members"]) == 250
    record(sql, joins(stream, range(250, 251)))
    flush(sql)
    assert announced(ear, sql) == [{"count": 251}]
    for n in range(251, 300):
        record(sql, joins(stream, range(n, n + 1)))
    flush(sql)
    counts = announced(ear, sql)
    assert all(set(news) == {"count"} for news in counts) and counts[-1] == {"count": 300}
    record(sql, leaves(stream, range(201, 300)))
    flush(sql)
    assert announced(ear, sql) == [{"count": 201}]  # not named again yet, or each change around 250 would be a refresh
    record(sql, leaves(stream, range(200, 201)))
    flush(sql)
    assert announced(ear, sql) == [{"op": "refresh", "count": 200}]
    record(sql, joins(stream, range(200, 201)))
    flush(sql)
    assert heard(ear, sql) == [("join", "m0200", 201)]


def test_more_changes_than_can_be_named_are_a_refresh(sql: Session, ear: Ear, stream: str) -> None:
    record(sql, joins(stream, range(100)))
    announced(ear, sql)
    hold(sql)
    for turn in range(3):
        record(sql, joins(stream, range(100, 200)) if turn % 2 == 0 else leaves(stream, range(100, 200)))
    assert sql.one("select count(*) from pgbus.presence_news") <= 250
    let_go(sql)
    flush(sql)
    assert announced(ear, sql) == [{"op": "refresh", "count": 200}]
    assert sql.one("select count(*) from pgbus.presence_news") == 0


def test_ten_thousand_joins_at_once_cost_a_client_a_few_small_announcements(
    sql: Session, sessions: Sessions, ear: Ear, stream: str
) -> None:
    def worker(session: Session, first: int) -> None:
        for start in range(first, first + 2500, 250):
            while record(session, joins(stream, range(start, start + 250))):
                gevent.sleep(0.01)

    workers = [(sessions(), n) for n in range(0, 10_000, 2500)]
    together(*[lambda one=one, n=n: worker(one, n) for one, n in workers])
    flush(sql)
    found = announced(ear, sql)
    assert found[-1] == {"count": 10_000}
    assert len(json.dumps(found)) < 30_000
    assert sum(len(news.get("members", ())) for news in found) <= 250


def test_concurrent_changes_and_flushes_of_a_crowd_are_announced_once_in_order(
    sql: Session, sessions: Sessions, ear: Ear, stream: str
) -> None:
    record(sql, joins(stream, range(50)))

    def worker(session: Session, n: int) -> None:
        member = f"w{n}"
        for turn in range(20):
            change = (stream, member, "1", None if turn % 2 else "{}")
            while record(session, [change]):
                gevent.sleep(0.005)
            session.call("_presence_flush")

    workers = [(sessions(), n) for n in range(5)]
    together(*[lambda one=one, n=n: worker(one, n) for one, n in workers])
    flush(sql)
    changes = heard(ear, sql)
    for n in range(5):
        assert [op for op, member, _ in changes if member == f"w{n}"] == ["join", "leave"] * 10
    assert len(changes) == 150 and sql.call("presence_count", stream) == 50


def test_a_crowd_that_ends_leaves_nothing_behind(sql: Session, ear: Ear, stream: str) -> None:
    record(sql, joins(stream, range(300)))
    record(sql, leaves(stream, range(300)))
    flush(sql)
    assert announced(ear, sql) == [{"count": 300}, {"op": "refresh", "count": 0}]
    assert sql.one("select count(*) from pgbus.presence_crowds") == 0


def test_a_role_with_the_documented_grants_can_use_presence(sql: Session, sessions: Sessions, stream: str) -> None:
    role = f"pgbus_test_member_{os.getpid()}"
    text = (Path(__file__).parents[2] / "docs" / "presence.md").read_text(encoding="utf-8")
    assert "`pgbus.grant_publisher`" in text and "`pgbus.grant_reader`" in text
    sql.run(f"create role {role}")
    try:
        sql.call("grant_publisher", role)
        sql.call("grant_reader", role)
        theirs = sessions(role=role)
        assert theirs.call("presence_join", stream, "ada") is True
        assert theirs.call("presence_touch", stream, "ada") is True
        assert members(theirs, stream) == ["ada"]
        assert theirs.call("presence_leave", stream, "ada") is True
        with raises("42501"):
            theirs.call("presence_sweep")
        with raises("42501"):
            theirs.run("delete from pgbus.presence")
        sql.call("grant_server", role)
        assert theirs.call("presence_sweep") is None
        assert record(theirs, [(stream, "ada", "1", "{}")]) == []
    finally:
        sql.run(f"drop owned by {role}; drop role {role}")
