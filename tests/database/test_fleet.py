"""The roll of the workers, of which one beat in five seconds does what the fleet needs; and the list of the streams."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg2.errors
import pytest
from database_parts import Session, opened_sessions

from pgbus_gevent.database import Database
from pgbus_gevent.database import fleet as module
from pgbus_gevent.database.fleet import Fleet
from pgbus_gevent.settings.table import Settings

COUNTED = "select coalesce(pg_sequence_last_value('pgbus.counted_workers'), 0)"


@pytest.fixture
def sql(pgbus_database: str) -> Iterator[Session]:
    with opened_sessions(pgbus_database) as opener:
        yield opener()


@pytest.fixture
def fleet(pgbus_database: str) -> Iterator[Fleet]:
    database = Database(Settings(database_url=pgbus_database))
    database.migrate()
    yield database.fleet
    database.close()


def beat(fleet: Fleet, n: int = 1) -> int:
    """Have the worker ``n`` report. Return how many workers it is told."""
    return fleet.beat(f"w{n}", "h", n, 0.0, {}).workers


def join(sql: Session, total: int, silent: str = "0 s") -> None:
    """Add workers to the roll, as if they had reported some time ago."""
    sql.run(
        "insert into pgbus.workers (id, host, pid, started_at, seen_at, facts)"
        " select 'j' || n, 'h', n, now(), now() - %s::interval, '{}' from generate_series(1, %s) n",
        silent, total,
    )  # fmt: skip


def age_the_count(sql: Session, seconds: float) -> None:
    sql.run("select setval('pgbus.counted_workers', last_value - %s) from pgbus.counted_workers", int(seconds * 1e7))


def test_a_new_worker_is_counted_at_once(fleet: Fleet) -> None:
    assert [beat(fleet, n) for n in (1, 2, 3, 2)] == [1, 2, 3, 3]


def test_the_workers_are_counted_once_in_five_seconds(fleet: Fleet, sql: Session) -> None:
    beat(fleet)
    join(sql, 50)
    age_the_count(sql, -4)  # so that the machine may stand still for some seconds
    counted = sql.one(COUNTED)
    assert [beat(fleet) for _ in range(5)] == [1] * 5
    assert sql.one(COUNTED) == counted
    age_the_count(sql, 10)
    assert beat(fleet) == 51
    assert beat(fleet) == 51


@pytest.mark.parametrize("ahead", [-3600, 3600], ids=["a count of long ago", "a clock that was set back"])
def test_a_count_of_another_time_is_not_believed(ahead: int, fleet: Fleet, sql: Session) -> None:
    beat(fleet)
    join(sql, 5)
    age_the_count(sql, -ahead)
    assert beat(fleet) == 6


def test_silent_workers_are_not_counted_and_leave_the_roll_in_the_end(fleet: Fleet, sql: Session) -> None:
    beat(fleet)
    join(sql, 3, silent="30 s")
    age_the_count(sql, 6)
    assert beat(fleet) == 1
    assert sql.one("select count(*) from pgbus.workers") == 4
    sql.run("update pgbus.workers set seen_at = now() - interval '6 minutes' where id like 'j%'")
    age_the_count(sql, -4)
    beat(fleet)
    assert sql.one("select count(*) from pgbus.workers") == 4, "that is not done at each beat"
    age_the_count(sql, 10)
    beat(fleet)
    assert sql.one("select count(*) from pgbus.workers") == 1


def test_old_revocations_are_removed(fleet: Fleet, sql: Session) -> None:
    beat(fleet)
    sql.run("insert into pgbus.revocations (owner, revoked_at)"
            " select 'old', now() - interval '2 hours' from generate_series(1, 500)")  # fmt: skip
    sql.call("disconnect", "ada")
    age_the_count(sql, 6)
    beat(fleet)
    assert sql.run("select owner from pgbus.revocations") == [("ada",)]


def test_a_beat_waits_for_no_other_that_counts(fleet: Fleet, sql: Session) -> None:
    """Both do the same work, and none waits for the rows of the other."""
    beat(fleet)
    join(sql, 3, silent="10 minutes")
    with opened_sessions(sql.connection.dsn) as opener:
        other = opener()
        with other.transaction():
            other.run("select pgbus._tend_fleet()")
            age_the_count(sql, 6)
            sql.run("set statement_timeout = '15s'")
            sql.run("select pgbus._beat('w1', 'h', 1, 0, '{}')")
    assert sql.one("select count(*) from pgbus.workers") == 1


def test_the_names_in_redis_change_when_the_database_may_have_lost_messages(fleet: Fleet, sql: Session) -> None:
    sql.call("broadcast", "a", "x")
    secret, generation = fleet.redis_names()
    sql.call("broadcast", "a", "y")
    assert fleet.redis_names() == (secret, generation)
    sql.run("alter sequence pgbus.jumped restart")  # as a crash does
    crashed = fleet.redis_names()[1]
    sql.call("broadcast", "a", "z")
    assert len({generation, crashed, fleet.redis_names()[1]}) == 3
    sql.call("change_channels")
    assert fleet.redis_names()[0] != secret


# the list of the streams


def test_the_list_has_each_stream_with_its_newest_message_by_name(fleet: Fleet, sql: Session) -> None:
    assert fleet.streams() == []
    ids = {
        name: [sql.call("broadcast", name, "x") for _ in range(n)] for n, name in enumerate(["é", "b", "a:b", "B"], 1)
    }
    found = fleet.streams()
    assert [each.stream for each in found] == ["B", "a:b", "b", "é"]
    assert {each.stream: (each.messages, each.more, each.last_id) for each in found} == {
        name: (len(own), False, own[-1]) for name, own in ids.items()
    }
    newest = sql.one("select created_at from pgbus.messages where msg_id = %s", ids["é"][-1])
    assert found[-1].last_at == newest


def test_a_large_stream_is_counted_up_to_a_limit(fleet: Fleet, sql: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COUNTED", 10)
    for name, count in (("nine", 9), ("ten", 10), ("eleven", 11), ("many", 500)):
        sql.run("select pgbus.broadcast_many(%s, array_fill('x'::text, array[%s]))", name, count)
    found = {each.stream: (each.messages, each.more) for each in fleet.streams()}
    assert found == {"nine": (9, False), "ten": (10, False), "eleven": (10, True), "many": (10, True)}
    pruned = sql.one("select msg_id from pgbus.messages where stream = 'many' order by msg_id desc offset 5 limit 1")
    sql.run("delete from pgbus.messages where stream = 'many' and msg_id <= %s", pruned)
    sql.run("insert into pgbus.horizons values ('many', %s)", pruned)
    assert fleet.streams()[1][:3] == ("many", 5, False)


def test_the_list_reads_no_more_than_the_limit_of_each_stream(
    fleet: Fleet, sql: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COUNTED", 10)
    sql.run(
        "alter table pgbus.messages set (autovacuum_enabled = off)"
    )  # its snapshot would keep the vacuum from its work
    for name in "abc":
        sql.run("select pgbus.broadcast_many(%s, array_fill(repeat('x', 200), array[20000]))", name)
    sql.run("vacuum analyze pgbus.messages")
    statement = module._STREAMS.replace("%s", "11")
    sql.run("set enable_seqscan = off")
    plan = sql.one("explain (analyze, buffers, timing off, format json)" + statement)[0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 100


def test_the_reports_of_many_workers_are_taken_in_one_statement(fleet: Fleet, sql: Session) -> None:
    for n in (1, 2):
        beat(fleet, n)
    sql.run("update pgbus.workers set seen_at = seen_at - interval '10 s'")
    sql.run("update pgbus.workers set teller = 'another' where id = 'w2'")
    taken, _, workers = fleet.beat_many({"w1": {"n": 7}, "w2": {"n": 7}, "unknown": {}, "x": {"n": 1e300}})
    assert (taken, workers) == ({"w1"}, 2)
    assert [(one.id, one.facts, one.silent < 10) for one in fleet.workers()] == [
        ("w1", {"n": 7}, True),
        ("w2", {}, False),
    ]
    assert fleet.beat_many({})[0] == set()


@pytest.mark.parametrize("facts", ["[]", "null", '{"a": {"b": [1e400]}}', f'{{"a": "{"x" * 1_000_001}"}}'])
def test_facts_that_one_report_may_not_have_are_left_out_of_many(facts: str, fleet: Fleet, sql: Session) -> None:
    for n in (1, 2):
        beat(fleet, n)
    with pytest.raises(psycopg2.errors.InvalidParameterValue):
        sql.run("select pgbus._beat('w1', 'h', 1, 0, %s)", facts)
    assert sql.one("select taken from pgbus._beat_many(%s)", f'{{"w1": {facts}, "w2": {{"n": 1e18}}}}') == ["w2"]
    assert {one.id: one.facts for one in fleet.workers()} == {"w1": {}, "w2": {"n": 1e18}}
