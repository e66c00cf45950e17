"""The election of the steward in the database: who leads, for how long, and what happens if clocks jump or a lock is held."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
from database_parts import Session, Sessions, opened_sessions, until

from pgbus_gevent.bus import Bus

LOCK = 1885823588
LEASE = 60_000
"""In milliseconds. Much longer than a test, also on a machine that stands still for some seconds."""


class Answer(NamedTuple):
    rings: bool
    leads: bool
    age: int | None
    company: bool


def ask(
    session: Session,
    me: int,
    *,
    may_lead: bool = True,
    lease: int = LEASE,
    hears: bool = True,
    rings: bool = True,
    rank: int = 0,
) -> Answer:
    """Ask who is the steward, as worker ``me``."""
    question = me, may_lead, lease, hears, rings, rank
    return Answer(*session.run("select * from pgbus._duty(%s, %s, %s, %s, %s, %s)", *question)[0])


def sign_at(session: Session, offset_ms: int, *, kind: int = 3) -> None:
    """Set the time of the last sign to so many milliseconds from now."""
    session.run("select setval('pgbus.steward_sign', %s)", (int(time.time() * 1000) + offset_ms) * 16 + kind)


@pytest.fixture
def sessions(pgbus_bus: Bus) -> Iterator[Sessions]:
    with opened_sessions(pgbus_bus.database.url) as found:
        yield found


def test_the_first_that_asks_is_the_steward_and_the_others_are_not(sessions: Sessions) -> None:
    session = sessions()
    assert ask(session, 1) == Answer(rings=True, leads=True, age=0, company=False)
    second = ask(session, 2)
    assert not second.leads
    assert second.rings
    assert second.age is not None
    assert 0 <= second.age < LEASE / 2
    assert ask(session, 1) == Answer(rings=True, leads=True, age=0, company=True)


def test_a_worker_that_may_not_lead_is_not_elected_and_learns_that_there_is_no_steward(sessions: Sessions) -> None:
    assert ask(sessions(), 1, may_lead=False) == Answer(rings=False, leads=False, age=None, company=True)


def test_the_lease_of_a_steward_without_a_sign_ends(sessions: Sessions) -> None:
    session = sessions()
    ask(session, 1)
    sign_at(session, -LEASE // 2)
    assert not ask(session, 2).leads
    sign_at(session, -LEASE - 1)
    assert ask(session, 2).leads
    assert not ask(session, 1).leads


def test_a_steward_that_is_late_keeps_its_place_if_nobody_has_taken_it(sessions: Sessions) -> None:
    session = sessions()
    ask(session, 1)
    sign_at(session, -10 * LEASE)
    assert ask(session, 1).leads
    assert not ask(session, 2).leads


@pytest.mark.parametrize("hours", [1, 24 * 365])
def test_a_clock_that_was_set_back_does_not_prolong_a_lease(sessions: Sessions, hours: int) -> None:
    session = sessions()
    ask(session, 1)
    sign_at(session, hours * 3600_000)
    assert ask(session, 2).leads
    sign_at(session, hours * 3600_000)
    assert ask(session, 2).leads, "the steward's next sign has the new time"
    assert (ask(session, 3, may_lead=False).age or 0) < LEASE / 2


def test_a_clock_that_was_set_back_a_little_does_not_keep_the_steward_from_giving_signs(sessions: Sessions) -> None:
    session = sessions()
    ask(session, 1)
    sign_at(session, LEASE // 2)
    assert not ask(session, 2).leads
    assert ask(session, 1).leads
    assert (ask(session, 2).age or 0) < LEASE / 4


def test_a_lease_that_was_given_back_is_taken_by_the_next_one_that_asks(sessions: Sessions) -> None:
    session = sessions()
    ask(session, 1)
    session.call("_leave_duty", 2)
    assert not ask(session, 2).leads, "only the steward can give it back"
    session.call("_leave_duty", 1)
    assert ask(session, 2).leads


def test_a_worker_takes_the_place_of_one_of_lower_rank(sessions: Sessions) -> None:
    session = sessions()
    assert ask(session, 1).leads
    assert not ask(session, 2).leads
    assert ask(session, 3, rank=1, hears=False).leads
    assert not ask(session, 1).leads, "that it hears is no reason to take the relay's place"
    assert not ask(session, 4, rank=1, hears=False).leads, "one relay does not take the place of another"
    assert ask(session, 5, rank=1).leads, "unless it hears, and the other does not"
    assert not ask(session, 3, rank=1, hears=False).leads
    assert ask(session, 6, rank=2).leads, "it has no clients"
    assert not ask(session, 5, rank=1).leads
    assert ask(session, 6).leads, "it has lost Redis"
    assert ask(session, 4, rank=1).leads


def test_a_worker_that_hears_takes_the_place_of_one_that_does_not(sessions: Sessions) -> None:
    session = sessions()
    assert ask(session, 1, hears=False).leads
    assert not ask(session, 2, hears=False).leads
    assert ask(session, 3).leads
    assert not ask(session, 1, hears=False).leads


def test_only_workers_that_hear_are_company_and_only_for_a_while(sessions: Sessions) -> None:
    session = sessions()
    ask(session, 1)
    ask(session, 2, hears=False)
    assert not ask(session, 1).company
    ask(session, 2)
    assert ask(session, 1).company
    session.run("select setval('pgbus.steward_company', %s)", int(time.time() * 1000) - 11_000)
    assert not ask(session, 1).company


def test_the_steward_says_whether_it_rings(sessions: Sessions) -> None:
    session = sessions()
    ask(session, 1, rings=False)
    assert not ask(session, 2, rings=True).rings
    ask(session, 1, rings=True)
    assert ask(session, 2, rings=False).rings


def test_of_those_that_ask_at_once_one_is_elected(sessions: Sessions) -> None:
    first, second = sessions(), sessions()
    first.run("begin")
    assert ask(first, 1).leads
    held = "select count(*) from pg_locks where classid = %s and pid = pg_backend_pid()"
    assert first.one(held, LOCK) == 1
    sign_at(second, -LEASE - 2000)
    assert not ask(second, 2).leads, "the lock of the other election is still held"
    first.run("commit")
    sign_at(second, -LEASE - 2000)
    assert ask(second, 2).leads


def test_a_session_that_holds_the_lock_delays_an_election_but_does_not_prevent_it(sessions: Sessions) -> None:
    session, squatter = sessions(), sessions()
    ask(session, 1)
    with squatter.transaction():
        squatter.run("select pg_advisory_xact_lock(%s, 0)", LOCK)
        sign_at(session, -LEASE - 2000)
        assert not ask(session, 2).leads
        sign_at(session, -5 * LEASE - 1)
        assert ask(session, 2).leads


def test_a_session_that_may_not_write_can_ask(sessions: Sessions) -> None:
    session, reader = sessions(), sessions()
    ask(session, 1)
    reader.run("set default_transaction_read_only = on")
    answer = ask(reader, 2, may_lead=False)
    assert (answer.leads, answer.rings) == (False, True)
    assert not ask(session, 1).company


def test_a_sign_leaves_no_transaction_id_behind_and_a_question_no_dead_row(sessions: Sessions) -> None:
    session = sessions()
    if session.one("select current_setting('server_version_num')::int") < 150000:
        pytest.skip("PostgreSQL 14 logs all sequences")
    ask(session, 1)

    def none_is_used() -> bool:
        before = session.one("select pg_snapshot_xmax(pg_current_snapshot())::text")
        for _ in range(3):
            sign_at(session, -500)
            assert ask(session, 1).leads
            assert not ask(session, 2).leads
        return bool(session.one("select pg_snapshot_xmax(pg_current_snapshot())::text") == before)

    # Again if other databases of the server have used one meanwhile.
    until(none_is_used, "no transaction id is used")


def test_signs_are_written_a_few_times_a_second_however_often_the_steward_asks(sessions: Sessions) -> None:
    session = sessions()
    ask(session, 1)
    signs = {session.one("select pg_sequence_last_value('pgbus.steward_sign')")}

    def another_came() -> bool:
        ask(session, 1)
        signs.add(session.one("select pg_sequence_last_value('pgbus.steward_sign')"))
        return len(signs) == 4

    until(another_came, "three more signs")
    times = sorted(sign // 16 for sign in signs)
    assert all(later - earlier >= 100 for earlier, later in pairwise(times)), "100 ms lie between two signs"


def test_a_backend_that_dies_while_it_elects_leaves_no_lock(sessions: Sessions) -> None:
    session, other = sessions(), sessions()
    other.run("begin")
    assert ask(other, 1).leads
    session.run("select pg_terminate_backend(%s)", other.pid)
    sign_at(session, -LEASE - 2000)
    until(lambda: ask(session, 2).leads, "the other one is elected")
