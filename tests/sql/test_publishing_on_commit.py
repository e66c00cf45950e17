"""Messages that are queued for the commit: no transaction waits for them, and none is lost or left behind."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

import pytest
from database_parts import Session, Sessions, is_waiting, raises, together, until


def test_a_queued_message_gets_its_id_at_the_commit(sessions: Sessions, stream: str) -> None:
    late, early = sessions(), sessions()
    with late.transaction():
        assert late.call("broadcast_on_commit", stream, "late", "e", "admins", "c7") in (None, "")
        assert late.read(stream) == []
        id = early.call("broadcast", stream, "early")
    assert early.read(stream)[0] == (id, "early")
    assert early.data(stream) == ["early", "late"]
    assert [early.column(stream, name)[1] for name in ("event", "visible_to", "exclude")] == ["e", "admins", "c7"]
    assert early.queued() == 0


def test_an_open_transaction_with_queued_messages_blocks_no_other(sessions: Sessions, stream: str) -> None:
    slow, quick = sessions(), sessions()
    quick.run("set lock_timeout = '15s'")
    with slow.transaction():
        slow.call("broadcast_on_commit", stream, "slow")
        for function in ("broadcast", "broadcast_on_commit"):
            quick.call(function, stream, function)
        quick.call("broadcast_many", stream, ["many"])
    assert quick.data(stream) == ["broadcast", "broadcast_on_commit", "many", "slow"]


def test_messages_of_one_transaction_keep_their_order(sql: Session, stream: str) -> None:
    data = [str(n) for n in range(50)]
    with sql.transaction():
        for n in data:
            sql.call("broadcast_on_commit", stream, n, key=n if n == "7" else None)
            sql.call("broadcast_on_commit", f"{stream} other", n)
    assert sql.data(stream) == sql.data(f"{stream} other") == data


def test_a_rollback_leaves_nothing(sql: Session, stream: str) -> None:
    sql.run("begin")
    sql.call("broadcast", stream, "a")
    sql.call("broadcast_on_commit", stream, "b")
    assert sql.queued() == 1
    sql.run("rollback")
    assert sql.data(stream) == []
    assert sql.queued() == 0
    # The session keeps nothing of it either.
    sql.call("broadcast_on_commit", stream, "c")
    assert sql.data(stream) == ["c"]


def test_a_rollback_to_a_savepoint_removes_messages_queued_since(sql: Session, stream: str) -> None:
    for n, (before, gone, after) in enumerate(product(["", "a", "ab"], ["x", "xy"], ["", "c", "cd"])):
        name = f"{stream} {n}"
        with sql.transaction():
            for data, then in (
                (before, "savepoint s"),
                (gone, "rollback to savepoint s; savepoint t"),
                (after, "release savepoint t"),
            ):
                for each in data:
                    sql.call("broadcast_on_commit", name, each)
                sql.run(then)
        assert sql.data(name) == list(before + after)
    assert sql.queued() == 0


@pytest.mark.parametrize("what", ["all", "pgbus.ring", "pgbus.flush"])
def test_no_message_is_lost_if_constraints_are_set_immediate(what: str, sql: Session, stream: str) -> None:
    with sql.transaction():
        sql.call("broadcast_on_commit", stream, "a")
        sql.call("broadcast", stream, "b")
        sql.run(f"set constraints {what} immediate")
        sql.call("broadcast_on_commit", stream, "c")
        sql.call("broadcast", stream, "d")
        sql.run("savepoint s")
        sql.call("broadcast_on_commit", stream, "gone")
        sql.run("rollback to s")
        sql.run("set constraints all deferred")
        sql.call("broadcast_on_commit", stream, "e")
        sql.call("broadcast", stream, "f")
    assert sorted(sql.data(stream)) == list("abcdef")
    assert sql.queued() == 0


def test_a_rollback_to_before_immediate_constraints_restores_the_queue(sql: Session, stream: str) -> None:
    with sql.transaction():
        sql.call("broadcast_on_commit", stream, "a")
        sql.run("savepoint s")
        sql.run("set constraints all immediate")
        assert sql.data(stream) == ["a"]
        sql.run("rollback to s")
        assert sql.data(stream) == []
    assert sql.data(stream) == ["a"]


def test_no_message_is_lost_if_settings_are_reset(sql: Session, stream: str) -> None:
    with sql.transaction():
        for data in "abcdef":
            sql.call("broadcast_on_commit", stream, data)
            if data in "bcf":
                sql.run("reset all")
    assert sorted(sql.data(stream)) == list("abcdef")
    assert sql.queued() == 0


def test_messages_queued_by_a_deferred_trigger_are_appended(sql: Session, stream: str) -> None:
    sql.run(
        "create table late (id integer); create function announce_late() returns trigger language plpgsql as"
        f" $$ begin perform pgbus.broadcast_on_commit('{stream}', new.id::text); return null; end $$;"
        "create constraint trigger announce after insert on late deferrable initially deferred"
        " for each row execute function announce_late()"
    )
    with sql.transaction():
        sql.call("broadcast_on_commit", stream, "0")
        sql.run("insert into late values (1), (2)")
        sql.call("broadcast", f"{stream} other", "x")
    assert sorted(sql.data(stream)) == ["0", "1", "2"]
    assert sql.queued() == 0


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_opposite_orders_of_streams_never_deadlock(isolation: str, sessions: Sessions, stream: str) -> None:
    chance = random.Random(7)
    streams = [f"{stream} {n}" for n in range(6)]
    rounds = 40

    def publish(sql: Session, order: list[str]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(rounds):
                with sql.transaction(isolation):
                    for name in chance.sample(order, 4):
                        sql.call("broadcast_on_commit", name, "x")

        return run

    publishers = [sessions() for _ in range(6)]
    together(*[publish(sql, streams if n % 2 else streams[::-1]) for n, sql in enumerate(publishers)])
    assert sum(len(publishers[0].read(name)) for name in streams) == 6 * rounds * 4


def test_postgresql_detects_a_deadlock_of_broadcasts_in_opposite_orders(sessions: Sessions, stream: str) -> None:
    one, other, watcher = sessions(), sessions(), sessions()
    one.run("begin; set local deadlock_timeout = '1min'")  # the other one finds it
    other.run("begin; set local deadlock_timeout = '10ms'")
    one.call("broadcast", f"{stream} a", "x")
    other.call("broadcast", f"{stream} b", "x")
    job = one.spawn("select pgbus.broadcast(%s, 'x')", f"{stream} b")
    until(lambda: is_waiting(watcher, one), "it waits")
    with raises("40P01"):
        other.call("broadcast", f"{stream} a", "x")
    other.run("rollback")
    job.get(timeout=10)
    one.run("rollback")
