"""Signs of life: the database is asked only if no other statement was answered lately, and for its schema now and then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import gevent
import pytest
from streamer_parts import make_board, wait_until

from pgbus_gevent.core.board import Board
from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable
from pgbus_gevent.streamer import pulse as module
from pgbus_gevent.streamer.pulse import Pulse


class Patient:
    """A database that answers the pulse unless it has an ``error``, and other statements while the test is in :meth:`busy`."""

    def __init__(self) -> None:
        self.answered = monotonic()
        self.error: Exception | None = None
        self.asked = 0

    def check_life(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error
        self.answered = monotonic()

    @contextmanager
    def busy(self) -> Iterator[None]:
        def answer() -> None:
            while True:
                self.answered = monotonic()
                gevent.sleep(0.01)

        greenlet = gevent.spawn(answer)
        try:
            yield
        finally:
            greenlet.kill()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.1)
    monkeypatch.setattr(module, "SCHEMA_INTERVAL", 1.0)


@contextmanager
def beating(patient: Patient, board: Board | None = None) -> Iterator[Pulse]:
    pulse = Pulse(patient, patience=60.0, board=board)
    pulse.begin(True)
    greenlet = gevent.spawn(pulse.run)
    try:
        yield pulse
    finally:
        greenlet.kill()


def test_while_other_statements_are_answered_only_the_schema_is_asked_for() -> None:
    patient = Patient()
    with patient.busy(), beating(patient):
        gevent.sleep(2.5)
        assert 2 <= patient.asked <= 5


def test_in_a_silence_it_asks_as_soon_as_the_last_answer_is_old() -> None:
    patient = Patient()
    with beating(patient) as pulse:
        with patient.busy():
            wait_until(lambda: patient.asked > 0)
        before, shortest, began = patient.asked, 9.0, monotonic()
        for _ in range(10):
            # The longest silence in each of ten parts, because on a busy machine this process may stand still in some.
            longest, end = 0.0, monotonic() + 0.2
            while monotonic() < end:
                longest = max(longest, pulse.silence)
                gevent.sleep(0.005)
            shortest = min(shortest, longest)
        assert 5 <= patient.asked - before <= 13 * (monotonic() - began)
        assert shortest < 0.3


def test_a_silence_ends_with_a_question_of_its_own_and_not_with_another_answer() -> None:
    """The schema may have changed meanwhile."""
    patient = Patient()
    with beating(patient) as pulse:
        patient.error = DatabaseUnavailable("away")
        wait_until(lambda: pulse._silence.lasts)
        patient.error = DatabaseError("no schema")
        with patient.busy():
            wait_until(lambda: pulse.fault)
            asked = patient.asked
            wait_until(lambda: patient.asked > asked + 2, "a fault is looked at again often")
            patient.error = None
            wait_until(lambda: not pulse.fault and not pulse.trouble)


def test_the_beacons_of_a_relay_are_signs_of_life_but_not_while_this_worker_gets_no_answer() -> None:
    patient, board = Patient(), make_board()
    relay = board.relay
    relay.until = monotonic() + 100.0  # as if beacons came all the time, however long this process stands still
    with beating(patient, board) as pulse:
        wait_until(lambda: patient.asked == 1)
        gevent.sleep(1.0)
        assert patient.asked == 1
        wait_until(lambda: pulse.silence < 0.1)
        relay.until = 0.0
        wait_until(lambda: patient.asked > 1)
        patient.error = DatabaseUnavailable("away")
        wait_until(lambda: pulse._silence.lasts)
        relay.until = monotonic() + 2.0
        wait_until(lambda: pulse.silence > 0.5)


def test_a_worker_that_comes_to_hear_a_relay_asks_about_the_schema_as_seldom_as_others() -> None:
    patient, board = Patient(), make_board()
    relay = board.relay
    now = 100.0
    pulse = Pulse(patient, patience=5.0, board=board, clock=lambda: now)
    pulse._checked, pulse._reached, patient.answered = now, True, now
    now += module.SCHEMA_INTERVAL
    patient.answered = now
    assert pulse._is_due(now)
    relay.until = now + 2.0
    assert not pulse._is_due(now)


def test_workers_of_a_large_fleet_ask_about_the_schema_less_often() -> None:
    patient, board = Patient(), make_board()
    now = 100.0
    pulse = Pulse(patient, patience=5.0, board=board, clock=lambda: now)
    pulse._checked, pulse._reached = now, True
    now += module.SCHEMA_INTERVAL_MOST - 1
    patient.answered = now
    assert pulse._is_due(now)
    board.workers = 100
    assert not pulse._is_due(now)
    now += 1
    patient.answered = now
    assert pulse._is_due(now)


def test_workers_of_a_large_fleet_ask_after_a_longer_silence_and_are_ready_for_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "INTERVAL", 2.0)
    monkeypatch.setattr(module, "SCHEMA_INTERVAL", 60.0)
    patient, board = Patient(), make_board()
    patient.answered = now = 100.0
    pulse = Pulse(patient, patience=60.0, board=board, clock=lambda: now)
    pulse.begin(True)
    pulse._checked = now
    for workers, silence in ((1, 2.0), (80, 2.4), (100, 3.0), (5000, 3.0)):
        board.workers = workers
        now = 100.0 + silence - 0.01
        assert not pulse._is_due(now)
        now = 100.0 + silence + 0.01
        assert pulse._is_due(now)
        now = 100.0 + silence + 1.99
        assert pulse.trouble == ""
        now = 100.0 + silence + 2.01
        assert "has not answered" in pulse.trouble
