"""Finds what no notification told of.

Most publishers do not ring: only one at a time does, and a notification may be lost, late, or not be had at all. So after every
ring, and every few seconds come what may, one statement asks which of the served streams have moved.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from time import monotonic
from typing import Protocol

import gevent
from gevent.event import Event

from ..core.registry import Registry
from ..core.stream_log import StreamLog
from ..errors import DatabaseError

logger = logging.getLogger("pgbus_gevent.catch_up")

AFTER_RING = (0.01, 0.05, 0.25)
"""Seconds from a ring to the sweeps that follow it; found something, and they begin anew."""

MAX_SHARE = 0.2
"""The most of the time that sweeps may take, however many streams there are, unless one alone takes seconds."""

_REST = 1 / MAX_SHARE - 1


class Source(Protocol):
    """What it needs of the database."""

    def moved(self, heads: dict[str, int]) -> list[str]: ...


class CatchUp:
    """The greenlet that sweeps; :meth:`run` is its loop. ``on_moved`` is given each log that is behind its table.

    ``interval`` gives the longest time until the next sweep, in seconds, which is jittered by a quarter: the longest time that a
    message whose notification never came can be late.
    """

    def __init__(
        self,
        source: Source,
        registry: Registry,
        *,
        on_moved: Callable[[StreamLog], None],
        interval: Callable[[], float],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._source = source
        self._registry = registry
        self._on_moved = on_moved
        self._interval = interval
        self._clock = clock
        self._stage = len(AFTER_RING)
        self._rung = Event()
        self.sweeps = 0

    def ring(self) -> None:
        """A notification came; never yields."""
        if self._stage:
            self._stage = 0
            self._rung.set()

    def run(self) -> None:
        """Sweep, for ever."""
        failing = False
        while True:
            self._pause()
            began = self._clock()
            try:
                if self._sweep():
                    self._stage = 0
                failing = False
            except DatabaseError as error:
                if not failing:
                    logger.warning("cannot look for new messages, trying again: %s", error)
                failing = True
            # One that was slow, or hung up to its timeout, must not make the next one later than was promised.
            gevent.sleep(min((self._clock() - began) * _REST, self._interval()))

    def _pause(self) -> None:
        """Wait for the next sweep: a stage after the ring, or the interval, which a ring cuts short."""
        if self._stage == len(AFTER_RING):
            self._rung.clear()
            if not self._rung.wait(self._interval() * random.uniform(0.75, 1.0)):
                return
        stage = self._stage
        gevent.sleep(AFTER_RING[stage] - (AFTER_RING[stage - 1] if stage else 0.0))
        if self._stage == stage:  # else a ring came meanwhile and starts over
            self._stage = stage + 1

    def _sweep(self) -> bool:
        """Whether anything had moved that a publisher did not tell of."""
        heads = {log.name: log.head for log in self._registry.logs() if log.is_open}
        if not heads:
            return False
        self.sweeps += 1
        found = False
        for name in self._source.moved(heads):
            log = self._registry.log(name)
            if log is not None and log.head == heads[name]:
                self._on_moved(log)
                found = True
        return found
