"""Removes messages that are past the retention, a little at a time.

The steward's pruner does it for all workers. The others make sure that somebody does: the steward may have no right to prune, or
may leave it to others by its settings.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol, TypeVar

import gevent

from ..core.board import Board
from ..core.retries import Seldom, Trouble
from ..errors import NO_RIGHT, DatabaseError

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

HELP_EVERY = 30.0
"""Seconds between two looks of a worker that is not the steward, or the interval if that is longer."""

HELP_FOR = 60.0
"""How long, in seconds, a worker looks as often as the steward after it found that nobody else pruned, or ten intervals if that is
longer; also after its start."""

BEHIND = 60.0
"""By how many seconds messages may be overdue, and for how long, before that is logged; or six intervals, if that is longer."""

_HELP_PER_WORKER = 0.3  # seconds between two looks of a worker that is not the steward, for each worker of the fleet
_LATE = 0.5  # seconds by which the steward may be late before another worker prunes
_LEAST_PAUSE = 0.005

_T = TypeVar("_T")


class Source(Protocol):
    """The statements that it needs; :class:`pgbus_gevent.database.pruning.Pruning` has them."""

    @property
    def retention(self) -> object: ...
    def tell(self, holds: float) -> Sequence[tuple[Any, str]]: ...
    def turn(self, every: float, limit: int, patience: float = 0.0) -> list[str] | None: ...
    def prune(self, streams: Sequence[str], limit: int) -> Sequence[tuple[str, int, int, float]]: ...
    def forget(self, below: str | None, unused: float, limit: int) -> str | None: ...
    def prune_ephemerals(self, limit: int) -> int: ...


class Pruner:
    """Prunes for all workers (:meth:`prune`, a duty of the steward), and has a greenlet of its own (:meth:`run`).

    All pruners share one round over all streams, which the database keeps: each takes the next few streams. So several pruners
    make no more work than one, and if one dies, another goes on with the round. The greenlet states this worker's retention
    to the others, and takes part in the round if nobody goes on with it.

    ``interval`` is the longest time between two rounds, in seconds. ``forget_after`` is how many seconds a stream may be without
    messages before its horizon is removed. ``board`` knows how large the fleet is. ``sleep`` waits the given seconds.
    """

    def __init__(
        self,
        source: Source,
        board: Board | None = None,
        *,
        interval: float,
        forget_after: float,
        clock: Callable[[], float] = monotonic,
        sleep: Callable[[float], object] = gevent.sleep,
    ) -> None:
        self._source = source
        self._interval = interval
        self._forget_after = forget_after
        self._board = board
        self._clock = clock
        self._sleep = sleep
        self._forgetting: str | None = None
        self._disagreements = Seldom()
        self._busy = False
        self._tell_at = 0.0
        self._lag = Lag(max(BEHIND, 6 * interval))
        self.removed = 0
        self.turns = 0
        self.batches = 0
        self.seconds = 0.0  # the time that statements took

    @property
    def overdue(self) -> float | None:
        """By how many seconds messages were beyond their retention when this worker last pruned. None if others prune."""
        return self._lag.at(self._clock())

    def run(self) -> None:
        """State our retention, and prune if nobody does, for ever."""
        trouble = Trouble(logger, "cannot remove old messages, trying again: %s")
        try:
            # At once: with a long interval, other servers would learn of our retention only after they removed our messages.
            self._tell()
        except DatabaseError:
            pass  # logged below, if it lasts
        helps_for = max(HELP_FOR, 10 * self._interval)
        helps_until = self._clock() + helps_for
        while True:
            pause = self._interval if self._clock() < helps_until else max(HELP_EVERY, self._interval)
            # Wait first, so that workers that are started again and again do not each begin with a round.
            share = random.uniform(0.5, 1.0)
            slept = share * self._spaced(pause)
            self._sleep(slept)
            if (more := share * self._spaced(pause) - slept) > 0:
                self._sleep(more)  # a new worker learns only meanwhile that the fleet is large
            turns = self.turns
            try:
                # A round may begin half an interval after the last one, and the steward waits at most a whole one.
                self.take_part(patience=self._interval / 2 + _LATE)
                trouble.ends()
            except DatabaseError as error:
                trouble.begins(error)
            if self.turns > turns:
                helps_until = self._clock() + helps_for

    def _spaced(self, pause: float) -> float:
        """Return a longer pause in a large fleet, whose statements must not grow with its workers."""
        if self._board is None:
            return pause
        return max(pause, self._board.until_next(pause), min(_HELP_PER_WORKER * self._board.workers, HELP_EVERY))

    def prune(self) -> None:
        """Prune for all workers. Raises :class:`DatabaseError`."""
        try:
            self.take_part()
        except DatabaseError as error:
            if error.sqlstate != NO_RIGHT:  # then another worker prunes, and knows by how much messages are overdue
                self._lag.fails(self._clock())
            raise

    def take_part(self, patience: float = 0.0) -> int:
        """Prune as long as the round has streams for us. Return how many messages were removed. Raises :class:`DatabaseError`.

        With ``patience``, leave the round to others until nobody has gone on with it for that many seconds.
        """
        if self._busy:
            return 0  # this worker's other greenlet is at it
        self._busy = True
        before = self.removed
        try:
            while (streams := self._next_streams(patience)) is not None:
                patience = 0.0
                self.turns += 1
                if streams:
                    self._prune(streams)
                if len(streams) < STREAMS:
                    self._end_round()
                    break
        finally:
            self._busy = False
        return self.removed - before

    def _next_streams(self, patience: float) -> list[str] | None:
        """Return the next streams of the round, or None if no round is due or another pruner is at work.

        Fewer than :data:`STREAMS` are the last ones of the round.
        """
        # Half the interval, because the steward waits at least three quarters of it.
        streams = self._timed(lambda: self._source.turn(self._interval / 2, STREAMS, patience))
        # Before anything is removed, and now and then. The other workers of a fleet must not ask the database for nothing.
        if streams is not None or self._clock() >= self._tell_at:
            self._tell()
        return streams

    def _tell(self) -> None:
        """Write our retention to the database, and warn once of each server that has another one."""
        self._tell_at = self._clock() + HOLDS / 5
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
            removed = sum(count for _, count, _, _ in found)
            self.removed += removed
            self.batches += 1
            self._lag.saw(max((overdue for *_, overdue in found), default=0.0), self._clock())
            full = removed >= MESSAGES

    def _end_round(self) -> None:
        while self._timed(lambda: self._source.prune_ephemerals(MESSAGES)) >= MESSAGES:
            pass
        self._forgetting = self._timed(lambda: self._source.forget(self._forgetting, self._forget_after, HORIZONS))
        self._lag.ends_round(self._clock())

    def _timed(self, ask: Callable[[], _T]) -> _T:
        """Call ``ask``, and then sleep several times as long as it took, so that statements keep to :data:`MAX_SHARE`."""
        began = self._clock()
        found = ask()
        took = self._clock() - began
        self.seconds += took
        self._sleep(max(_LEAST_PAUSE, took * (1 / MAX_SHARE - 1)))
        return found


class Lag:
    """By how much messages are overdue when they are removed. Says so in the log if it is more than ``limit`` seconds for long."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._worst = 0.0  # of the present round
        self._last = 0.0  # of the last round, or of the present one if that is worse already
        self._measured: float | None = None  # when a message was last looked at
        self._failing: float | None = None  # since when pruning fails
        self._late: float | None = None  # since when messages are beyond the limit
        self._trouble = Trouble(
            logger,
            "pruning cannot keep up: messages are removed %.0f s after the end of their retention, so the table grows; run"
            " `python -m pgbus_gevent prune` to help, and see docs/retention.md",
            over="pruning keeps up again",
        )

    def saw(self, overdue: float, now: float) -> None:
        """Note by how much the oldest message of a batch was overdue."""
        self._measured, self._failing = now, None
        self._worst = max(self._worst, overdue)
        self._last = max(self._last, self._worst)
        if overdue > self._limit:
            self._late = now if self._late is None else self._late
            if now - self._late >= self._limit:
                self._trouble.begins(overdue)

    def fails(self, now: float) -> None:
        """Note that pruning fails. From then on, messages are overdue by that much more."""
        self._failing = now if self._failing is None else self._failing
        self._measured = now

    def ends_round(self, now: float) -> None:
        """Note that all streams have been looked at."""
        self._measured, self._failing = now, None
        if self._worst <= self._limit:
            self._late = None
            self._trouble.ends()
        self._last, self._worst = self._worst, 0.0

    def at(self, now: float) -> float | None:
        """Return by how many seconds messages are overdue. None if this worker has not pruned for a while."""
        if self._measured is None or now - self._measured > 2 * self._limit:
            return None
        return self._last + (0.0 if self._failing is None else now - self._failing)
