"""Idempotency keys: a second broadcast with the same stream and key adds nothing, even in a race."""

from __future__ import annotations

import pytest
from database_parts import Session, Sessions, is_waiting, raises, together, until

SERIALIZATION_FAILURE = "40001"


def test_the_same_key_returns_the_first_id_and_adds_nothing(sql: Session, stream: str) -> None:
    first = sql.call("broadcast", stream, "first", key="k")
    sql.call("broadcast", stream, "other")
    assert sql.call("broadcast", stream, "again", key="k") == first
    assert sql.data(stream) == ["first", "other"]


def test_a_key_belongs_to_its_stream(sql: Session, stream: str) -> None:
    ids = {sql.call("broadcast", f"{stream} {n}", "x", key="k") for n in range(3)}
    assert len(ids) == 3


def test_keys_are_compared_as_bytes(sql: Session, stream: str) -> None:
    keys = ["k", "K", "k ", "\u00e9", "e\u0301"]
    assert len({sql.call("broadcast", stream, "x", key=key) for key in keys}) == len(keys)


def test_messages_without_a_key_are_never_duplicates(sql: Session, stream: str) -> None:
    assert sql.call("broadcast", stream, "x") != sql.call("broadcast", stream, "x")


def test_a_key_that_was_rolled_back_is_free(sql: Session, stream: str) -> None:
    sql.run("begin")
    gone = sql.call("broadcast", stream, "gone", key="k")
    sql.run("rollback")
    assert sql.call("broadcast", stream, "kept", key="k") != gone
    assert sql.data(stream) == ["kept"]


def test_the_same_key_twice_in_one_transaction_adds_one(sql: Session, stream: str) -> None:
    with sql.transaction():
        assert sql.call("broadcast", stream, "a", key="k") == sql.call("broadcast", stream, "b", key="k")
    assert sql.data(stream) == ["a"]


def test_broadcast_on_commit_with_the_same_key_adds_nothing(sql: Session, stream: str) -> None:
    with sql.transaction():
        sql.call("broadcast_on_commit", stream, "a", key="k")
        sql.call("broadcast_on_commit", stream, "b", key="k")
        sql.call("broadcast_on_commit", stream, "c")
    sql.call("broadcast_on_commit", stream, "d", key="k")
    assert sql.data(stream) == ["a", "c"]


def test_broadcast_and_broadcast_on_commit_share_their_keys(sql: Session, stream: str) -> None:
    sql.call("broadcast_on_commit", stream, "a", key="k")
    assert sql.call("broadcast", stream, "b", key="k") == sql.call("last_id", stream)
    assert sql.data(stream) == ["a"]


def test_the_second_transaction_waits_and_gets_the_first_id(sessions: Sessions, stream: str) -> None:
    first, second, watcher = sessions(), sessions(), sessions()
    with first.transaction():
        id = first.call("broadcast", stream, "first", key="k")
        job = second.spawn("select pgbus.broadcast(%s, 'second', key => 'k')", stream)
        until(lambda: is_waiting(watcher, second), "the second waits")
    assert job.get(timeout=10) == [(id,)]
    assert watcher.data(stream) == ["first"]


def test_the_second_transaction_appends_if_the_first_rolls_back(sessions: Sessions, stream: str) -> None:
    first, second, watcher = sessions(), sessions(), sessions()
    first.run("begin")
    id = first.call("broadcast", stream, "first", key="k")
    job = second.spawn("select pgbus.broadcast(%s, 'second', key => 'k')", stream)
    until(lambda: is_waiting(watcher, second), "the second waits")
    first.run("rollback")
    assert job.get(timeout=10)[0][0] > id
    assert watcher.data(stream) == ["second"]


@pytest.mark.parametrize("function", ["broadcast", "broadcast_on_commit"])
def test_one_of_many_concurrent_publishers_wins(function: str, sessions: Sessions, stream: str) -> None:
    racers = [sessions() for _ in range(8)]
    ids = [
        set(together(*[lambda racer=racer, key=key: racer.call(function, stream, "x", key=key) for racer in racers]))
        for key in "abcde"
    ]
    assert racers[0].column(stream, "key") == list("abcde")
    if function == "broadcast":
        assert ids == [{id} for id, _ in racers[0].read(stream)]


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_snapshot_older_than_the_first_message_fails_so_that_it_is_retried(
    isolation: str, sessions: Sessions, stream: str
) -> None:
    late, sql = sessions(), sessions()
    with raises(SERIALIZATION_FAILURE), late.transaction(isolation):
        late.call("last_id", stream)
        first = sql.call("broadcast", stream, "first", key="k")
        late.call("broadcast", stream, "late", key="k")
    # The retry gets the id of the first message.
    with late.transaction(isolation):
        assert late.call("broadcast", stream, "late", key="k") == first
    assert sql.data(stream) == ["first"]


