"""The steward of the workers: who leads, who takes over, and when the duties are done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from time import monotonic
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from database_parts import Session, opened_sessions, until
from streamer_parts import make_board, wait_until

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.board import Board
from pgbus_gevent.core.rows import DutyAnswer, DutyQuestion, IdRow, IdTailRows
from pgbus_gevent.database.stewardship import Stewardship
from pgbus_gevent.errors import NO_RIGHT, DatabaseError, DatabaseUnavailable
from pgbus_gevent.streamer import steward as steward_module
from pgbus_gevent.streamer import steward_sweeps
from pgbus_gevent.streamer.steward import LEASE, Steward
from pgbus_gevent.streamer.steward_duties import do_duty
from pgbus_gevent.streamer.steward_ear import Ear


class Office:
    """The election, in memory. ``answer`` is the answer to every question; if it is None, the database is away."""

    def __init__(self, *, leads: bool = True, age: float | None = 0.0) -> None:
        self.answered = inf
        self.answer: DutyAnswer | None = DutyAnswer(leads, age, rings=False, company=False)
        self.asked = 0
        self.asked_at: list[float] = []
        self.left = 0
        self.takes = 0.0
        self.rings = False
        self.rank = 0
        self.may_lead = True

    def duty(self, question: DutyQuestion) -> DutyAnswer:
        self.asked += 1
        self.asked_at.append(monotonic())
        self.may_lead = question.may_lead
        self.lease, self.hears, self.rings = question.lease, question.hears, question.rings
        self.rank = question.rank
        gevent.sleep(self.takes)
        if self.answer is None:
            raise DatabaseUnavailable("PostgreSQL is not available, because the test says so")
        return self.answer

    def leave_duty(self, me: int) -> None:
        self.left += 1

    def ids(
        self, question: DutyQuestion, above: int | None, holes: Sequence[tuple[int, int]], *, bind: bool, limit: int
    ) -> IdTailRows:
        return IdTailRows(self.duty(question), 1, 0, None, [], [])

    def ring_for(self, ids: Sequence[int]) -> bool:
        return True

    def ring_everybody(self) -> bool:
        return True


def steward(source: Office | Stewardship, board: Board, **how: Any) -> Steward:
    """Return a steward that has no session to hear with."""
    ear = Ear(None)  # type: ignore[arg-type]
    return Steward(source, board, ear, **how)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steward_sweeps, "RENEW", 0.01)
    monkeypatch.setattr(steward_module, "RENEW_ALONE", 0.01)
    monkeypatch.setattr(steward_module, "ASK", (0.01, 0.02))


@contextmanager
def running(part: Steward) -> Iterator[gevent.Greenlet[..., None]]:
    greenlet = gevent.spawn(part.run)
    try:
        yield greenlet
    finally:
        greenlet.kill()


def hearing() -> Board:
    board = make_board()
    board.listening.set()
    return board


def test_a_worker_leads_for_the_length_of_a_lease_from_its_question_on() -> None:
    now = 100.0
    office = Office()
    part = steward(office, hearing(), clock=lambda: now)
    with running(part):
        wait_until(lambda: part.leads)
        office.answer = None
        now += LEASE - 0.1
        assert part.leads
        now += 0.2
        assert not part.leads, "another worker may have taken its place"


def test_a_slow_answer_does_not_prolong_a_lease() -> None:
    now = 100.0
    office = Office()
    office.takes = 0.05
    part = steward(office, hearing(), clock=lambda: now)
    with running(part):
        wait_until(lambda: office.asked == 1)
        now += LEASE + 0.1
        wait_until(lambda: office.asked == 2)
        assert not part.leads


def test_a_worker_without_redis_hears_what_postgresql_notifies_and_one_with_redis_can_relay() -> None:
    office = Office(leads=False)
    board = hearing()
    part = steward(office, board)
    part.outlets.append(SimpleNamespace())  # type: ignore[arg-type]
    with running(part):
        for reaches, only_relays, rank in ((None, False, 0), (False, True, 0), (True, False, 1), (True, True, 2)):
            board.relay.reaches, part.only_relays, office.asked = reaches, only_relays, 0
            wait_until(lambda rank=rank: office.rank == rank and office.asked)  # type: ignore[misc]
            assert office.hears, "the steward rings for it too while Redis is away"


def test_while_beacons_come_a_worker_asks_only_if_its_rank_has_risen() -> None:
    office = Office(leads=False)
    board = hearing()
    part = steward(office, board, clock=lambda: 100.0)
    part.outlets.append(SimpleNamespace())  # type: ignore[arg-type]
    with running(part):
        wait_until(lambda: office.asked)
        board.relay.until = 100.02  # as if a beacon came again and again, however long the test stands still
        asked = office.asked
        gevent.sleep(0.2)
        assert office.asked == asked
        board.relay.reaches, part.only_relays = True, True
        wait_until(lambda: office.asked > asked and office.rank == 2)


def test_a_worker_that_does_not_hear_waits_longer_before_it_takes_over() -> None:
    office = Office(leads=False)
    board = hearing()
    with running(steward(office, board)):
        wait_until(lambda: office.asked > 0)
        assert office.lease == LEASE
        board.listening.clear()
        wait_until(lambda: office.lease == steward_module.DEAF_LEASE)


def test_a_steward_that_cannot_hear_for_long_gives_way_to_workers_that_can() -> None:
    now = 100.0
    office = Office()
    office.answer = DutyAnswer(leads=True, age=0.0, rings=True, company=True)
    part = steward(office, hearing(), clock=lambda: now)
    with running(part):
        wait_until(lambda: part.sweeps.tails > 0)
        assert (office.hears, office.lease) == (True, LEASE)
        now += steward_module.DEAF_AFTER + 0.1
        wait_until(lambda: not office.hears)
        office.answer = DutyAnswer(leads=False, age=0.0, rings=True, company=True)
        wait_until(lambda: office.hears)
        assert office.lease == steward_module.DEAF_LEASE, "the others have the first turn"
        now += steward_module.DEAF_FOR + 0.1
        wait_until(lambda: office.lease == LEASE)


def test_a_steward_whose_rings_fail_does_not_say_that_it_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    office = Office()
    office.answer = DutyAnswer(leads=True, age=0.0, rings=True, company=True)
    with running(steward(office, hearing())):
        wait_until(lambda: office.rings)

        def fail() -> bool:
            raise DatabaseUnavailable("PostgreSQL is not available, because the test says so")

        monkeypatch.setattr(office, "ring_everybody", fail)
        office.answer = None
        wait_until(lambda: not office.rings)
        office.answer = DutyAnswer(leads=True, age=0.0, rings=True, company=True)
        before = office.asked
        wait_until(lambda: office.asked > before + 5)
        assert not office.rings


class Restarts:
    """An outlet that counts how often it has its workers look."""

    def __init__(self) -> None:
        self.count = 0

    def heard(self, payloads: list[str]) -> None: ...

    def found(self, ids: Sequence[int]) -> None: ...

    def restarted(self) -> None:
        self.count += 1


def test_company_that_comes_does_not_have_the_workers_of_an_outlet_look() -> None:
    office = Office()
    part = steward(office, hearing())
    outlet = Restarts()
    part.outlets.append(outlet)
    with running(part):
        wait_until(lambda: outlet.count == 1 and part.sweeps.tails > 3)
        assert not office.rings
        for company in (True, False, True):
            office.answer = DutyAnswer(leads=True, age=0.0, rings=False, company=company)
            before = part.sweeps.tails
            wait_until(lambda before=before: part.sweeps.tails > before + 3)  # type: ignore[misc]
        assert office.rings
        assert outlet.count == 1


def test_a_steward_with_a_relay_that_cannot_hear_for_long_gives_its_lease_back() -> None:
    """While its beacons come, nobody else asks."""
    now = 100.0
    office, board = Office(), hearing()
    board.relay.reaches = board.relay.heard = True
    part = steward(office, board, clock=lambda: now)
    part.outlets.append(Restarts())
    with running(part):
        wait_until(lambda: part.leads and part.sweeps.tails > 0)
        now += steward_module.DEAF_AFTER + 0.1
        wait_until(lambda: office.left == 1)
        assert not part.leads
        office.answer = DutyAnswer(leads=False, age=None, rings=False, company=False)
        wait_until(lambda: not office.may_lead)
        now += steward_module.BACK_AFTER + 0.1
        before = office.asked
        wait_until(lambda: office.asked > before + 2)
        assert not office.may_lead
        board.relay.heard = False
        wait_until(lambda: office.may_lead)  # no relay is at work, and this worker hears PostgreSQL


def test_an_outage_of_the_database_does_not_make_a_steward_give_way() -> None:
    now = 100.0
    office = Office()
    part = steward(office, hearing(), clock=lambda: now)
    part.outlets.append(Restarts())
    with running(part):
        wait_until(lambda: part.leads and part.sweeps.tails > 0)
        office.answer = None
        for _ in range(int(steward_module.DEAF_AFTER) + 1):
            now += 1.0
            before = office.asked
            wait_until(lambda before=before: office.asked > before)  # type: ignore[misc]
        office.answer = DutyAnswer(leads=True, age=0.0, rings=False, company=False)
        before = office.asked
        wait_until(lambda: office.asked > before + 5)
        assert office.left == 0 and part.leads


def test_a_steward_that_may_not_ring_leaves_it_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    office = Office()
    office.answer = DutyAnswer(leads=True, age=0.0, rings=False, company=True)

    def refuse() -> bool:
        office.answer = DutyAnswer(leads=False, age=None, rings=False, company=True)
        raise DatabaseError("permission denied for function _ring_everybody", NO_RIGHT)

    monkeypatch.setattr(office, "ring_everybody", refuse)
    part = steward(office, hearing())
    with running(part):
        wait_until(lambda: office.left == 1)
        wait_until(lambda: not office.may_lead)
        assert not part.leads


class Slow(Office):
    """One message is found, and the outlet that takes it is slow. ``steps`` has the statements."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = DutyAnswer(leads=True, age=0.0, rings=True, company=True)
        self.now = 100.0
        self.steps: list[str] = []
        self.successor = False

    def duty(self, question: DutyQuestion) -> DutyAnswer:
        self.steps.append("question")
        return super().duty(question)._replace(leads=not (self.successor and self.steps.count("tail") > 1))

    def ids(self, *arguments: Any, bind: bool, limit: int) -> IdTailRows:
        self.steps.append("tail")
        assert self.answer is not None
        new = [IdRow(7, "a")] if self.steps.count("tail") == 2 else []
        gevent.sleep(0)
        return IdTailRows(self.answer, 1, 9, None, [], new)

    def ring_for(self, ids: Sequence[int]) -> bool:
        self.steps.append("ring")
        return True

    def heard(self, payloads: list[str]) -> None: ...

    def found(self, ids: Sequence[int]) -> None:
        self.now += steward_module.SIGN_BEFORE_RING + 0.1

    def restarted(self) -> None: ...


