"""Within a stream, ids follow commit order, and no transaction waits for one that only queued messages for its commit."""

from __future__ import annotations

import random
from collections.abc import Callable
from time import monotonic

import gevent
import psycopg2
import pytest
from database_parts import Session, Sessions, is_waiting, together, until


def chain(sql: Session, stream: str) -> list[tuple[int, int | None]]:
    """Return the id of each message, and the previous id that it names."""
    return list(zip(sql.column(stream, "msg_id"), sql.column(stream, "prev_id"), strict=True))


# broadcast


def test_an_id_drawn_first_and_committed_last_is_not_lost(sessions: Sessions, stream: str) -> None:
    slow, quick, reader = sessions(), sessions(), sessions()
    with slow.transaction():
        first = slow.call("broadcast", stream, "slow")
        job = quick.spawn("select pgbus.broadcast(%s, 'quick')", stream)
        until(lambda: is_waiting(reader, quick), "the second broadcaster waits for the first one's commit")
        assert reader.read(stream) == []
    [(second,)] = job.get(timeout=10)
    assert reader.read(stream) == [(first, "slow"), (second, "quick")]


def test_a_broadcaster_to_another_stream_does_not_wait(sessions: Sessions, stream: str) -> None:
    slow, quick = sessions(), sessions()
    with slow.transaction():
        slow.call("broadcast", stream, "x")
        other = next(
            name
            for name in (f"{stream} {n}" for n in range(10))
            if quick.call("_lock_number", name) != quick.call("_lock_number", stream)
        )
        quick.run("set lock_timeout = '15s'")
        quick.call("broadcast", other, "x")
        assert quick.data(other) == ["x"]


def test_a_rollback_releases_the_next_publisher_and_leaves_a_hole(sessions: Sessions, stream: str) -> None:
    one, other = sessions(), sessions()
    one.run("begin")
    gone = one.call("broadcast", stream, "gone")
    job = other.spawn("select pgbus.broadcast(%s, 'kept')", stream)
    one.run("rollback")
    [(id,)] = job.get(timeout=10)
    assert id > gone
    assert other.read(stream) == [(id, "kept")]


def test_a_transaction_with_many_streams_takes_a_limited_number_of_locks(sql: Session, stream: str) -> None:
    with sql.transaction():
        sql.run("select count(pgbus.broadcast_on_commit(%s || n, 'x')) from generate_series(1, 5000) n", f"{stream} ")
    assert sql.one("select count(*) from pgbus.messages where starts_with(stream, %s)", f"{stream} ") == 5000
    with sql.transaction():
        sql.run("select count(pgbus.broadcast(%s || n, 'x')) from generate_series(1, 5000) n", f"{stream} ")
        assert sql.one("select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()") <= 2048


# prev_id


def test_each_message_names_the_previous_one(sessions: Sessions, stream: str) -> None:
    one, other = sessions(), sessions()
    one.call("broadcast", stream, "1")
    other.call("broadcast", stream, "2")
    one.call("broadcast_many", stream, ["3", "4", "5"])
    other.call("broadcast_on_commit", stream, "6")
    with one.transaction():
        one.call("broadcast", stream, "7", key="k")
        one.call("broadcast_on_commit", stream, "10")
        one.run("savepoint s")
        one.call("broadcast", stream, "gone")
        one.run("rollback to s")
        one.call("broadcast", stream, "8")
        one.call("broadcast", stream, "9")
        one.call("broadcast_on_commit", stream, "11")

    ids = [id for id, _ in one.read(stream)]
    assert one.data(stream) == [str(n) for n in range(1, 12)]
    assert [before for _, before in chain(one, stream)] == [0, *ids[:-1]]


