"""Shares one greenlet's time among jobs, and the process's time between these jobs and everything else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any

import gevent

TURN_SECONDS = 0.001
"""How many seconds the jobs run before the rest of the process runs: accepts, the listener, heartbeats.

While thousands of clients connect, the rest takes longer. The next turn of the jobs may then take twice as long as the rest took.
Two thirds of the time are thus for the jobs, so that a storm of new connections does not delay messages to the others.
"""

MAX_TURN_SECONDS = 0.05
"""The longest turn in seconds, however long the rest of the process takes."""

Job = Iterator[None]
"""A generator. At each ``yield``, other jobs and other greenlets may run."""


class Turns:
    """Jobs that run in rotation, one step each.

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
        """Add ``jobs``, in this order. It never yields.

        Jobs that come right after the rest of the process has run go ahead of the older ones, so that a small stream does not wait
        for another step of each large one. They do so at most every other time, so that many small streams do not starve a large
        one.
        """
        self._overtook = self._breathed and not self._overtook
        self._breathed = False
        if self._overtook:
            self._jobs.extendleft(reversed(jobs))
        else:
            self._jobs.extend(jobs)

    def start(self) -> None:
        """Begin a turn, after a time without jobs."""
        self._turn = TURN_SECONDS
        self._began = self._clock()
        self._breathed = False

    def step(self) -> None:
        """Run one step of the first job. When the turn is over, let the rest of the process run. Raises a job's exceptions."""
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
    """Let the event loop look at its sockets once.

    gevent.sleep(0) would not do that: it lets only other greenlets run, for up to 5 ms, before the loop looks at its sockets.
    """
    loop: Any = gevent.get_hub().loop
    # With the lowest priority, because libev runs timers before sockets. A notification would otherwise wait one more turn.
    gevent.get_hub().wait(loop.timer(0, priority=loop.MINPRI))
