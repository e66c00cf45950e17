"""A worker's row on the roll: it is written, renewed and removed, and a failure never stops the worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from streamer_parts import make_board
from support import until

from pgbus_gevent.core.board import Board
from pgbus_gevent.database.fleet import Answer
from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable
from pgbus_gevent.streamer import roll_call
from pgbus_gevent.streamer.clients import Clients
from pgbus_gevent.streamer.limits import Limits
from pgbus_gevent.streamer.roll_call import RollCall


class Roll:
    """The table, in memory. ``error`` is raised instead of an answer, and its clock is ``ahead`` seconds ahead."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Mapping[str, Any]]] = []
        self.left: list[str] = []
        self.error: Exception | None = None
        self.ahead = 0.0
        self.pace = 0.0
        self.workers = 1
        self.clock: Callable[[], float] = lambda: 0.0

    def beat(self, id: str, host: str, pid: int, started_at: float, facts: Mapping[str, Any]) -> Answer:
        if self.error is not None:
            raise self.error
        self.told.append((id, facts))
        return Answer(self.clock() + self.ahead, self.pace, self.workers)

    def leave(self, id: str) -> None:
        self.left.append(id)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INTERVAL", "_FIRST", "_GIVEN_UP"):
        monkeypatch.setattr(roll_call, name, 0.01)


class Told:
    """A source of facts, which records whether it is listening."""

    def __init__(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        self.facts = facts
        self.heard: list[str] = []

    @contextmanager
    def listening(self) -> Iterator[None]:
        self.heard.append("begins")
        try:
            yield
        finally:
            self.heard.append("ends")


def calling(roll: Roll, board: Board | None = None, **options: Any) -> RollCall:
    board = board or make_board()
    return RollCall(roll, board, Clients(board, limits=Limits(1)), **options)


def test_workers_of_a_large_fleet_write_their_rows_less_often() -> None:
    roll = Roll()
    call = calling(roll)
    alone = call._report()
    roll.workers = 50
    of_fifty = call._report()
    roll.workers = 1000
    assert alone < of_fifty < call._report() == roll_call.INTERVAL_MOST


def test_a_worker_writes_its_row_again_and_again_and_leaves_at_the_end() -> None:
    roll = Roll()
    call = calling(roll, port=8080)
    teller = Told(lambda: {"more": 7})
    call.join(teller)
    greenlet = gevent.spawn(call.run)
    until(lambda: len(roll.told) >= 3, "it tells")
    greenlet.kill()
    assert {id for id, _ in roll.told} == {call.id} == set(roll.left)
    told = roll.told[0][1]
    assert (told["connections"], told["unready"], told["more"], told["relayed"]) == (0, None, 7, False)
    assert told["service"].endswith(" 8080")
    assert teller.heard == ["begins", "ends"]


@pytest.mark.parametrize("error", [DatabaseUnavailable("away"), DatabaseError("denied", "42501")])
def test_if_it_cannot_write_it_tries_again_and_does_not_leave(error: DatabaseError) -> None:
    roll = Roll()
    roll.error = error
    call = calling(roll)
    greenlet = gevent.spawn(call.run)
    gevent.sleep(0.05)
    assert not greenlet.dead
    greenlet.kill()
    assert roll.left == []
    greenlet = gevent.spawn(call.run)
    roll.error = None
    until(lambda: roll.told, "it tells")
    greenlet.kill()


def test_an_error_in_the_counts_does_not_end_the_task(caplog: pytest.LogCaptureFixture) -> None:
    broken = True

    def facts() -> Mapping[str, Any]:
        if broken:
            raise ZeroDivisionError
        return {}

    roll = Roll()
    call = calling(roll)
    call.join(Told(facts))
    greenlet = gevent.spawn(call.run)
    until(lambda: "cannot collect" in caplog.text, "it says so")
    broken = False
    until(lambda: roll.told, "it goes on")
    greenlet.kill()


def test_the_difference_of_the_clocks_is_that_of_the_quickest_answer() -> None:
    roll = Roll()
    now = [1000.0]
    roll.clock, roll.ahead = (lambda: now[0]), 3.0
    call = calling(roll, wall_clock=lambda: now[0])
    call._report()
    assert call.clock_offset == pytest.approx(3.0)

    def slow(*arguments: Any) -> Answer:
        now[0] += 10.0  # on the way there
        return Answer(now[0] + 3.0, 0.0, 1)

    roll.beat = slow  # type: ignore[method-assign]
    call._report()
    assert call.clock_offset == pytest.approx(3.0)


def test_it_hands_on_the_pace_of_the_doorbell_and_the_number_of_workers() -> None:
    roll = Roll()
    roll.pace, roll.workers = 0.025, 100
    board = make_board()
    assert board.workers == 1
    calling(roll, board)._report()
    assert (board.pace, board.workers) == (0.025, 100)