def test_an_append_that_waited_names_the_message_that_it_waited_for(sessions: Sessions, stream: str) -> None:
    publishers = [sessions() for _ in range(6)]

    def publish(sql: Session) -> Callable[[], None]:
        def run() -> None:
            for n in range(30):
                sql.call(("broadcast", "broadcast_on_commit")[n % 2], stream, "x")

        return run

    together(*[publish(sql) for sql in publishers])
    found = chain(publishers[0], stream)
    assert len(found) == 180
    assert [before for _, before in found] == [0, *[id for id, _ in found[:-1]]]


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_transaction_with_one_snapshot_does_not_name_the_previous_id(
    isolation: str, sessions: Sessions, stream: str
) -> None:
    blind, other = sessions(), sessions()
    with blind.transaction(isolation):
        blind.call("last_id", stream)
        other.call("broadcast", stream, "unseen")
        blind.call("broadcast", stream, "a")
        blind.call("broadcast_many", stream, ["b", "c"])
        blind.call("broadcast_on_commit", stream, "d")
        blind.call("broadcast", stream, "e", key="k")
    ids = [id for id, _ in other.read(stream)]
    assert other.data(stream) == ["unseen", "a", "b", "c", "e", "d"]
    # Within a batch, it knows the previous id.
    assert [before for _, before in chain(other, stream)] == [0, None, None, ids[2], None, None]


# concurrent publishers and readers


def test_a_reader_with_a_cursor_sees_every_committed_message_once_and_in_order(sessions: Sessions, stream: str) -> None:
    # A transaction either appends at once, to one stream, or queues for its commit. Mixing the two could deadlock.
    chance = random.Random(20)
    streams = [f"{stream} {n}" for n in range(4)]
    end = monotonic() + 4.0
    committed: dict[str, set[str]] = {name: set() for name in streams}
    seen: dict[str, list[tuple[int, str]]] = {name: [] for name in streams}
    writing = [True]

    def write(sql: Session, isolation: str, number: int) -> Callable[[], None]:
        def transact(n: int) -> None:
            sent: list[tuple[str, str]] = []
            name = chance.choice(streams)
            at_once = chance.random() < 0.5
            with sql.transaction(isolation):
                for m in range(chance.randint(1, 5)):
                    data = f"{number}.{n}.{m}"
                    function = chance.choice(["broadcast", "broadcast_many"]) if at_once else "broadcast_on_commit"
                    name = name if at_once else chance.choice(streams)
                    sql.call(function, name, [data] if function == "broadcast_many" else data)
                    sent.append((name, data))
                if chance.random() < 0.1:
                    raise ZeroDivisionError
            for name, data in sent:
                committed[name].add(data)

        def run() -> None:
            n = 0
            # A busy machine needs longer for as much.
            while monotonic() < end or (sum(map(len, committed.values())) <= 200 and monotonic() < end + 30.0):
                n += 1
                try:
                    transact(n)
                except ZeroDivisionError:
                    pass  # rolled back

        return run

    def read(sql: Session) -> None:
        while True:
            last_round = not writing[0]
            for name in streams:
                seen[name] += sql.read(name, seen[name][-1][0] if seen[name] else 0, 200)
            if last_round and all(len(seen[name]) >= len(committed[name]) for name in streams):
                return
            gevent.sleep(0)

    reading = gevent.spawn(read, sessions())
    try:
        isolations = ["read committed", "read committed", "repeatable read"] * 4
        together(*[write(sessions(), isolation, number) for number, isolation in enumerate(isolations)], timeout=80.0)
        writing[0] = False
        reading.get(timeout=40)
    finally:
        reading.kill()
    for name in streams:
        ids = [id for id, _ in seen[name]]
        data = [data for _, data in seen[name]]
        assert ids == sorted(set(ids))
        assert len(data) == len(set(data)) and set(data) == committed[name]
    assert sum(map(len, seen.values())) > 200
    sql = sessions()
    assert sql.queued() == 0
    for name in streams:
        found = chain(sql, name)
        assert all(claim in (None, before[0]) for before, (_, claim) in zip([(0, None), *found], found, strict=False))


def test_a_broken_connection_at_any_point_leaves_no_trace(sessions: Sessions, stream: str) -> None:
    sql, watcher = sessions(), sessions()
    sql.run("begin")
    sql.call("broadcast", stream, "x")
    sql.call("broadcast_on_commit", stream, "y")
    watcher.run("select pg_terminate_backend(%s)", sql.pid)
    with pytest.raises(psycopg2.OperationalError):
        sql.run("commit")
    watcher.run("set lock_timeout = '15s'")
    watcher.call("broadcast", stream, "z")
    assert watcher.data(stream) == ["z"]
    assert watcher.queued() == 0
