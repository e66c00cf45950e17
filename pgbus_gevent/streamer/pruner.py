"""Removes messages that are past the retention, a little at a time, together with the pruners of all other workers."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol, TypeVar

import gevent

from ..core.retries import Seldom, Trouble
from ..errors import DatabaseError

logger = logging.getLogger("pgbus_gevent.pruner")

STREAMS = 200
"""How many streams one statement prunes."""

MESSAGES = 1000
"""The most messages that one statement removes. It takes milliseconds, so its locks are short, however much there is to remove."""

HORIZONS = 1000
"""How many horizons a round checks for streams to forget. It does not matter if one is found hours later."""

MAX_SHARE = 0.2
"""The largest share of time that statements may take, so that pruning leaves the database to publishers."""

HOLDS = 600.0
"""How long, in seconds, the retention of a server applies after the server was last heard of, or three intervals if that is longer.
A server that is replaced must not find its messages removed."""

_LEAST_PAUSE = 0.005

_T = TypeVar("_T")


class Source(Protocol):
    """The statements that it needs; :class:`pgbus_gevent.database.pruning.Pruning` has them."""

    @property
    def retention(self) -> object: ...
    def tell(self, holds: float) -> Sequence[tuple[Any, str]]: ...
    def turn(self, every: float, limit: int) -> list[str] | None: ...
    def prune(self, streams: Sequence[str], limit: int) -> Sequence[tuple[str, int, int]]: ...
    def forget(self, below: str | None, unused: float, limit: int) -> str | None: ...
    def prune_ephemerals(self, limit: int) -> int: ...


class Pruner:
    """The greenlet that prunes; :meth:`run` is its loop.

    Every worker has one. All pruners share one round over all streams, which the database keeps: each takes the next few streams.
    More workers therefore make no more work, and if one dies, the others go on with the round.

    ``interval`` is the longest time between two rounds, in seconds; each wait is a random share of it, from half to all.
    ``forget_after`` is how many seconds a stream may be without messages before its horizon is removed. ``sleep`` waits the
    given seconds.
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
        self._disagreements = Seldom()
        self.removed = 0
        self.batches = 0
        self.seconds = 0.0  # the time that statements took

    def run(self) -> None:
        """Prune, for ever."""
        trouble = Trouble(logger, "cannot remove old messages, trying again: %s")
        try:
            # At once: with a long interval, other servers would learn of our retention only after they removed our messages.
            self._tell()
        except DatabaseError:
            pass  # logged below, if it lasts
        while True:
            # Wait first, so that workers that are started again and again do not each begin with a round.
            self._sleep(self._interval * random.uniform(0.5, 1.0))
            try:
                self.take_part()
                trouble.ends()
            except DatabaseError as error:
                trouble.begins(error)

    def take_part(self) -> int:
        """Prune as long as the round has streams for us. Return how many messages were removed. Raises :class:`DatabaseError`."""
        before = self.removed
        while True:
            streams = self._timed(self._next_streams)
            if streams is None:
                break
            if streams:
                self._prune(streams)
            if len(streams) < STREAMS:
                self._end_round()
                break
        return self.removed - before

    def _next_streams(self) -> list[str] | None:
        """Return the next streams of the round, or None if no round is due or another pruner is at work.

        Fewer than :data:`STREAMS` are the last ones of the round.
        """
        self._tell()
        # Half the interval, which is the shortest wait of a worker that is alone.
        return self._source.turn(self._interval / 2, STREAMS)

    def _tell(self) -> None:
        """Write our retention to the database, and warn once of each server that has another one."""
        for theirs, teller in self._source.tell(max(HOLDS, 3 * self._interval)):
            if self._disagreements.due((str(theirs), teller)) is not None:
                logger.warning(
                    "servers of this database disagree about retention: this one has %s; %s has %s, or had it until it ended a"
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
        """Call ``ask``, and then sleep several times as long as it took, so that statements keep to :data:`MAX_SHARE`."""
        began = self._clock()
        found = ask()
        took = self._clock() - began
        self.seconds += took
        self._sleep(max(_LEAST_PAUSE, took * (1 / MAX_SHARE - 1)))
        return found
