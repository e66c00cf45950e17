"""The roll of the workers: a beat is one short statement, and one beat in five seconds does what the fleet needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from database_parts import Session, opened_sessions

from pgbus_gevent.database import Database
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
    counted = sql.one(COUNTED)
    assert [beat(fleet) for _ in range(5)] == [1] * 5
    assert sql.one(COUNTED) == counted
    age_the_count(sql, 5.5)
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
    beat(fleet)
    assert sql.one("select count(*) from pgbus.workers") == 4, "that is not done at each beat"
    age_the_count(sql, 6)
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
            sql.run("set statement_timeout = '3s'")
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
