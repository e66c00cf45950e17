"""Jobs in rotation: their order, and the jobs that are left when one raises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgbus_gevent.streamer import turns
from pgbus_gevent.streamer.turns import Turns


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
