"""Shares one greenlet's time among jobs that take turns, and the process's time between them and everything else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any

import gevent

TURN_SECONDS = 0.001
"""How long jobs go on before everything else of the process (accepts, the listener, heartbeats) has a turn.

While thousands of clients connect, that takes longer. The next turn of the jobs may then take twice as long as everything else
did: two thirds of the time are theirs, so that a storm of connects does not delay the messages of those who are connected.
"""

MAX_TURN_SECONDS = 0.05
"""The longest turn, however long everything else takes."""

Job = Iterator[None]
"""A generator. At each of its ``yield``, other jobs and then other greenlets have their turn."""


class Turns:
    """Jobs that take turns, one step each.

    A new job may overtake older ones. Put work that must stay ordered into a single job.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._jobs: deque[Job] = deque()
        self._turn = TURN_SECONDS
        self._began = clock()
        self._breathed = False
        self._overtook = False

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, jobs: Sequence[Job]) -> None:
        """Have ``jobs`` done, in this order; never yields.

        Jobs that come right after a break go ahead of the older ones, so that a small stream does not wait for a large one once
        more. They do so every other time at most, so that many small streams do not starve a large one.
        """
        self._overtook = self._breathed and not self._overtook
        self._breathed = False
        if self._overtook:
            self._jobs.extendleft(reversed(jobs))
        else:
            self._jobs.extend(jobs)

    def start(self) -> None:
        """Begin a turn after a time in which there was nothing to do."""
        self._turn = TURN_SECONDS
        self._began = self._clock()
        self._breathed = False

    def step(self) -> None:
        """Let the first job do one step. When the turn is over, let the rest of the process run. What a job raises ends it."""
        if self._breathed:
            self._breathed = self._overtook = False
        job = self._jobs.popleft()
        if next(job, self) is not self:
            self._jobs.append(job)
        ended = self._clock()
        if ended - self._began > self._turn:
            breathe()
            self._breathed = True
            self._began = self._clock()
            self._turn = min(MAX_TURN_SECONDS, max(TURN_SECONDS, 2 * (self._began - ended)))


def breathe() -> None:
    """Let the event loop look at its sockets once. gevent.sleep(0) would not: it runs other greenlets alone for up to 5 ms."""
    loop: Any = gevent.get_hub().loop
    # With the lowest priority: libev runs the timers of a round before the sockets, so a notification would wait one turn more.
    gevent.get_hub().wait(loop.timer(0, priority=loop.MINPRI))
