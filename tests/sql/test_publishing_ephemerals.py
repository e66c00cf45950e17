"""Ephemeral messages: sent on the channel after COMMIT; large ones are kept in a side table for a minute."""

from __future__ import annotations

import pytest
from database_parts import Ear, Session, Sessions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgbus_gevent.core.wakes import Ephemeral, Wake, parse

text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
LARGE = "x" * 10_000


def heard(ear: Ear, sql: Session) -> list[Wake]:
    return [parse(payload) for payload in ear.heard_until(sql)]


def kept(sql: Session) -> int:
    return int(sql.one("select count(*) from pgbus.ephemerals"))


def make_old(sql: Session) -> None:
    sql.run("update pgbus.ephemerals set created_at = created_at - interval '2 minutes'")


@pytest.fixture(autouse=True)
def empty(sql: Session) -> None:
    sql.run("truncate pgbus.ephemerals")


def test_a_small_ephemeral_message_is_sent_whole_and_not_stored(sql: Session, ear: Ear, stream: str) -> None:
    sql.call("broadcast_ephemeral", stream, "moved", "cursor", "admins", "c7")
    [wake] = heard(ear, sql)
    assert isinstance(wake, Ephemeral)
    assert wake._replace(number=0) == Ephemeral(stream, 0, "cursor", "moved", "admins", "c7")
    assert kept(sql) == 0
    assert sql.call("last_id", stream) == 0


def test_omitted_arguments_are_null(sql: Session, ear: Ear, stream: str) -> None:
    sql.call("broadcast_ephemeral", stream, "x", "")
    [wake] = heard(ear, sql)
    assert wake[2:] == (None, "x", None, None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=text, audience=text.filter(bool))
def test_any_text_arrives_unchanged(sql: Session, ear: Ear, data: str, audience: str) -> None:
    sql.call("broadcast_ephemeral", "any text", data, None, audience, audience)
    [wake] = heard(ear, sql)
    assert wake[3:] == (data, audience, audience)


def test_equal_ephemeral_messages_of_one_transaction_all_arrive(sql: Session, ear: Ear, stream: str) -> None:
    with sql.transaction():
        for _ in range(3):
            sql.call("broadcast_ephemeral", stream, "x")
            sql.call("broadcast_ephemeral", stream, LARGE)
    wakes = heard(ear, sql)
    assert [wake[3] for wake in wakes] == ["x", None] * 3
    assert len({wake[1] for wake in wakes}) == 6


def test_ephemeral_messages_arrive_after_the_commit(sessions: Sessions, ear: Ear, stream: str) -> None:
    sql, other = sessions(), sessions()
    with sql.transaction():
        sql.call("broadcast_ephemeral", stream, "x")
        assert heard(ear, other) == []
    assert len(heard(ear, other)) == 1


def test_a_large_ephemeral_message_is_fetched_by_its_number(sql: Session, ear: Ear, stream: str) -> None:
    sql.call("broadcast_ephemeral", stream, LARGE, "e", "admins", "c7")
    [wake] = heard(ear, sql)
    assert isinstance(wake, Ephemeral)
    assert wake == Ephemeral(stream, wake.number, None, None, None, None)
    assert sql.run("select event, data, visible_to, exclude from pgbus.ephemerals where id = %s", wake.number) == [
        ("e", LARGE, "admins", "c7")
    ]


def test_a_rollback_sends_nothing_and_leaves_nothing(sql: Session, ear: Ear, stream: str) -> None:
    sql.run("begin")
    sql.call("broadcast_ephemeral", stream, "x")
    sql.call("broadcast_ephemeral", stream, LARGE)
    sql.run("rollback")
    assert heard(ear, sql) == []
    assert kept(sql) == 0


def test_a_large_ephemeral_message_clears_old_ones_and_keeps_recent_ones(sql: Session, stream: str) -> None:
    for _ in range(3):
        sql.call("broadcast_ephemeral", stream, LARGE)
    assert kept(sql) == 3
    make_old(sql)
    sql.call("broadcast_ephemeral", stream, LARGE)
    assert kept(sql) == 1


def test_many_old_ephemeral_messages_are_cleared_in_steps(sql: Session, stream: str) -> None:
    sql.run("select count(pgbus.broadcast_ephemeral(%s, %s)) from generate_series(1, 250) n", stream, LARGE)
    make_old(sql)
    for n in (151, 52, 3):
        sql.call("broadcast_ephemeral", stream, LARGE)
        assert kept(sql) == n


def test_clearing_does_not_wait_for_another_transaction_that_clears(sessions: Sessions, stream: str) -> None:
    one, other = sessions(), sessions()
    for _ in range(3):
        one.call("broadcast_ephemeral", stream, LARGE)
    make_old(one)
    other.run("set lock_timeout = '15s'")
    with one.transaction():
        one.call("broadcast_ephemeral", stream, LARGE)
        other.call("broadcast_ephemeral", stream, LARGE)
    assert kept(one) == 2


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_transaction_with_one_snapshot_does_not_fail_on_cleared_rows(
    isolation: str, sessions: Sessions, stream: str
) -> None:
    late, sql = sessions(), sessions()
    sql.call("broadcast_ephemeral", stream, LARGE)
    make_old(sql)
    with late.transaction(isolation):
        late.call("last_id", stream)
        sql.call("broadcast_ephemeral", stream, LARGE)
        late.call("broadcast_ephemeral", stream, LARGE)
    assert kept(sql) == 2
