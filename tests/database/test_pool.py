"""The pool is bounded, never lends a connection to two users, and never reuses one that is in doubt."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import gevent
import pytest
from database_parts import PATIENCE, Session, together, until

from pgbus_gevent.database import pool as pool_module
from pgbus_gevent.database.connect import connect
from pgbus_gevent.database.patience import Patience
from pgbus_gevent.database.pool import Pool
from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable, PoolTimeout

NAME = "pgbus-test-pool"


def name_for(sql: Session) -> str:
    """Return the name of the sessions of this test's pools. Those of the test before may still be ending."""
    return f"{NAME} {sql.pid}"


MakePool = Callable[..., Pool]


@pytest.fixture
def make_pool(database: str, sql: Session) -> Iterator[MakePool]:
    made: list[Pool] = []

    def make(size: int = 2, timeout: float = PATIENCE) -> Pool:
        opener = partial(
            connect, database, application_name=name_for(sql), connect_timeout=PATIENCE, statement_timeout=60.0
        )
        made.append(Pool(opener, size=size, timeout=timeout))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def run(pool: Pool, statement: str = "select pg_backend_pid()") -> Any:
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
        return row[0] if row else None


def sleep_in(pool: Pool, seconds: float) -> None:
    run(pool, f"select pg_sleep({seconds})")


def sessions_of_pools(sql: Session) -> int:
    return int(
        sql.one(
            "select count(*) from pg_stat_activity where application_name = %s and datname = current_database()",
            name_for(sql),
        )
    )


def running(sql: Session) -> set[int]:
    """The backends that run a sleeping statement of a pool. After a kill, a backend lingers."""
    return set(
        sql.one(
            "select coalesce(array_agg(pid), '{}') from pg_stat_activity"
            " where application_name = %s and datname = current_database() and state = 'active' and query ~ 'sleep'",
            name_for(sql),
        )
    )


def is_whole(pool: Pool) -> bool:
    """Whether the pool can lend as many connections at once as its size. Raises if it cannot."""
    holding = [gevent.spawn(sleep_in, pool, 0.05) for _ in range(pool.size)]
    gevent.joinall(holding, timeout=PATIENCE, raise_error=True)
    return all(job.ready() for job in holding)


# bounds


def test_a_connection_is_used_again(make_pool: MakePool) -> None:
    pool = make_pool()
    assert run(pool) == run(pool) == run(pool)


def test_nothing_is_opened_before_it_is_needed(make_pool: MakePool, sql: Session) -> None:
    make_pool()
    assert sessions_of_pools(sql) == 0


def test_never_more_connections_than_its_size(make_pool: MakePool, sql: Session) -> None:
    pool = make_pool(3)
    pids = together(*[lambda: run(pool, "select pg_backend_pid() from pg_sleep(0.02)") for _ in range(15)])
    assert len(set(pids)) == 3
    assert sessions_of_pools(sql) == 3


def test_a_wait_that_takes_too_long_raises_pool_timeout(make_pool: MakePool) -> None:
    pool = make_pool(1, timeout=0.3)
    with pool.connection():
        began = monotonic()
        with pytest.raises(PoolTimeout, match=r"all 1 pooled .* stayed busy for 0\.3 s") as failed:
            run(pool)
        assert 0.25 <= monotonic() - began < PATIENCE
    assert (failed.value.size, failed.value.timeout) == (1, 0.3)
    assert run(pool)


def test_a_connect_that_fails_costs_no_slot(refusing_url: str) -> None:
    opener = partial(connect, refusing_url, application_name=NAME, connect_timeout=1.0, statement_timeout=1.0)
    pool = Pool(opener, size=1, timeout=0.2)
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable, match="cannot connect"):
            run(pool)


@pytest.fixture
def refusing_url() -> str:
    return "postgresql://u@127.0.0.1:1/d"


# connections that come back


