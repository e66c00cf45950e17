"""Tasks: greenlets that are started again when they die."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from time import monotonic

import gevent
import pytest
from gevent.event import Event
from streamer_parts import wait_until

from pgbus_gevent.streamer import task
from pgbus_gevent.streamer.task import Task


class Work:
    """The body of a task. ``ends`` says how each run ends; after the last one, the run goes on for ever."""

    def __init__(self, *ends: Callable[[], None]) -> None:
        self.ends = list(ends)
        self.runs = 0
        self.failures: list[str] = []
        self.task = Task("reader-0", self.run, on_failure=self.failures.append)

    def run(self) -> None:
        self.runs += 1
        if self.ends:
            self.ends.pop(0)()
        else:
            Event().wait()


def fail() -> None:
    raise RuntimeError("broken")


def vanish() -> None:
    gevent.getcurrent().throw(gevent.GreenletExit)


def go_back() -> None:
    return


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(task, "_PAUSE", 0.001)
    # gevent prints the traceback of every greenlet that fails, and these fail on purpose.
    monkeypatch.setattr(gevent.get_hub(), "print_exception", lambda *args: None)
    yield


def test_it_runs_in_a_greenlet_with_its_name() -> None:
    work = Work()
    assert not work.task.running
    work.task.start()
    wait_until(lambda: work.runs)
    assert work.task._greenlet is not None
    assert work.task._greenlet.name == "pgbus-reader-0"
    assert work.task.running
    assert work.task.stop(1.0)


@pytest.mark.parametrize(
    ("end", "said"), [(fail, "failed"), (vanish, "was killed or returned"), (go_back, "was killed or returned")]
)
def test_however_a_run_ends_it_is_started_again(
    end: Callable[[], None], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work(end)
    work.task.start()
    wait_until(lambda: work.runs == 2)
    assert work.task.running
    [record] = [record for record in caplog.records if record.name == "pgbus_gevent.task"]
    assert record.getMessage() == f"reader-0 {said}: starting it again"
    assert bool(record.exc_info) == (end is fail)
    assert work.task.stop(1.0)


def test_a_run_that_is_killed_from_outside_is_started_again() -> None:
    work = Work()
    work.task.start()
    wait_until(lambda: work.runs == 1)
    assert work.task._greenlet is not None
    work.task._greenlet.kill()
    wait_until(lambda: work.runs == 2)
    assert work.task.stop(1.0)


def test_it_gives_up_after_too_many_deaths_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(*[fail] * 100)
    work.task.start()
    wait_until(lambda: work.failures)
    assert work.failures == ["reader-0"]
    assert work.runs == task.MAX_DEATHS + 1
    assert work.task.failed
    assert not work.task.running
    assert [record.levelno for record in caplog.records if record.name == "pgbus_gevent.task"][-1] == logging.CRITICAL
    assert work.task.stop(1.0)


def test_deaths_that_are_far_apart_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    times = itertools.count(0.0, 15.0)
    monkeypatch.setattr(task, "monotonic", lambda: next(times))
    work = Work(*[fail] * 20)
    work.task.start()
    wait_until(lambda: work.runs == 21)
    assert work.failures == []
    assert work.task.stop(1.0)


def test_it_pauses_before_it_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "_PAUSE", 1000.0)
    work = Work(fail)
    work.task.start()
    wait_until(lambda: work.task.deaths)
    assert work.runs == 1
    assert work.task.running, "it is about to run again"
    assert work.task.stop(1.0), "it is stopped while it waits for that"
    assert not work.task.running


def test_starting_it_twice_runs_it_once() -> None:
    work = Work()
    work.task.start()
    work.task.start()
    wait_until(lambda: work.runs)
    assert work.task.stop(1.0)
    assert work.runs == 1


def test_stopping_it_twice_or_before_it_was_started_does_nothing() -> None:
    work = Work()
    assert work.task.stop(1.0)
    work.task.start()
    assert work.task.stop(1.0)
    assert work.task.stop(1.0)
    assert not work.task.running


def test_a_stop_is_no_death(caplog: pytest.LogCaptureFixture) -> None:
    work = Work()
    work.task.start()
    wait_until(lambda: work.runs)
    assert work.task.stop(1.0)
    assert (list(work.task.deaths), caplog.records) == ([], [])


@pytest.mark.parametrize("ends", [[], [fail] * 100])
def test_it_can_be_started_after_a_stop(ends: list[Callable[[], None]]) -> None:
    work = Work(*ends)
    work.task.start()
    wait_until(lambda: work.runs > task.MAX_DEATHS if ends else work.runs)
    wait_until(lambda: work.task.failed == bool(ends))
    assert work.task.stop(1.0)
    work.ends[:] = [fail]
    before = work.runs
    work.task.start()
    wait_until(lambda: work.runs == before + 2, "deaths from before the stop were counted")
    assert work.task.running
    assert work.task.stop(1.0)


def test_a_task_whose_code_swallows_the_first_kill_stops_all_the_same() -> None:
    def swallow() -> None:
        try:
            gevent.sleep(60)
        except gevent.GreenletExit:
            gevent.sleep(60)

    work = Work(swallow)
    work.task.start()
    wait_until(lambda: work.runs)
    assert work.task.stop(20.0)


def test_a_stop_is_bounded_and_names_the_task_that_did_not_stop(caplog: pytest.LogCaptureFixture) -> None:
    release = Event()

    def cling() -> None:
        while not release.is_set():
            try:
                release.wait()
            except gevent.GreenletExit:
                pass

    work = Work(cling)
    work.task.start()
    wait_until(lambda: work.runs)
    began = monotonic()
    assert not work.task.stop(0.05)
    assert monotonic() - began < 30.0
    assert "reader-0 did not stop within 0.05 s" in caplog.text
    release.set()
