"""Shares one greenlet's time among jobs that take turns, and the process's time between them and everything else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

TURN_SECONDS = 0.001
"""How long jobs go on before everything else of the process (accepts, the listener, heartbeats) has a turn.

Where that takes longer, as while thousands connect, the next turn of the jobs may take twice as long as it did: two thirds of
the time are theirs, so that a storm of connects cannot make those who are live wait for their messages.
"""

MAX_TURN_SECONDS = 0.05
"""The longest turn all the same."""

Steps = Iterator[None]
"""A job; each of its ``yield`` is where others have their turn."""


class Turns:
    """Jobs that take turns, a step each, in the order in which they were added; :meth:`run` is the loop.

    A new job may overtake those that are at it: what has an order among itself has to be one job.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._jobs: deque[Steps] = deque()
        self._work = Event()

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Steps) -> None:
        """Have it done; never yields."""
        self._jobs.append(job)
        self._work.set()

    def clear(self) -> None:
        """Forget all of them."""
        self._jobs.clear()

    def run(self) -> None:
        """Do what there is to do, for ever. What a job raises ends it."""
        began, turn, ahead = self._clock(), TURN_SECONDS, 0
        while True:
            if not self._jobs:
                self._work.clear()
                self._work.wait()
                began, turn = self._clock(), TURN_SECONDS
            job = self._jobs.popleft()
            if next(job, self) is not self:
                self._jobs.append(job)
            ended = self._clock()
            if ended - began > turn:
                waiting = len(self._jobs)
                breathe()
                # What came just now goes ahead of those that are at it, so that a small stream does not wait for a large one once
                # more; every other time at the most, so that many small ones do not starve it.
                ahead = 0 if ahead else len(self._jobs) - waiting
                self._jobs.rotate(ahead)
                began = self._clock()
                turn = min(MAX_TURN_SECONDS, max(TURN_SECONDS, 2 * (began - ended)))


def breathe() -> None:
    """Let the event loop look at its sockets once. gevent.sleep(0) would not: it runs other greenlets alone for up to 5 ms."""
    loop: Any = gevent.get_hub().loop
    # Behind what the sockets have: libev calls the timers of a round first, so that a notification would wait for one turn more.
    gevent.get_hub().wait(loop.timer(0, priority=loop.MINPRI))