def test_a_queued_message_in_an_older_snapshot_fails_at_the_commit(sessions: Sessions, stream: str) -> None:
    late, sql = sessions(), sessions()
    with raises(SERIALIZATION_FAILURE), late.transaction("repeatable read"):
        late.call("broadcast_on_commit", stream, "late", key="k")
        sql.call("broadcast", stream, "first", key="k")
    with late.transaction("repeatable read"):
        late.call("broadcast_on_commit", stream, "late", key="k")
    assert sql.data(stream) == ["first"]


def test_a_key_is_free_again_when_its_message_was_pruned(sql: Session, stream: str) -> None:
    first = sql.call("broadcast", stream, "x", key="k")
    sql.run("delete from pgbus.messages where stream = %s", stream)
    assert sql.call("broadcast", stream, "x", key="k") > first


# a batch


def test_a_batch_adds_only_messages_with_new_keys(sql: Session, stream: str) -> None:
    first = sql.call("broadcast", stream, "first", key="k0")
    last = sql.call("broadcast_many", stream, ["a", "b", "c", "d"], keys=["k1", "k0", None, "k1"])
    assert sql.data(stream) == ["first", "a", "c"]
    ids = dict(sql.run("select key, msg_id from pgbus.messages where stream = %s and key is not null", stream))
    assert last == ids["k1"] and ids["k0"] == first
    assert sql.call("broadcast_many", stream, ["x", "y"], keys=[None, "k0"]) == first
    assert sql.call("broadcast_many", stream, ["z", "last"], keys=["k1", None]) == sql.call("last_id", stream)
    assert sql.data(stream) == ["first", "a", "c", "x", "last"]


def test_each_message_of_a_batch_with_keys_names_the_previous_one(sql: Session, stream: str) -> None:
    sql.call("broadcast", stream, "first")
    sql.call("broadcast_many", stream, ["a", "b", "c"], keys=["a", "b", "c"])
    rows = sql.run("select msg_id, prev_id from pgbus.messages where stream = %s order by msg_id", stream)
    assert [prev for _, prev in rows] == [0, *(id for id, _ in rows[:-1])]


def test_a_batch_whose_keys_are_all_known_adds_nothing(sql: Session, stream: str) -> None:
    ids = sql.call("broadcast_many", stream, ["a", "b"], keys=["a", "b"])
    assert sql.call("broadcast_many", stream, ["a", "b"], keys=["a", "b"]) == ids
    assert sql.call("broadcast_many", stream, [], keys=[]) is None
    assert sql.data(stream) == ["a", "b"]


@pytest.mark.parametrize("keys", [["k"], ["k", "l", "m"], [["k"], ["l"]], [], ["", "k"], ["k" * 1001, "k"]])
def test_invalid_keys_are_refused(sql: Session, stream: str, keys: list[object]) -> None:
    with raises("22023", "bad key"):
        sql.call("broadcast_many", stream, ["a", "b"], keys=keys)


def test_concurrent_batches_with_the_same_keys_add_each_message_once(
    sessions: Sessions, sql: Session, stream: str
) -> None:
    publishers = [sessions() for _ in range(8)]

    def publish(n: int) -> None:
        for batch in range(10):
            keys = [f"{batch}.{m}" for m in range(5)]
            publishers[n].call(
                "broadcast_many", stream, [f"{n} {key}" for key in keys], keys=keys[n % 3 :] + keys[: n % 3]
            )

    together(*[lambda n=n: publish(n) for n in range(8)])  # type: ignore[misc]
    assert sql.one("select count(*) from pgbus.messages where stream = %s", stream) == 50
    rows = sql.run("select msg_id, prev_id from pgbus.messages where stream = %s order by msg_id", stream)
    assert [prev for _, prev in rows] == [0, *(id for id, _ in rows[:-1])]
