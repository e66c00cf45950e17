"""Jobs in rotation: their order, and the jobs that are left when one raises."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

import gevent
import pytest
from gevent.event import Event

from pgbus_gevent.streamer import turns
from pgbus_gevent.streamer.turns import Turns, wait_until_set


def job(name: str, done: list[str], steps: int = 1) -> Iterator[None]:
    for _ in range(steps - 1):
        done.append(name)
        yield
    done.append(name)


def finished(jobs: Turns) -> None:
    while jobs:
        jobs.step()


def test_jobs_take_a_step_each() -> None:
    jobs, done = Turns(lambda: 0.0), []
    jobs.add([job("a", done, 3)])
    jobs.add([job("b", done, 2)])
    jobs.add([job("c", done)])
    finished(jobs)
    assert done == ["a", "b", "c", "a", "b", "a"]


def test_jobs_that_came_during_a_break_go_ahead_every_other_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    jobs, done = Turns(lambda: float(next(ticks))), []
    monkeypatch.setattr(turns, "breathe", lambda: None)
    jobs.add([job("a", done, 4), job("b", done, 4)])
    new = iter("xyz")
    while jobs:
        jobs.step()
        if name := next(new, ""):
            jobs.add([job(name, done)])
    assert "".join(done) == "axbzaybabab"


def test_jobs_that_go_ahead_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    jobs, done = Turns(lambda: float(next(ticks))), []
    monkeypatch.setattr(turns, "breathe", lambda: None)
    jobs.add([job("a", done, 2)])
    jobs.step()
    jobs.add([job(name, done) for name in "xyz"])
    finished(jobs)
    assert "".join(done) == "axyza"


def test_a_turn_without_new_jobs_does_not_use_up_the_right_to_go_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    jobs, done = Turns(lambda: float(next(ticks))), []
    monkeypatch.setattr(turns, "breathe", lambda: None)
    jobs.add([job("a", done, 3), job("b", done, 3)])
    jobs.step()
    jobs.add([])
    jobs.step()
    jobs.add([job("x", done)])
    finished(jobs)
    assert "".join(done) == "abxabab"


def test_bulk_jobs_get_one_step_between_two_long_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    jobs, done = Turns(lambda: float(next(ticks))), []
    monkeypatch.setattr(turns, "breathe", lambda: done.append("-"))
    jobs.add_bulk([job("A", done, 3), job("B", done)])
    jobs.add([job("x", done), job("y", done)])
    finished(jobs)
    assert "".join(done) == "xA-yB-A-A-"


def test_bulk_jobs_run_while_there_are_no_others() -> None:
    jobs, done = Turns(lambda: 0.0), []
    jobs.add_bulk([job("a", done, 2), job("b", done, 2)])
    jobs.step()
    assert not jobs
    assert done == ["a", "b", "a", "b"]


def test_a_job_that_dies_ends_the_step_and_the_others_are_still_there() -> None:
    def dies() -> Iterator[None]:
        yield
        raise ValueError("it dies")

    jobs, done = Turns(), []
    jobs.add([dies(), job("a", done, 3)])
    with pytest.raises(ValueError, match="it dies"):
        finished(jobs)
    assert done == ["a"]
    finished(jobs)
    assert done == ["a", "a", "a"]


def held_up(flag: Event) -> None:
    """Set ``flag``, and hold up the process for 0.2 s before any waiter is told."""

    def computes() -> None:
        end = monotonic() + 0.2
        while monotonic() < end:
            pass

    gevent.spawn(computes)
    # Together with these, the loop has more to call than it calls at a time, so that it sees to the timers before it goes on.
    for _ in range(200):
        gevent.spawn(int)
    flag.set()


@pytest.mark.parametrize("first", range(2))
def test_a_waiter_sees_the_flag_although_the_time_of_each_waiter_ends_before_it_is_told(first: int) -> None:
    flag = Event()

    def waits_again_and_again() -> None:
        while not wait_until_set(flag, 0.1):
            pass

    def waits_once() -> None:
        wait_until_set(flag, 0.1)

    acts = [waits_again_and_again, waits_once]
    waiters = [gevent.spawn(act) for act in (acts if first == 0 else reversed(acts))]
    gevent.sleep(0.05)
    gevent.spawn(held_up, flag)
    assert len(gevent.joinall(waiters, timeout=10)) == 2


def test_a_wait_says_whether_the_flag_is_set() -> None:
    flag = Event()
    assert not wait_until_set(flag, 0.01)
    gevent.spawn(flag.set)
    assert wait_until_set(flag, 10)
    assert wait_until_set(flag, 0)
