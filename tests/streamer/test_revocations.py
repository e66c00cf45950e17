"""Revocations are read once, and none is missed: not one that commits late, nor one after a restore or a failover."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from database_parts import Session, opened_sessions, until
from streamer_parts import make_board, wait_until

from pgbus_gevent.core.rows import Mark, Revoked
from pgbus_gevent.core.wakes import CONTROL
from pgbus_gevent.database import Database
from pgbus_gevent.errors import DatabaseUnavailable
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.revocations import AGAIN, AGAIN_UNHEARD, KEPT, SEEN, Revocations


class Worker:
    """The revocations of one worker. Its clients are a record of the owners whose connections are to end."""

    def __init__(self, url: str) -> None:
        self._database = Database(Settings(database_url=url))
        self.board = make_board()
        self.board.listening.set()
        self.now = 1000.0
        self.reads: list[list[str]] = []
        self._ended: list[str] = []
        self.all_ended = 0
        self.rings = 0
        self.can_ring = True
        self.outlets: list[Told] = []
        self.part = Revocations(self, self.board, self, interval=5.0, outlets=self.outlets)  # type: ignore[arg-type]

    def revocations(self, after: Mark | None = None, *, recent: bool = False) -> Revoked:
        found = self._database.queries.revocations(after, recent=recent)
        self.reads.append([owner for _, owner in found.rows])
        return found

    def ring_control(self) -> bool:
        self.rings += 1
        return self.can_ring

    def end_owner(self, owner: str) -> int:
        self._ended.append(owner)
        return 1

    def end_all(self, *, owned: bool) -> list[None]:
        assert owned
        self.all_ended += 1
        return []

    def ended(self) -> list[str]:
        """Read, and return the owners whose connections it ends now."""
        self.part.check(self.now)
        found, self._ended = self._ended, []
        return found

    def close(self) -> None:
        self._database.close()


@pytest.fixture
def worker(pgbus_database: str, pgbus_bus: Any) -> Iterator[Worker]:
    found = Worker(pgbus_database)
    yield found
    found.close()


@pytest.fixture
def sql(pgbus_database: str) -> Iterator[Session]:
    with opened_sessions(pgbus_database) as opener:
        yield opener()


@pytest.fixture
def late(pgbus_database: str) -> Iterator[Session]:
    with opened_sessions(pgbus_database) as opener:
        yield opener()


def revoke_as(sql: Session, owner: str, xid: int, ago: str = "0 s") -> None:
    """Insert a revocation with the number of another transaction, as after a failover or a restore."""
    sql.run(
        "insert into pgbus.revocations (owner, xid, revoked_at) values (%s, %s::text::xid8, now() - %s::interval)",
        owner, xid, ago,
    )  # fmt: skip


def test_each_is_found_once(worker: Worker, sql: Session) -> None:
    sql.call("disconnect", "before the worker")
    assert worker.ended() == []
    for n in range(3):
        sql.call("disconnect", f"ada {n}")
        assert worker.ended() == [f"ada {n}"]
        assert worker.ended() == []


def test_what_was_read_is_not_read_again(worker: Worker, sql: Session) -> None:
    worker.ended()
    for n in range(20):
        sql.call("disconnect", f"ada {n}")
    assert len(worker.ended()) == 20
    sql.call("disconnect", "bob")
    assert worker.ended() == ["bob"]
    # A transaction in another database of the server has them read again for as long as it is open.
    until(lambda: worker.ended() == [] and worker.reads[-1] == [], "nothing is read again")


def test_one_that_commits_late_is_found(worker: Worker, sql: Session, late: Session) -> None:
    worker.ended()
    with late.transaction():
        late.call("disconnect", "late")
        for n in range(5):
            sql.call("disconnect", f"early {n}")
            assert worker.ended() == [f"early {n}"]
    assert worker.ended() == ["late"]
    assert worker.ended() == []


def test_one_of_a_subtransaction_that_commits_late_is_found(worker: Worker, sql: Session, late: Session) -> None:
    worker.ended()
    with late.transaction():
        late.run("select pg_current_xact_id()")
        sql.call("disconnect", "early")
        assert worker.ended() == ["early"]
        late.run("savepoint a")
        late.call("disconnect", "late")
        late.run("release savepoint a")
        assert worker.ended() == []
    assert worker.ended() == ["late"]


def test_one_that_was_open_for_longer_than_ten_minutes_is_found_even_after_a_resync(
    worker: Worker, sql: Session, late: Session
) -> None:
    worker.ended()
    with late.transaction():
        late.run("insert into pgbus.revocations (owner, revoked_at) values ('late', now() - interval '30 minutes')")
        sql.call("disconnect", "early")
        assert worker.ended() == ["early"]
        worker.board.resync()
    assert worker.ended() == ["late"]


def test_a_resync_finds_what_has_a_lower_number_and_nothing_twice(worker: Worker, sql: Session) -> None:
    worker.ended()
    sql.call("disconnect", "bob")
    assert worker.ended() == ["bob"]
    revoke_as(sql, "ada", 3)
    assert worker.ended() == [], "the number says that it was read long ago"
    worker.board.resync()
    assert worker.ended() == ["ada"]
    worker.board.resync()
    assert worker.ended() == []


def test_a_resync_during_the_read_is_not_forgotten(worker: Worker, sql: Session) -> None:
    worker.ended()
    asked = worker.revocations

    def interrupted(*arguments: Any, **options: Any) -> Revoked:
        found = asked(*arguments, **options)
        worker.board.resync()
        return found

    worker.revocations = interrupted  # type: ignore[method-assign]
    worker.ended()
    worker.revocations = asked  # type: ignore[method-assign]
    revoke_as(sql, "ada", 3)
    assert worker.ended() == ["ada"]


@pytest.mark.parametrize("what", ["restore", "failover"])
def test_a_restore_and_a_failover_are_noticed_without_a_new_session(what: str, worker: Worker, sql: Session) -> None:
    """A worker without LISTEN has no resync. The table has another file, or the server another start time."""
    worker.ended()
    sql.call("disconnect", "bob")
    assert worker.ended() == ["bob"]
    if what == "restore":
        with sql.transaction():
            sql.run("create temporary table dumped as table pgbus.revocations")
            sql.run("truncate pgbus.revocations")
            sql.run("insert into pgbus.revocations table dumped")
    else:
        assert worker.part._mark is not None
        started, path = worker.part._mark.home.split(" ")
        worker.part._mark = worker.part._mark._replace(home=f"{float(started) - 60} {path}")
    revoke_as(sql, "ada", 3)
    assert worker.ended() == ["ada"], "and bob's, which came again, is known"
    sql.call("disconnect", "cyd")
    assert worker.ended() == ["cyd"]
    until(lambda: worker.ended() == [] and worker.reads[-1] == [], "the new mark counts")


@pytest.mark.parametrize("listening", [True, False])
def test_now_and_then_the_last_minutes_are_read_again(listening: bool, worker: Worker, sql: Session) -> None:
    pause = AGAIN if listening else AGAIN_UNHEARD
    if not listening:
        worker.board.listening.clear()
    worker.ended()
    revoke_as(sql, "ada", 3)
    worker.now += pause - 1
    assert worker.ended() == []
    worker.now += 2
    assert worker.ended() == ["ada"]
    revoke_as(sql, "old", 3, ago="11 minutes")
    worker.now += pause + 1
    assert worker.ended() == []


def test_after_a_long_cut_and_a_failover_all_that_are_kept_are_read(worker: Worker, sql: Session) -> None:
    worker.ended()
    assert worker.part._mark is not None
    worker.part._mark = worker.part._mark._replace(home="another server")
    revoke_as(sql, "ada", 3, ago="30 minutes")
    worker.now += 1800
    worker.board.resync()
    assert worker.ended() == ["ada"]
    assert worker.all_ended == 0


def test_after_a_failover_an_owner_who_came_back_long_ago_stays(worker: Worker, sql: Session) -> None:
    worker.ended()
    sql.call("disconnect", "bob")
    assert worker.ended() == ["bob"]
    sql.run("update pgbus.revocations set revoked_at = now() - interval '30 minutes'")
    worker.now += 1800
    worker.board.resync()
    assert worker.ended() == []
    assert worker.part._mark is not None
    worker.part._mark = worker.part._mark._replace(home="another server")
    assert worker.ended() == []

    def forgets() -> bool:
        worker.now += 2 * SEEN
        worker.board.resync()
        worker.ended()
        return not worker.part._seen

    # A row that was written while a transaction in another database of this server ran is read again after the failover.
    until(forgets, "nothing is remembered for ever")


def test_a_worker_that_was_cut_off_for_too_long_has_everybody_authorized_anew(worker: Worker) -> None:
    worker.now += 2 * KEPT
    worker.ended()
    assert worker.all_ended == 0, "it has no connections before its first read"
    worker.now += KEPT + 1
    worker.ended()
    assert worker.all_ended == 1
    worker.now += KEPT - 1
    worker.ended()
    assert worker.all_ended == 1


def test_after_a_failure_nothing_is_lost(worker: Worker, sql: Session) -> None:
    worker.ended()
    worker.board.resync()
    revoke_as(sql, "ada", 3)
    asked = worker.revocations
    worker.revocations = None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        worker.ended()
    worker.revocations = asked  # type: ignore[method-assign]
    assert worker.ended() == ["ada"]


def test_clients_that_came_before_the_first_read_was_possible_are_not_forgotten(worker: Worker, sql: Session) -> None:
    asked, failures = worker.revocations, [DatabaseUnavailable("away")]

    def failing(*arguments: Any, **options: Any) -> Revoked:
        if failures:
            raise failures.pop()
        return asked(*arguments, **options)

    worker.revocations = failing  # type: ignore[method-assign]
    with pytest.raises(DatabaseUnavailable):
        worker.ended()
    sql.call("disconnect", "ada")
    assert worker.ended() == ["ada"]
    worker.board.resync()
    assert worker.ended() == []


@contextmanager
def running(worker: Worker) -> Iterator[None]:
    greenlet = gevent.spawn(worker.part.run)
    try:
        yield
    finally:
        greenlet.kill()


def test_a_read_that_failed_is_tried_again_soon(worker: Worker, sql: Session) -> None:
    worker.part._interval = 0.1
    asked, failures = worker.revocations, [DatabaseUnavailable("away")]

    def failing(*arguments: Any, **options: Any) -> Revoked:
        if worker.reads and failures:
            raise failures.pop()
        return asked(*arguments, **options)

    worker.revocations = failing  # type: ignore[method-assign]
    with running(worker):
        wait_until(lambda: worker.reads)
        sql.call("disconnect", "ada")
        worker.board.control.set()
        wait_until(lambda: "ada" in worker._ended)
    assert not failures


def look(worker: Worker) -> None:
    """Look for all workers, as the steward does, and wait until that is done."""
    reads = len(worker.reads)
    wait_until(lambda: not worker.board.control.is_set())
    worker.part.watch()
    wait_until(lambda: len(worker.reads) > reads)
    gevent.sleep(0)


def test_the_steward_announces_what_no_notification_announced(worker: Worker, sql: Session) -> None:
    with running(worker):
        wait_until(lambda: worker.reads)
        look(worker)
        assert worker.rings == 0, "there was nothing new"
        revoke_as(sql, "ada", 2**62)
        look(worker)
        wait_until(lambda: worker.rings == 1)
        look(worker)
        assert worker.rings == 1
        revoke_as(sql, "bob", 2**62)
        worker.board.control.set()  # a notification, which all workers hear
        wait_until(lambda: "bob" in worker.reads[-1] and not worker.board.control.is_set())
        look(worker)
        assert worker.rings == 1


def test_the_steward_announces_what_it_reads_because_its_session_is_new(worker: Worker, sql: Session) -> None:
    with running(worker):
        wait_until(lambda: worker.reads)
        revoke_as(sql, "ada", 2**62)
        worker.board.resync()
        wait_until(lambda: "ada" in worker.reads[-1] and not worker.board.control.is_set())
        gevent.sleep(0)
        assert worker.rings == 0, "it is not the steward yet"
        look(worker)
        revoke_as(sql, "bob", 2**62)
        worker.board.resync()
        wait_until(lambda: worker.rings == 1)


class Told:
    """An outlet that records what it is told."""

    def __init__(self) -> None:
        self.payloads: list[str] = []

    def heard(self, payloads: list[str]) -> None:
        self.payloads += payloads

    def found(self, ids: Sequence[int]) -> None: ...

    def restarted(self) -> None: ...


def test_the_steward_tells_its_outlets_even_if_the_queue_is_full(worker: Worker, sql: Session) -> None:
    outlet = Told()
    worker.outlets.append(outlet)
    worker.can_ring = False
    with running(worker):
        wait_until(lambda: worker.reads)
        look(worker)
        assert outlet.payloads == []
        revoke_as(sql, "ada", 2**62)
        look(worker)
        wait_until(lambda: outlet.payloads == [CONTROL])
        look(worker)
        wait_until(lambda: worker.rings == 2)
        assert outlet.payloads == [CONTROL], "once is enough, because it does not go through the queue"


def test_the_steward_announces_it_later_if_the_queue_is_full(worker: Worker, sql: Session) -> None:
    with running(worker):
        wait_until(lambda: worker.reads)
        worker.can_ring = False
        revoke_as(sql, "ada", 2**62)
        for rings in (1, 2, 3):
            look(worker)
            wait_until(lambda rings=rings: worker.rings == rings)
        worker.can_ring = True
        look(worker)
        wait_until(lambda: worker.rings == 4)
        look(worker)
        assert worker.rings == 4
