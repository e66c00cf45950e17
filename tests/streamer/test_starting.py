"""One attempt at a time to start something: greenlets that come meanwhile share it, and a pause follows a failure."""

from __future__ import annotations

from time import monotonic

import gevent
import pytest

from pgbus_gevent.errors import DatabaseUnavailable, PgbusError
from pgbus_gevent.streamer import starting
from pgbus_gevent.streamer.starting import Shared, Starter


class Act:
    """Takes a moment, and fails a given number of times."""

    def __init__(self, failures: int) -> None:
        self.calls = 0
        self.most_at_once = 0
        self._at_once = 0
        self._failures = failures

    def __call__(self) -> int:
        self.calls += 1
        call = self.calls
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        gevent.sleep(0.05)
        self._at_once -= 1
        if call <= self._failures:
            raise DatabaseUnavailable("not yet")
        return call


def test_greenlets_that_waited_get_the_failure_and_a_later_one_tries_again() -> None:
    act = Act(failures=1)
    shared = Shared(act)
    waiting = [gevent.spawn(shared) for _ in range(5)]
    assert len(gevent.joinall(waiting, timeout=30)) == 5
    assert [type(each.exception) for each in waiting] == [DatabaseUnavailable] * 5 and act.calls == 1
    assert shared() == 2


def test_a_bug_is_shared_too() -> None:
    def act() -> None:
        gevent.sleep(0.01)
        raise ZeroDivisionError

    shared = Shared(act)
    waiting = [gevent.spawn(shared) for _ in range(2)]
    gevent.joinall(waiting, timeout=10)
    assert [type(each.exception) for each in waiting] == [ZeroDivisionError] * 2


@pytest.mark.slow
def test_requests_begin_one_attempt_and_the_next_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "PAUSE", 0.3)
    act = Act(failures=1)
    starter = Starter(act, patience=60.0)
    for _ in range(5):
        starter.begin()
    began = monotonic()
    gevent.joinall([gevent.spawn(starter.wait, 60.0) for _ in range(5)], timeout=60, raise_error=True)
    assert act.calls == 2 and act.most_at_once == 1
    assert monotonic() - began >= 0.3, "the pause"


def test_no_request_waits_longer_than_it_may_go_on_failing() -> None:
    act = Act(failures=1000)
    starter = Starter(act, patience=0.2)
    began = monotonic()
    starter.wait(30.0)
    assert 0.2 <= monotonic() - began < 20.0
    began = monotonic()
    starter.wait(30.0)
    assert monotonic() - began < 20.0
    with pytest.raises(PgbusError):
        act()
