"""Removes what need not be kept any more, a little at a time, together with the pruners of all other workers."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol, TypeVar

import gevent

from ..core.retries import Trouble
from ..errors import DatabaseError

logger = logging.getLogger("pgbus_gevent.pruner")

STREAMS = 200
"""Streams that one statement looks at."""

MESSAGES = 1000
"""Messages that one statement removes: milliseconds, after which its locks are gone, whatever the backlog."""

HORIZONS = 1000
"""Forgotten streams are looked for among so many a round: that they are found hours later makes no difference."""

MAX_SHARE = 0.2
"""The most of the time that statements may take, so that a backlog does not take the database from who publishes."""

HOLDS = 600.0
"""Seconds that what a server keeps holds for all others after it was last heard of, or three intervals where that is longer: a
server that is replaced must not find its messages gone."""

_LEAST_PAUSE = 0.005

_T = TypeVar("_T")


class Source(Protocol):
    """What it needs of the database; :class:`pgbus_gevent.database.pruning.Pruning` is one."""

    @property
    def retention(self) -> object: ...
    def tell(self, holds: float) -> Sequence[tuple[Any, str]]: ...
    def turn(self, every: float, limit: int) -> list[str] | None: ...
    def prune(self, streams: Sequence[str], limit: int) -> Sequence[tuple[str, int, int]]: ...
    def forget(self, below: str | None, unused: float, limit: int) -> str | None: ...
    def prune_ephemerals(self, limit: int) -> int: ...


class Pruner:
    """The greenlet that prunes; :meth:`run` is its loop.

    Every worker of every host has one. In the database they share one round over all streams, each taking the next few
    streams when it comes by, so that more workers make no more work, and one that dies is not missed.

    ``interval`` is the longest time between two rounds, in seconds, of which each wait is half to all; ``forget_after``
    is how long a stream may be without messages before nothing is known of it any more.
    """

    def __init__(
        self,
        source: Source,
        *,
        interval: float,
        forget_after: float,
        clock: Callable[[], float] = monotonic,
        sleep: Callable[[float], object] = gevent.sleep,
    ) -> None:
        self._source = source
        self._interval = interval
        self._forget_after = forget_after
        self._clock = clock
        self._sleep = sleep
        self._forgetting: str | None = None
        self._heard_of: set[tuple[str, str]] = set()
        self.removed = 0
        self.batches = 0
        self.seconds = 0.0  # that statements took

    def run(self) -> None:
        """Prune, for ever."""
        trouble = Trouble(logger, "cannot remove old messages, trying again: %s")
        try:
            # At once, for with a long interval others would know of it only after they have removed what we keep.
            self._tell()
        except DatabaseError:
            pass  # said below, if it stays so
        while True:
            # First of all: workers that are started again and again must not each begin with a round.
            self._sleep(self._interval * random.uniform(0.5, 1.0))
            try:
                self.take_part()
                trouble.ends()
            except DatabaseError as error:
                trouble.begins(error)

    def take_part(self) -> int:
        """Prune as long as it is our turn; how many messages were removed. Raises :class:`DatabaseError`."""
        before = self.removed
        while True:
            # Half the interval, for the shortest wait of a worker that is alone.
            streams = self._timed(self._turn)
            if streams is None:
                break
            if streams:
                self._prune(streams)
            if len(streams) < STREAMS:
                self._end_round()
                break
        return self.removed - before

    def _turn(self) -> list[str] | None:
        self._tell()
        return self._source.turn(self._interval / 2, STREAMS)

    def _tell(self) -> None:
        """Tell what we keep, and say once of each server that keeps something else."""
        for theirs, teller in self._source.tell(max(HOLDS, 3 * self._interval)):
            if (told := (str(theirs), teller)) not in self._heard_of:
                self._heard_of.add(told)
                logger.warning(
                    "servers of this database disagree about retention: this one has %s; %s has %s, or had until it ended a"
                    " while ago. For each stream the longer one applies; give all of them the same settings",
                    self._source.retention,
                    teller,
                    theirs,
                )

    def _prune(self, streams: list[str]) -> None:
        full = True
        while full:
            found = self._timed(lambda: self._source.prune(streams, MESSAGES))
            removed = sum(count for _, count, _ in found)
            self.removed += removed
            self.batches += 1
            full = removed >= MESSAGES

    def _end_round(self) -> None:
        while self._timed(lambda: self._source.prune_ephemerals(MESSAGES)) >= MESSAGES:
            pass
        self._forgetting = self._timed(lambda: self._source.forget(self._forgetting, self._forget_after, HORIZONS))

    def _timed(self, ask: Callable[[], _T]) -> _T:
        """Ask, and rest for as long as that took and more."""
        began = self._clock()
        found = ask()
        took = self._clock() - began
        self.seconds += took
        self._sleep(max(_LEAST_PAUSE, took * (1 / MAX_SHARE - 1)))
        return found