@pytest.mark.parametrize("successor", [False, True])
def test_a_steward_gives_a_sign_before_it_rings_if_the_last_one_is_old(successor: bool) -> None:
    office = Slow()
    office.successor = successor
    part = steward(office, hearing(), clock=lambda: office.now)
    part.outlets.append(office)
    with running(part):
        wait_until(lambda: office.steps.count("tail") > 1 and len(office.steps) > office.steps.index("tail") + 3)
    found = [n for n, step in enumerate(office.steps) if step == "tail"][1]
    assert office.steps[found + 1] == "question"
    assert (office.steps[found + 2] == "ring") is not successor


def test_a_steward_whose_rings_fail_does_not_ask_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steward_sweeps, "RENEW", 0.2)
    office = Office()
    office.answer = DutyAnswer(leads=True, age=0.0, rings=False, company=True)
    rings: list[float] = []

    def fail() -> bool:
        rings.append(monotonic())
        raise DatabaseUnavailable("PostgreSQL is not available, because the test says so")

    monkeypatch.setattr(office, "ring_everybody", fail)
    with running(steward(office, hearing())):
        wait_until(lambda: len(rings) == 4)
    assert rings[-1] - rings[0] >= 0.5


def test_who_misses_the_beacons_of_a_relay_asks_again_when_the_lease_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steward may have died just after a sign, and the next ordinary question of a large fleet is too late."""
    monkeypatch.setattr(steward_module, "ASK", (400.0, 400.0))
    office, board = Office(leads=False, age=0.9), hearing()
    board.relay.reaches = board.relay.heard = True
    board.relay.until = monotonic() - 0.1
    with running(steward(office, board)):
        wait_until(lambda: office.asked == 2)
    assert office.asked_at[1] - office.asked_at[0] >= LEASE - 0.9 - 0.05


def test_others_know_when_the_steward_gave_its_last_sign() -> None:
    office = Office(leads=False, age=0.5)
    part = steward(office, hearing(), clock=lambda: 100.0)
    assert part.seen is None
    with running(part):
        wait_until(lambda: part.seen == 99.5)
        assert not part.leads
    assert office.left == 0


def test_the_larger_the_fleet_the_longer_between_two_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steward_module, "ASK", (0.7, 4.0))
    board = hearing()
    part = steward(Office(), board)
    assert part._ask_interval == 0.7
    board.workers = 50
    assert part._ask_interval == 2.0
    board.workers = 1000
    assert part._ask_interval == 4.0


def test_a_worker_that_has_not_heard_from_the_database_for_a_while_asks_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steward_module, "ASK", (0.1, 400.0))
    monkeypatch.setattr(steward_module, "longest_silence", lambda workers: 0.3 + steward_module.ASK_EARLIER)
    office, board = Office(leads=False), hearing()
    board.workers = 10_000
    asked: list[float] = []
    answered: list[float] = []
    duty = office.duty

    def answer() -> None:
        office.answered = monotonic()
        answered.append(office.answered)

    def ask(question: DutyQuestion) -> DutyAnswer:
        asked.append(monotonic())
        if len(asked) == 2:
            gevent.spawn_later(0.2, answer)  # to another statement
        found = duty(question)
        answer()
        return found

    monkeypatch.setattr(office, "duty", ask)
    with running(steward(office, board)):
        wait_until(lambda: len(asked) == 3)
    assert asked[1] - asked[0] >= 0.3
    assert len(answered) >= 3 and asked[2] - answered[2] >= 0.3


def test_a_database_that_does_not_answer_is_not_asked_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steward_module, "ASK", (0.1, 4.0))
    office, board = Office(leads=False), hearing()
    office.answer, office.answered = None, 0.0
    board.workers = 200
    with running(steward(office, board)):
        wait_until(lambda: office.asked == 1)
        gevent.sleep(0.5)
    assert office.asked <= 7


def test_between_two_questions_of_a_large_fleet_there_is_still_a_steward(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    board = hearing()
    part = steward(Office(leads=False, age=0.4), board, clock=lambda: now)
    assert part.state == "none"
    with running(part):
        wait_until(lambda: part.seen is not None)
    assert part.state == "another worker"
    monkeypatch.setattr(steward_module, "ASK", (0.7, 4.0))
    board.workers = 200
    now += 4.0
    assert part.state == "another worker"
    now += steward_module.RELY
    assert part.state == "none"


def test_a_steward_that_is_stopped_gives_its_lease_back() -> None:
    office = Office()
    part = steward(office, hearing())
    with running(part):
        wait_until(lambda: part.leads)
    assert office.left == 1
    assert not part.leads


def test_duties_are_done_while_the_worker_leads_and_errors_do_not_end_them() -> None:
    office = Office(leads=False)
    part = steward(office, hearing())
    done: list[float] = []

    def work() -> None:
        done.append(monotonic())
        if len(done) == 1:
            raise DatabaseUnavailable("PostgreSQL is not available, because the test says so")

    part.add_duty("tidy", work, 0.02)
    with running(part):
        greenlet = gevent.spawn(do_duty, part.duties[0], part)
        wait_until(lambda: office.asked > 5)
        gevent.sleep(0.05)
        assert done == []
        office.answer = DutyAnswer(leads=True, age=0.0, rings=False, company=False)
        wait_until(lambda: len(done) >= 3)
        office.answer = DutyAnswer(leads=False, age=0.0, rings=False, company=False)
        wait_until(lambda: not part.leads)
        before = len(done)
        gevent.sleep(0.1)
        assert len(done) <= before + 1, "at most the one that was under way"
        greenlet.kill()


def leaders(parts: list[Steward]) -> list[Steward]:
    return [part for part in parts if part.leads]


def test_of_several_workers_one_leads_and_the_next_one_takes_over_from_a_dead_one(pgbus_bus: Bus) -> None:
    parts = [steward(pgbus_bus.database.stewardship, hearing()) for _ in range(4)]
    greenlets = [gevent.spawn(part.run) for part in parts]
    try:
        [first] = until(lambda: all(part.seen for part in parts) and leaders(parts), "one of them leads")
        # As a killed process does: it gives nothing back.
        first._leave = lambda: None  # type: ignore[method-assign]
        greenlets[parts.index(first)].kill()
        parts.remove(first)
        assert len(until(lambda: leaders(parts), "another one takes over")) == 1
    finally:
        gevent.killall(greenlets)


def test_a_worker_takes_over_at_once_from_one_that_was_shut_down(
    pgbus_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steward_module, "LEASE", 30.0)
    first, second = (steward(pgbus_bus.database.stewardship, hearing()) for _ in range(2))
    with running(first):
        wait_until(lambda: first.leads)
        with running(second):
            wait_until(lambda: second.seen is not None)
    duty, answers = pgbus_bus.database.stewardship.duty, []

    def ask(question: DutyQuestion) -> DutyAnswer:
        answers.append(duty(question))
        return answers[-1]

    monkeypatch.setattr(second._source, "duty", ask)
    with running(second):
        wait_until(lambda: answers)
    assert answers[0].leads, "with its first question, without the wait for the end of a lease"


def test_the_election_recovers_if_a_failover_takes_the_sequences_back(pgbus_bus: Bus) -> None:
    with opened_sessions(pgbus_bus.database.url) as sessions:
        session: Session = sessions()
        part = steward(pgbus_bus.database.stewardship, hearing())
        with running(part):
            wait_until(lambda: part.leads)
            # To a steward of former times, whose number nobody has.
            session.run("select setval('pgbus.steward', 7), setval('pgbus.steward_sign', 16003)")
            wait_until(lambda: session.one("select pg_sequence_last_value('pgbus.steward')") != 7)
            wait_until(lambda: part.leads)
