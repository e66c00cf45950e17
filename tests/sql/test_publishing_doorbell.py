"""The doorbell: the notifications of publishers. No notification ever waits for another transaction."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing

import gevent
import pytest
from database_parts import BELL, PATIENCE, Ear, Session, Sessions, is_waiting, opened_sessions, together, until
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.buckets import ALL_BUCKETS, bucket_of
from pgbus_gevent.core.wakes import Ephemeral, Moved, NewMessage, parse
from pgbus_gevent.database import Database
from pgbus_gevent.settings.table import Settings

LIMIT = 7999
"""The largest payload that PostgreSQL takes, in bytes."""

many_examples = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"))
names = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=40)
awkward_names = st.one_of(names, st.text('",\\ab*[]', min_size=1, max_size=6))


def named(payload: str) -> list[str]:
    """Return the streams that a notification names."""
    wake = parse(payload)
    return [wake.stream] if isinstance(wake, NewMessage) else (wake.streams or []) if isinstance(wake, Moved) else []


def all_named(payloads: list[str]) -> list[str]:
    """Return the streams that notifications name, in alphabetical order."""
    return sorted(name for payload in payloads for name in named(payload))


# one notification


def test_a_notification_carries_the_whole_message(sql: Session, ear: Ear, stream: str) -> None:
    first = sql.call("broadcast", stream, "first")
    id = sql.call("broadcast", stream, "<p>paid</p>", "order.paid", "admins", "c7")
    at = sql.one("select extract(epoch from created_at) from pgbus.messages where msg_id = %s", id)

    assert [parse(payload) for payload in ear.heard_until(sql)] == [
        NewMessage(stream, first, 0, pytest.approx(float(at), abs=60), None, "first", None, None),
        NewMessage(stream, id, first, float(at), "order.paid", "<p>paid</p>", "admins", "c7"),
    ]


@pytest.mark.parametrize("function", ["broadcast", "broadcast_on_commit"])
def test_both_functions_notify_with_the_whole_message(function: str, sql: Session, ear: Ear, stream: str) -> None:
    with sql.transaction():
        sql.call(function, stream, "x", "e", key="k")
    [payload] = ear.heard_until(sql)
    wake = parse(payload)
    assert isinstance(wake, NewMessage)
    assert (wake.stream, wake.id, wake.data, wake.event) == (stream, sql.call("last_id", stream), "x", "e")


def test_a_batch_of_one_notifies_with_the_whole_message(sql: Session, ear: Ear, stream: str) -> None:
    sql.call("broadcast_many", stream, ["x"])
    assert [type(parse(payload)) for payload in ear.heard_until(sql)] == [NewMessage]


def test_a_transaction_with_one_snapshot_notifies_without_the_previous_id(sql: Session, ear: Ear, stream: str) -> None:
    with sql.transaction("repeatable read"):
        sql.call("broadcast", stream, "x")
    [payload] = ear.heard_until(sql)
    assert parse(payload)[2] is None


@many_examples
@given(name=awkward_names, data=text, event=text, audience=text.filter(bool))
@example(name='a"b\\', data='"\\\b\f\n\r\t\x01\x1f\x7f\u2028</script>\U0001f600', event='"', audience="'")
def test_a_notification_carries_any_published_message(
    sql: Session, ear: Ear, name: str, data: str, event: str, audience: str
) -> None:
    event = event.replace("\n", "").replace("\r", "")
    id = sql.call("broadcast", name, data, event, audience, audience)
    [payload] = ear.heard_until(sql)
    assert parse(payload)[:2] == (name, id)
    assert parse(payload)[4:] == (event or None, data, audience, audience, None)


@pytest.mark.parametrize("character", ["x", "é", '"', "\n", "\x01", "\U0001f600"], ids=ascii)
def test_a_notification_never_exceeds_the_limit_of_postgresql(
    character: str, sql: Session, ear: Ear, stream: str
) -> None:
    grown = len(sql.one("select to_json(%s::text)::text", character).encode()) - 2
    sizes = [*range(7500 // grown, 8100 // grown + 1, 7), 20_000]
    for size in sizes:
        sql.call("broadcast", stream, character * size, key=f"{character} {size}")
        sql.call("broadcast_ephemeral", stream, character * size)
    payloads = ear.heard_until(sql)
    assert len(payloads) == 2 * len(sizes)
    assert max(len(payload.encode()) for payload in payloads) <= LIMIT
    wakes = [parse(payload) for payload in payloads]
    # Notifications of small messages have the content, those of large messages do not.
    assert isinstance(wakes[0], NewMessage) and wakes[1][3] == character * sizes[0]
    assert wakes[-2] == Moved([stream])
    assert isinstance(wakes[-1], Ephemeral) and wakes[-1].data is None


def test_all_fields_count_towards_the_limit(sql: Session, ear: Ear, stream: str) -> None:
    sql.call("broadcast", stream, "x" * 7000, "e" * 1000)
    sql.call("broadcast", stream, "x", None, "v" * 9000)
    sql.call("broadcast", stream, "x", None, None, '"' * 4000)
    assert [parse(payload) for payload in ear.heard_until(sql)] == [Moved([stream])] * 3


# one notification per transaction


def test_a_transaction_rings_once_for_all_its_messages(sql: Session, ear: Ear, stream: str) -> None:
    with sql.transaction():
        for n in range(20):
            sql.call("broadcast", stream, str(n))
            sql.call("broadcast_many", f"{stream} many", ["x"] * 100)
            sql.call("broadcast_on_commit", f"{stream} late", str(n))
    assert all_named(ear.heard_until(sql)) == [stream, f"{stream} late", f"{stream} many"]


@pytest.mark.parametrize("function", ["broadcast", "broadcast_on_commit"])
def test_several_messages_of_one_stream_notify_with_its_name(
    function: str, sql: Session, ear: Ear, stream: str
) -> None:
    with sql.transaction():
        sql.call(function, stream, "x")
        sql.call(function, stream, "x")
    assert [parse(payload) for payload in ear.heard_until(sql)] == [Moved([stream])]


def test_a_batch_notifies_with_the_name_of_its_stream(sql: Session, ear: Ear, stream: str) -> None:
    sql.call("broadcast_many", stream, ["a", "b"])
    assert [parse(payload) for payload in ear.heard_until(sql)] == [Moved([stream])]


@many_examples
@given(st.lists(awkward_names, min_size=2, max_size=8, unique=True))
@example(['a"b', "b"])
@example(["a", "b", ","])
@example(["x,", ",y", ","])
@example(["aa", "a"])
@example(["a", "*", "b"])
@example(["*", "a"])
@example([" a", "a", "a "])
def test_every_stream_that_moved_is_named(sql: Session, ear: Ear, found: list[str]) -> None:
    for function in ("broadcast", "broadcast_on_commit"):
        with sql.transaction():
            for name in found:
                sql.call(function, name, "x")
        assert all_named(ear.heard_until(sql)) == sorted(found)


def in_one_bucket(stream: str, count: int, filler: str) -> list[str]:
    """Return names of 120 characters or more that have the same bucket."""
    names = (f"{stream} {n} ".ljust(120, filler) for n in itertools.count())
    return list(itertools.islice((name for name in names if bucket_of(name) == 7), count))


@pytest.mark.parametrize(("filler", "named"), [("x", True), ('"', False), ("é", False), ("\\", False)])
def test_a_notification_without_room_names_no_streams(
    filler: str, named: bool, sql: Session, ear: Ear, stream: str
) -> None:
    names = in_one_bucket(stream, 38, filler)
    with sql.transaction():
        for name in names:
            sql.call("broadcast", name, "x")
    [payload] = ear.heard_until(sql)
    assert len(payload.encode()) <= LIMIT
    assert parse(payload) == Moved(names if named else None)

    many = "select count(pgbus.broadcast(%s || n || repeat(%s, 100), 'x')) from generate_series(1, 90) n"
    sql.run(many, stream, filler)
    assert [parse(payload) for payload in ear.heard_until(sql)] == [Moved(None)]


def test_a_transaction_notifies_in_each_bucket_about_the_streams_of_that_bucket(
    sql: Session, database: str, stream: str
) -> None:
    names = [f"{stream} {n}" for n in range(20)]
    with closing(Database(Settings.load(database_url=database))) as found, closing(found.listen()) as session:
        session.follow(names[:1])
        with sql.transaction():
            for name in names:
                sql.call("broadcast", name, "x")
        # One wait may end before the server delivers.
        [payload] = until(lambda: session.receive(PATIENCE)[0], "a notification comes")
        assert parse(payload) == Moved([name for name in names if bucket_of(name) == bucket_of(names[0])])


def test_a_worker_and_the_database_agree_about_the_bucket_of_a_stream(sql: Session) -> None:
    names = ["orders", "é", "日本", "\U0001f600", "a" * 255, '"', "*", *(f"s{n}" for n in range(300))]
    rows = sql.run("select pgbus._bucket(n) from unnest(%s) with ordinality as u (n, o) order by o", names)
    assert [bucket for (bucket,) in rows] == [bucket_of(name) for name in names]
    assert {bucket for (bucket,) in rows} <= ALL_BUCKETS


def test_a_duplicate_does_not_ring(sql: Session, ear: Ear, stream: str) -> None:
    sql.call("broadcast", stream, "x", key="k")
    assert len(ear.heard_until(sql)) == 1
    sql.call("broadcast", stream, "x", key="k")
    sql.call("broadcast_on_commit", stream, "x", key="k")
    assert ear.heard_until(sql) == []


@pytest.mark.parametrize("function", ["broadcast", "broadcast_on_commit", "broadcast_ephemeral"])
def test_a_transaction_that_is_rolled_back_does_not_ring(function: str, sql: Session, ear: Ear, stream: str) -> None:
    sql.run("begin")
    sql.call(function, stream, "x")
    sql.run("rollback")
    assert ear.heard_until(sql) == []


@pytest.mark.parametrize("function", ["broadcast", "broadcast_on_commit"])
def test_a_transaction_rings_after_a_rollback_of_its_first_append(
    function: str, sql: Session, ear: Ear, stream: str
) -> None:
    with sql.transaction():
        sql.run("savepoint s")
        sql.call(function, f"{stream} gone", "gone")
        sql.call(function, f"{stream} gone too", "gone")
        sql.run("rollback to s")
        sql.call(function, stream, "kept")
    [payload] = ear.heard_until(sql)
    assert parse(payload)[:2] == (stream, sql.call("last_id", stream))


def test_a_rollback_to_a_savepoint_removes_the_names_of_later_streams(sql: Session, ear: Ear, stream: str) -> None:
    with sql.transaction():
        sql.call("broadcast", stream, "kept")
        sql.run("savepoint s")
        sql.call("broadcast", f"{stream} gone", "gone")
        sql.run("rollback to s")
    [payload] = ear.heard_until(sql)
    assert isinstance(parse(payload), NewMessage)


def test_messages_that_are_appended_after_immediate_constraints_ring(sql: Session, ear: Ear, stream: str) -> None:
    with sql.transaction():
        sql.call("broadcast", stream, "a")
        sql.run("set constraints all immediate")
        sql.run("set constraints all deferred")
        sql.call("broadcast", f"{stream} later", "b")
    assert [parse(payload)[0] for payload in ear.heard_until(sql)] == [stream, f"{stream} later"]


def test_a_function_with_settings_of_its_own_rings_once(sql: Session, ear: Ear, stream: str) -> None:
    sql.run(
        "create function twice(name text) returns void language plpgsql set search_path = pg_catalog as $$ begin"
        " perform pgbus.broadcast(name, 'a'); perform pgbus.broadcast_on_commit(name, 'b'); end $$"
    )
    with sql.transaction():
        sql.run("select twice(%s)", stream)
        sql.run("select twice(%s)", f"{stream} other")
    assert all_named(ear.heard_until(sql)) == [stream, f"{stream} other"]


# no transaction waits for a notification


@pytest.mark.parametrize("function", ["broadcast", "broadcast_on_commit", "broadcast_many"])
def test_an_open_transaction_delays_no_notification(function: str, sessions: Sessions, ear: Ear, stream: str) -> None:
    slow, quick = sessions(), sessions()
    with slow.transaction():
        slow.call(function, f"{stream} slow", ["x"] if function == "broadcast_many" else "x")
        quick.call("broadcast", stream, "quick")
        [payload] = ear.heard_until(quick)
        assert parse(payload)[0] == stream
    [payload] = ear.heard_until(quick)
    assert parse(payload)[0] == f"{stream} slow"


def test_a_commit_that_waits_for_the_lock_of_a_stream_delays_no_notification(
    sessions: Sessions, ear: Ear, stream: str
) -> None:
    holder, waiter, quick = sessions(), sessions(), sessions()
    with holder.transaction():
        holder.call("broadcast", f"{stream} held", "x")
        waiter.run("begin")
        waiter.call("broadcast", stream, "x")
        waiter.call("broadcast_on_commit", f"{stream} held", "x")
        job = waiter.spawn("commit")
        until(lambda: is_waiting(quick, waiter), "the commit waits")
        quick.call("broadcast", f"{stream} quick", "x")
        assert [parse(payload)[0] for payload in ear.heard_until(quick)] == [f"{stream} quick"]
    job.get(timeout=10)
    # The notification of the waiter, of the holder, or of both: that depends on which of them gets the doorbell.
    heard = all_named(ear.heard_until(quick))
    assert f"{stream} held" in heard and set(heard) <= {stream, f"{stream} held"}


def test_a_transaction_without_a_bell_neither_waits_nor_rings(sessions: Sessions, ear: Ear, stream: str) -> None:
    holder, quick = sessions(), sessions()
    quick.run("set lock_timeout = '15s'")
    with holder.transaction():
        # The holder publishes, as a transaction that holds a bell should, so it is no squatter.
        holder.call("broadcast", f"{stream} held", "x")
        hold(holder, 0, 1)
        for function in ("broadcast", "broadcast_on_commit"):
            quick.call(function, stream, "x")
        assert ear.heard_until(quick) == []
    assert quick.data(stream) == ["x", "x"]
    assert len(ear.heard_until(quick)) == 1  # the notification of the holder
    quick.call("broadcast", stream, "y")
    assert len(ear.heard_until(quick)) == 1


def test_publishers_ring_once_a_second_if_a_session_keeps_the_bells_and_it_is_named(
    sessions: Sessions, ear: Ear, stream: str
) -> None:
    holder, quick = sessions(), sessions()
    quick.run("select setval('pgbus.last_look', 0)")
    for bell in (0, 1):
        holder.run("select pg_advisory_lock(%s, %s)", BELL, bell)
    quick.call("broadcast", stream, "x")
    assert len(ear.heard_until(quick)) == 1
    assert f"the doorbell is held by process {holder.pid}, which does not publish" in quick.connection.notices[-1]
    # In one go, so that no second passes in between.
    quick.run(
        "begin; select pgbus.broadcast(%s, 'y');"
        " select setval('pgbus.last_look', (extract(epoch from clock_timestamp()) * 1000)::bigint + 900); commit",
        stream,
    )
    assert ear.heard_until(quick) == []
    holder.run("select pg_advisory_unlock_all()")  # its backend may end later than the next test begins


def test_another_transaction_rings_during_a_long_commit_that_rings(sessions: Sessions, ear: Ear, stream: str) -> None:
    holder, quick = sessions(), sessions()
    with holder.transaction():
        hold(holder, 0)
        quick.call("broadcast", stream, "x")
        assert len(ear.heard_until(quick)) == 1


def test_some_of_many_concurrent_publishers_ring_and_all_messages_are_stored(
    sessions: Sessions, ear: Ear, stream: str
) -> None:
    publishers = [sessions() for _ in range(8)]

    def publish(n: int) -> None:
        for _ in range(20):
            publishers[n].call("broadcast", f"{stream} {n}", "x")
            gevent.sleep(0)

    together(*[lambda n=n: publish(n) for n in range(8)])
    payloads = ear.heard_until(publishers[0])
    assert 1 <= len(payloads) <= 160
    assert all(isinstance(parse(payload), NewMessage) for payload in payloads)
    assert [len(publishers[0].read(f"{stream} {n}")) for n in range(8)] == [20] * 8


# the time between two notifications


def hold(sql: Session, *bells: int) -> None:
    for bell in bells:
        sql.run("select pg_advisory_xact_lock(%s, %s)", BELL, bell)


def rang(sql: Session, ago: int) -> None:
    """Set the time of the last notification to ``ago`` milliseconds before now."""
    sql.run("select setval('pgbus.last_ring', (extract(epoch from clock_timestamp()) * 1000)::bigint - %s)", ago)


@pytest.fixture
def a_minute(sql: Session) -> Iterator[None]:
    """Set the least time between two notifications to a minute."""
    sql.run("select setval('pgbus.ring_pause', 60000)")
    yield
    sql.run("select setval('pgbus.ring_pause', 0), setval('pgbus.last_ring', 0)")


@pytest.mark.parametrize(
    ("ago", "notifications"),
    [(20_000, 0), (61_000, 1), (-30_000, 0), (-600_000, 1)],
    ids=["too soon", "long ago", "a clock set back by a little", "a clock set back by much"],
)
@pytest.mark.parametrize("function", ["broadcast", "broadcast_on_commit"])
def test_notifications_keep_their_distance(
    function: str, ago: int, notifications: int, a_minute: None, sql: Session, ear: Ear, stream: str
) -> None:
    rang(sql, ago)
    sql.call(function, stream, "x")
    assert len(ear.heard_until(sql)) == notifications
    sql.call(function, stream, "y")
    assert ear.heard_until(sql) == []
    assert sql.data(stream) == ["x", "y"]


def test_the_distance_grows_with_the_number_of_live_workers(sql: Session) -> None:
    def pace() -> int:
        pause = int(sql.call("_pace_rings"))
        assert sql.one("select coalesce(pg_sequence_last_value('pgbus.ring_pause'), 0)") == pause
        return pause

    try:
        for total, pause in [(0, 0), (3, 0), (4, 1), (80, 20), (1000, 25)]:
            sql.run(
                "insert into pgbus.workers (id, host, pid, started_at, facts)"
                " select 'w' || n, 'h', n, now(), '{}' from generate_series(1, %s) n on conflict do nothing",
                total,
            )
            assert pace() == pause
        sql.run("update pgbus.workers set seen_at = seen_at - interval '1 minute' where pid > 16")
        assert pace() == 4
    finally:
        sql.run("delete from pgbus.workers")
    assert pace() == 0


def test_the_beat_of_a_worker_sets_the_pace(pgbus_bus: Bus) -> None:
    fleet = pgbus_bus.database.fleet
    assert [fleet.beat(f"w{n}", "h", n, 0.0, {}).pace for n in range(9)] == [0.0] * 3 + [0.001] * 4 + [0.002] * 2
    with opened_sessions(pgbus_bus.database.url) as opener:
        assert opener().one("select pg_sequence_last_value('pgbus.ring_pause')") == 2


def test_workers_that_hear_a_relay_do_not_slow_the_bells(pgbus_bus: Bus) -> None:
    fleet = pgbus_bus.database.fleet
    assert [fleet.beat(f"w{n}", "h", n, 0.0, {"relayed": True}).pace for n in range(9)] == [0.0] * 9
    assert fleet.beat("x", "h", 1, 0.0, {}).workers == 10, "they count as workers"
    with opened_sessions(pgbus_bus.database.url) as opener:
        for relayed, pause in [(False, 2), (True, 0)]:
            for n in range(9):
                fleet.beat(f"w{n}", "h", n, 0.0, {"relayed": relayed})
            assert int(opener().call("_pace_rings")) == pause
        for n in range(9):
            fleet.beat(f"w{n}", "h", n, 0.0, {})
        fleet.beat_many({f"w{n}": {} for n in range(9)})
        assert int(opener().call("_pace_rings")) == 0, "reports through a relay are those of workers that hear one"