def test_an_error_is_translated_and_costs_no_connection(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pid = run(pool)
    with pytest.raises(DatabaseError, match="division by zero") as failed:
        run(pool, "select 1 / 0")
    assert failed.value.sqlstate == "22012"
    assert run(pool) == pid


def test_an_exception_of_the_block_comes_through(make_pool: MakePool) -> None:
    pool = make_pool(1)
    with pytest.raises(ZeroDivisionError), pool.connection():
        _ = 1 / 0
    assert run(pool)


@pytest.mark.parametrize("statement", ["create table left_open (n integer)", "select 1 / 0"], ids=["open", "failed"])
def test_a_transaction_that_was_left_open_is_rolled_back(statement: str, make_pool: MakePool, sql: Session) -> None:
    pool = make_pool(1)
    pid = run(pool)
    with pool.connection() as connection:
        connection.autocommit = False
        with connection.cursor() as cursor, suppress(Exception):
            cursor.execute(statement)
    assert sql.one("select to_regclass('left_open') is null")
    with pool.connection() as connection:
        assert connection.autocommit
        assert connection.info.backend_pid == pid


def test_a_killed_query_frees_its_slot_and_its_connection_is_not_used_again(make_pool: MakePool, sql: Session) -> None:
    pool = make_pool(1)
    pid = run(pool)
    for _ in range(3):
        lingering = running(sql)
        job = gevent.spawn(sleep_in, pool, 30)
        until(lambda known=lingering: running(sql) - known, "the query runs")
        job.kill()
        other = run(pool)
        assert other != pid
        pid = other
    until(lambda: sessions_of_pools(sql) == 1, "the server notices that its clients are gone")


def test_a_query_under_a_timeout_of_gevent_frees_its_slot(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pid = run(pool)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
        sleep_in(pool, 30)
    assert run(pool) != pid


def test_a_waiter_that_is_killed_as_a_slot_becomes_free_blocks_no_other_waiter(make_pool: MakePool) -> None:
    pool = make_pool(1)
    run(pool)
    jobs: list[Any] = []

    def hold() -> None:
        with pool.connection():
            jobs.extend([gevent.spawn(run, pool), gevent.spawn(run, pool)])
            gevent.idle()  # both wait when this returns
            # It will be dead before it learns that it has got the slot.
            jobs[0].kill(block=False)

    gevent.spawn(hold).get(timeout=PATIENCE)
    assert jobs[1].get(timeout=PATIENCE)


def test_a_killed_waiter_costs_no_slot(make_pool: MakePool) -> None:
    pool = make_pool(1)
    with pool.connection():
        waiting = [gevent.spawn(run, pool) for _ in range(5)]
        gevent.sleep(0)
        gevent.killall(waiting)
    assert is_whole(pool)


def test_a_connection_that_breaks_in_use_raises_and_is_replaced(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pid = run(pool)
    with pytest.raises(DatabaseUnavailable):
        run(pool, "select pg_terminate_backend(pg_backend_pid())")
    assert run(pool) != pid


def test_connections_that_broke_while_idle_are_replaced_without_an_error(make_pool: MakePool, sql: Session) -> None:
    pool = make_pool(3)
    assert is_whole(pool)
    sql.run(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = %s and datname = current_database()",
        name_for(sql),
    )
    until(lambda: sessions_of_pools(sql) == 0, "they are gone")
    assert is_whole(pool)


def test_a_connection_that_was_idle_for_long_is_asked_first(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, sql: Session
) -> None:
    monkeypatch.setattr(pool_module, "IDLE_CHECK", 0.0)
    pool = make_pool(1)
    pid = run(pool)
    assert run(pool) == pid
    sql.run("select pg_terminate_backend(%s)", pid)
    assert run(pool) != pid


def test_a_notice_to_an_idle_connection_does_not_cost_it(make_pool: MakePool, sql: Session) -> None:
    pool = make_pool(1)
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("listen something")
        pid = connection.info.backend_pid
    sql.run("notify something")
    assert run(pool) == pid


def test_a_pool_that_is_not_needed_any_more_shrinks_to_one_connection(
    make_pool: MakePool, sql: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(4)
    assert is_whole(pool)
    assert sessions_of_pools(sql) == 4
    monkeypatch.setattr(pool_module, "KEPT", 0.3)
    until(lambda: run(pool) and sessions_of_pools(sql) == 1, "only the one that is used remains")
    pid = run(pool)
    gevent.sleep(0.5)
    assert run(pool) == pid, "the last one is kept"


# turns

CHORE = Patience(60.0, waits=True)


def chore(pool: Pool, seconds: float = 0.0) -> int:
    """Run a statement that need not be prompt. Return its session."""
    with pool.connection(CHORE) as connection, connection.cursor() as cursor:
        cursor.execute(f"select pg_backend_pid() from pg_sleep({seconds})")
        return int(cursor.fetchone()[0])


def test_statements_that_need_not_be_prompt_share_one_connection(
    make_pool: MakePool, sql: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine, opening the connection alone may take longer than the usual wait.
    monkeypatch.setattr(pool_module, "WAIT", PATIENCE)
    monkeypatch.setattr(pool_module, "LIFE", PATIENCE)
    pool = make_pool(5)
    pids = together(*[lambda: chore(pool, 0.01) for _ in range(8)], lambda: pool.ask(ask))
    assert len({pid for pid in pids if pid}) == 1
    assert sessions_of_pools(sql) == 1


def test_a_prompt_statement_does_not_wait_for_them(make_pool: MakePool) -> None:
    pool = make_pool(5)
    slow = gevent.spawn(chore, pool, 50.0)
    until(lambda: pool.in_use == 1, "it runs")
    run(pool)
    assert not slow.ready()
    slow.kill()


def test_a_slow_one_delays_the_others_only_for_a_moment(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "LIFE", PATIENCE)
    pool = make_pool(5)
    slow = gevent.spawn(chore, pool, 50.0)
    until(lambda: pool.in_use == 1, "it runs")
    pool.ask(ask)
    chore(pool)
    assert not slow.ready()
    slow.kill()
    assert chore(pool) and is_whole(pool), "a turn that ends with the greenlet is given back"


# closing


def test_a_closed_pool_says_so(make_pool: MakePool, sql: Session) -> None:
    pool = make_pool()
    assert is_whole(pool)
    pool.close()
    pool.close()
    until(lambda: sessions_of_pools(sql) == 0, "its connections are closed")
    with pytest.raises(DatabaseUnavailable, match="the connection pool is closed"):
        run(pool)


def test_closing_lets_a_query_finish_and_then_closes_its_connection(make_pool: MakePool, sql: Session) -> None:
    pool = make_pool()
    sql.run("select pg_advisory_lock(7)")
    job = gevent.spawn(run, pool, "select 'done' from pg_advisory_xact_lock(7)")
    waits = "locktype = 'advisory' and objid = 7 and not granted"
    here = "database = (select oid from pg_database where datname = current_database())"
    until(lambda: sql.one(f"select count(*) from pg_locks where {waits} and {here}"), "the query runs")
    pool.close()
    sql.run("select pg_advisory_unlock(7)")
    assert job.get(timeout=PATIENCE) == "done"
    until(lambda: sessions_of_pools(sql) == 0, "the connection is closed")


def test_closing_ends_all_waits(make_pool: MakePool) -> None:
    pool = make_pool(1)
    with pool.connection():
        job = gevent.spawn(run, pool)
        gevent.sleep(0)
        pool.close()
        with pytest.raises(DatabaseUnavailable, match="closed"):
            job.get(timeout=PATIENCE)


def test_discarding_idle_connections_leaves_those_in_use(make_pool: MakePool) -> None:
    pool = make_pool(2)
    assert is_whole(pool)
    with pool.connection() as connection:
        pool.discard_idle()
        assert not connection.closed
    assert is_whole(pool)


# all at the same time


def test_under_stress_no_connection_is_ever_with_two(make_pool: MakePool, sql: Session) -> None:
    chance = random.Random(11)
    pool = make_pool(4)
    end = monotonic() + 2.0
    used: set[int] = set()
    most = 0
    served = 0

    def goes_on() -> bool:
        """Whether it is too early to end. A busy machine needs longer for as much."""
        return monotonic() < end or ((most < 4 or served <= 100) and monotonic() < end + PATIENCE)

    def work() -> None:
        nonlocal most, served
        while goes_on():
            with suppress(DatabaseError), pool.connection() as connection:
                assert id(connection) not in used, "it is with somebody else"
                used.add(id(connection))
                most = max(most, len(used))
                try:
                    kind = chance.random()
                    if kind < 0.1:
                        connection.autocommit = False
                    with connection.cursor() as cursor:
                        cursor.execute("select pg_backend_pid() from pg_sleep(%s)", (chance.random() / 500,))
                        assert cursor.fetchone() == (connection.info.backend_pid,)
                        served += 1
                        if kind < 0.2:
                            cursor.execute("select 1 / 0")
                        elif kind < 0.25:
                            cursor.execute("select pg_terminate_backend(pg_backend_pid())")
                finally:
                    used.discard(id(connection))
            gevent.sleep(0)

    workers = [gevent.spawn(work) for _ in range(20)]
    while goes_on():
        gevent.sleep(0.01)
        victim = chance.randrange(len(workers))
        workers[victim].kill(block=False)
        workers.append(gevent.spawn(work))
        sessions_of_pools(sql)  # no faster than the server answers
    gevent.joinall(workers, timeout=PATIENCE, raise_error=True)
    assert all(worker.ready() for worker in workers)
    assert most == 4
    assert served > 100
    assert is_whole(pool)
    until(lambda: sessions_of_pools(sql) == 4, "the server notices that the clients of killed statements are gone")


# signs of life


def ask(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("select 1")


def test_a_doubt_closes_idle_connections(make_pool: MakePool) -> None:
    pool = make_pool()
    before = run(pool)
    assert run(pool) == before
    pool.doubt()
    assert run(pool) != before


def test_life_is_checked_over_a_new_connection_if_none_is_free(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "LIFE", PATIENCE)
    pool = make_pool(size=1, timeout=0.2)
    busy = gevent.spawn(sleep_in, pool, 30)
    until(lambda: pool.in_use == 1, "it is in use")
    pool.ask(ask)
    assert pool.in_use == 1
    busy.kill()


def test_the_question_for_life_has_a_deadline_of_its_own_and_brings_the_others_into_doubt(
    make_pool: MakePool, sql: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "LIFE", 0.2)
    monkeypatch.setattr(pool_module, "DOUBT", 0.3)
    pool = make_pool()
    other = gevent.spawn(sleep_in, pool, 55)
    until(lambda: running(sql), "it runs")  # before that, its connection cannot come into doubt

    def hangs(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("select pg_sleep(30)")

    began = monotonic()
    with pytest.raises(DatabaseUnavailable):
        pool.ask(hangs)
    other.join(PATIENCE)
    assert isinstance(other.exception, DatabaseUnavailable) and monotonic() - began < PATIENCE
