"""Shares one greenlet's time among jobs, and the process's time between these jobs and everything else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any

import gevent

from ..core.work import Flag

TURN_SECONDS = 0.001
"""How many seconds the jobs run before the rest of the process runs: accepts, the listener, heartbeats.

While thousands of clients connect, the rest takes longer. The next turn of the jobs may then take twice as long as the rest took.
Two thirds of the time are thus for the jobs, so that a storm of new connections does not delay messages to the others.
"""

MAX_TURN_SECONDS = 0.05
"""The longest turn in seconds, however long the rest of the process takes."""

BULK_SECONDS = 0.0002
"""How many seconds of each turn the bulk jobs get, at least one step. Turns are short unless thousands of clients connect: then the
greetings and the live messages go ahead of the pages."""

SLICE = 100
"""How many connections of one stream a job serves in one step."""

Job = Iterator[None]
"""A generator. At each ``yield``, other jobs and other greenlets may run."""


class Turns:
    """Jobs that run in rotation, one step each, and bulk jobs, which get a small part of each turn.

    A new job may overtake older ones. Put work that must stay ordered into a single job.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._jobs: deque[Job] = deque()
        self._bulk: deque[Job] = deque()
        self._turn = TURN_SECONDS
        self._began = clock()
        self._breathed = False
        self._overtook = False

    def __bool__(self) -> bool:
        return bool(self._jobs or self._bulk)

    def add(self, jobs: Sequence[Job]) -> None:
        """Add ``jobs``, in this order. It never yields.

        Jobs that come right after the rest of the process has run go ahead of the older ones, so that a small stream does not wait
        for another step of each large one. They do so at most every other time, so that many small streams do not starve a large
        one.
        """
        if not jobs:
            return  # there may be new bulk jobs only, and they must not use up the right of others to go ahead
        self._overtook = self._breathed and not self._overtook
        self._breathed = False
        if self._overtook:
            self._jobs.extendleft(reversed(jobs))
        else:
            self._jobs.extend(jobs)

    def add_bulk(self, jobs: Sequence[Job]) -> None:
        """Add ``jobs`` that write much to each client. It never yields."""
        self._bulk.extend(jobs)

    def start(self) -> None:
        """Begin a turn, after a time without jobs."""
        self._turn = TURN_SECONDS
        self._began = self._clock()
        self._breathed = False

    def step(self) -> None:
        """Run one step of the first job. Raises a job's exceptions.

        When the turn is over, or only bulk jobs are left, run some steps of these, and then let the rest of the process run.
        """
        if self._breathed:
            self._breathed = self._overtook = False
        if self._jobs:
            _step(self._jobs)
            if self._clock() - self._began <= self._turn:
                return
        began = ended = self._clock()
        while self._bulk and ended - began < BULK_SECONDS:
            _step(self._bulk)
            ended = self._clock()
        breathe()
        self._breathed = True
        self._began = self._clock()
        self._turn = min(MAX_TURN_SECONDS, max(TURN_SECONDS, 2 * (self._began - ended)))


def _step(jobs: deque[Job]) -> None:
    """Run one step of the first job. It goes behind the others, unless it has ended or raises."""
    job = jobs.popleft()
    if next(job, jobs) is not jobs:
        jobs.append(job)


def breathe() -> None:
    """Let the event loop look at its sockets once.

    gevent.sleep(0) would not do that: it lets only other greenlets run, for up to 5 ms, before the loop looks at its sockets.
    """
    loop: Any = gevent.get_hub().loop
    # With the lowest priority, because libev runs timers before sockets. A notification would otherwise wait one more turn.
    gevent.get_hub().wait(loop.timer(0, priority=loop.MINPRI))


def wait_until_set(flag: Flag, timeout: float) -> bool:
    """Yield until ``flag`` is set, for at most ``timeout`` seconds. Return whether it is set.

    For a flag that several greenlets wait for. ``Event.wait`` of gevent does not return if all of this comes together, as on a
    machine that holds the process up: the flag is set; the time of one waiter is over, and it waits again, now without a time limit
    behind those that are about to be told; then the time of the last of these is over, and gevent tells nobody.
    """
    return flag.is_set() or flag.wait(timeout)
