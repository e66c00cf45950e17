"""Sweeps: questions to the database that find messages without a notification.

Most transactions do not ring the doorbell, because only one at a time may, and a notification may be lost or late. The sweeper
therefore asks the database after every notification, and in any case every few seconds. While a steward rings for the messages
that did not ring, the sweeper of a worker that hears relies on it, and asks only every few seconds.

A sweep is a *tail* or a *probe*. A tail reads the new messages of all streams together, by id. It is short however many streams
are served, so tails follow a notification within milliseconds. A probe compares the head of each stream with the table, in both
directions. It misses nothing, even if ids or clocks were changed, so the promise of delivery rests on it. If the table does not
have a head, the message was lost in a failover or a restore, or a forged notification announced it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from math import inf
from time import monotonic
from typing import Protocol

import gevent

from ..core.board import Board
from ..core.relay_signs import spread
from ..core.retries import Trouble
from ..core.rows import LARGE, ChangeReads, Row, TailRow
from ..core.stream_log import StreamLog
from ..core.tail import Tail
from ..errors import DatabaseError

logger = logging.getLogger("pgbus_gevent.sweeper")

AFTER_DOORBELL = (0.004, 0.012, 0.05, 0.25)
"""Seconds from a notification to each of the sweeps that follow it. The last sweep is a probe.

If a sweep finds a message, the series starts again. The pace of the doorbell delays the whole series, because until the pace is
over, transactions commit without a notification.
"""

PROBE_AFTER = 1.0
"""Seconds after which a probe is due even if notifications keep restarting the series, so that it never reaches its probe."""

MAX_SHARE = 0.2
"""The largest share of time that sweeps take, however many streams there are, unless a single sweep takes seconds."""

TAIL_ROWS = 1000
"""The most messages that one tail reads. If more are new, a probe is next, whose cost depends on streams and not on messages."""

TAIL_REST = 0.02
"""The longest rest after a tail, in seconds. A tail takes long only if the database is busy; then a later one brings more."""

CHECK_SELDOM = 4
"""In a fleet with a steward, how many intervals pass between two of the checks of rings, because every worker makes them."""

CHECKED_MESSAGES = 5000
"""How many messages in rings are compared with the table in each interval. If there are more, the streams take turns."""

COALESCE = 0.05
"""How long the sweeper sleeps after a notification, in seconds, while its worker relies on the steward."""

RETRY = 1.0
"""Seconds until such a worker tries a probe again that has failed."""

SPREAD = 0.0025
"""Seconds for each worker of the fleet, up to a hundred, over which probes are spread that all of them were told to make.

An edge does not know how many others its origin has, and reckons with a hundred."""

FEW_STREAMS = 200
"""Up to this many streams, a tail names the streams that it wants. With more, naming them costs more than it saves."""

_REST = 1 / MAX_SHARE - 1


class Source(ChangeReads, Protocol):
    """The queries that it needs; :class:`pgbus_gevent.database.queries.Queries` has them."""

    def tail(self, above: int, holes: Sequence[int], streams: Sequence[str] | None, *, limit: int) -> list[TailRow]: ...


class Sweeper:
    """The greenlet that sweeps; :meth:`run` is its loop.

    ``interval`` is the longest time until the next sweep, in seconds; each is shortened at random by up to a quarter. A message
    without a notification can be late by so much. While no notifications are heard, the interval is ten times shorter.

    Until ``board.steward_until``, it relies on the steward: it makes no tails, and no sweeps after a notification, but a probe at
    each interval, or if ``board.unsure`` says so.

    It yields in statements and pauses. While a statement runs, the listener may extend logs, readers may extend or rewind them,
    and logs may come and go. A row of a tail is therefore used only if it is above the head, the answer of a probe only leads to
    a look, and a ring is cleared only if the log's epoch is still the same.
    """

    def __init__(
        self, source: Source, board: Board, *, interval: float, clock: Callable[[], float] = monotonic
    ) -> None:
        self._source = source
        self._board = board
        self._interval = interval
        self._clock = clock
        self._relying = False
        self._stage = len(AFTER_DOORBELL)
        self._tail = Tail()
        self._probed = -PROBE_AFTER
        self._next_probe = 0.0
        self._flooded = False
        self._next_check: float | None = None
        self._unchecked: list[StreamLog] = []
        self.sweeps = 0

    @property
    def interval(self) -> float:
        """The longest time until the next sweep, in seconds."""
        return self._board.until_next(self._interval)

    def run(self) -> None:
        """Sweep, for ever."""
        trouble = Trouble(logger, "cannot look for new messages, trying again: %s")
        while True:
            if self._relies():
                self._pause_relying()
                if not self._can_rely:
                    continue  # first it is spread over time how the workers turn to the database
            else:
                self._pause()
            began = self._clock()
            probing = self._relying or self._probe_is_due(began)
            try:
                if self._sweep(began, probing):
                    self._stage = 0
                trouble.ends()
            except DatabaseError as error:
                trouble.begins(error)
                self._board.unsure |= probing
            # At most the interval, so that a slow sweep, or one that hung until its timeout, does not delay the next one beyond it.
            rest = min((self._clock() - began) * _REST, self.interval)
            if trouble.lasts and self._relying:
                rest = max(rest, RETRY * random.uniform(0.5, 1.0))
            if probing:
                # A probe of ten thousand streams delays the next probe, but not the tails.
                self._next_probe = self._clock() + rest
            else:
                gevent.sleep(min(rest, TAIL_REST))

    @property
    def _can_rely(self) -> bool:
        """Whether there is no need to sweep, because a steward rings for messages, and this worker hears that."""
        return self._board.listening.is_set() and self._clock() < self._board.steward_until

    def _relies(self) -> bool:
        """Change the mode if necessary, and return whether it relies on the steward. It yields if a relay was lost."""
        board = self._board
        relies = self._can_rely
        if self._relying and not relies and board.relay.reaches is not None:
            # The workers of a fleet lose a relay at the same moment.
            gevent.sleep(random.uniform(0, spread(board.workers)))
            relies = self._can_rely
        if relies != self._relying:
            self._relying = relies
            # An edge always relies on its origin, which it can only ask about the streams of its clients.
            board.follow_all = not relies and board.steward_until != inf
            board.unsure = True  # what one of the two has not seen, the other may not see any more
            self._tail = Tail()
            self._stage = len(AFTER_DOORBELL)
            if relies:
                logger.info("relying on the steward, which rings for messages that did not ring")
            else:
                logger.info("there is no steward to rely on: sweeping")
                board.doorbell.set()
        return relies

    def _pause_relying(self) -> None:
        """Wait until the interval is over, or something is in doubt, or there is nothing to rely on any more."""
        board = self._board
        end = self._clock() + self.interval * random.uniform(0.75, 1.0)
        while (left := end - self._clock()) > 0:
            if board.unsure and any(log.is_open for log in board.registry.logs()):
                workers = 100 if board.steward_until == inf else min(board.workers, 100)
                gevent.sleep(min(left, SPREAD * workers * random.random()))
                break
            if not self._can_rely:
                return
            if board.doorbell.wait(min(left, 0.5)):
                board.doorbell.clear()
                if not board.unsure:
                    gevent.sleep(min(left, COALESCE))
        gevent.sleep(max(0.0, self._next_probe - self._clock()))

    def _pause(self) -> None:
        """Wait for the next sweep: the next stage of the series, or the end of the interval. The doorbell ends the interval."""
        doorbell = self._board.doorbell
        if self._stage == len(AFTER_DOORBELL) and not doorbell.wait(self.interval * random.uniform(0.75, 1.0)):
            return
        if doorbell.is_set():
            doorbell.clear()
            self._stage = 0
        stage = self._stage
        gevent.sleep(AFTER_DOORBELL[stage] - (AFTER_DOORBELL[stage - 1] if stage else -self._board.pace))
        if doorbell.is_set() and stage:
            return  # a notification came during the pause, so the series starts again
        doorbell.clear()
        self._stage = stage + 1
        if self._stage == len(AFTER_DOORBELL):
            gevent.sleep(max(0.0, self._next_probe - self._clock()))

    def _probe_is_due(self, now: float) -> bool:
        if self._tail.top is None or self._board.unsure:
            return True
        due = self._stage == len(AFTER_DOORBELL) or now - self._probed >= PROBE_AFTER
        return due and now >= self._next_probe

    def _sweep(self, now: float, probing: bool) -> bool:
        """Sweep once. Return whether it found a message that no notification had brought."""
        logs = [log for log in self._board.registry.logs() if log.is_open]
        if not logs:
            self._forget(now)
            return False
        self.sweeps += 1
        if not probing:
            return self._tail_of(logs, now)
        wanted = self._relying or self._board.unsure or self._flooded or self._tail.top is None
        tailing = not wanted and self._stage < len(AFTER_DOORBELL)
        self._probed = now
        self._board.unsure = False
        moved = self._probe(logs)
        self._check_rings(now)
        # If it is time for a probe within a series, it does not replace the tail: on a slow machine it may be time at each sweep,
        # and a probe compares heads alone. A forged message with the id of a real one would stay.
        return (tailing and self._tail_of(logs, now)) or moved

    def _tail_of(self, logs: list[StreamLog], now: float) -> bool:
        """Read what is new in the table, and compare it with the logs. Return whether a message was new."""
        assert self._tail.top is not None  # while it is None, a probe is due
        names = [log.name for log in logs] if len(logs) <= FEW_STREAMS else None
        rows = self._source.tail(self._tail.top, self._tail.holes(now), names, limit=TAIL_ROWS)
        self._tail.saw([row.id for row in rows], now)
        if len(rows) >= TAIL_ROWS:
            self._probed = -PROBE_AFTER
            self._flooded = True
        taken = [self._take(row) for row in rows]
        return any(taken)

    def _probe(self, logs: list[StreamLog]) -> bool:
        heads, top = {log.name: log.head for log in logs}, self._tail.top
        doubts = [log.doubts for log in logs]
        newest, found = self._source.moved(heads, {log.name for log in logs if log.pruned})
        if top is not None and newest < top:
            self._tail.back(newest)
        if self._tail.top is None or self._flooded:
            # Only then: ids below the newest may belong to transactions that are still open, and tails remember them as holes.
            self._tail.move(newest)
            self._flooded = False
        moved = False
        for log, doubted in zip(logs, doubts, strict=True):
            if log.name not in found:
                log.settle(doubted)
            # A head above the table's needs a look even if the log has moved during the statement, because it may have moved on
            # from a message that does not exist. Otherwise the log may have moved to the table's head meanwhile, or beyond; if
            # it has moved less far, the rest may be a message that nobody rings for.
            now = found.get(log.name)
            if now is not None and not log.retired and (now < heads[log.name] or now > log.head):
                log.announced = max(log.announced, now)
                log.hint(heads[log.name])
                self._board.looks.add(log)
                moved = True
        return moved

    def _forget(self, now: float) -> None:
        """Keep nothing of streams that nobody watches any more; with none watched, no sweep would ever drop it."""
        self._unchecked.clear()
        self._tail.holes(now)

    def _check_rings(self, now: float) -> None:
        """Clear rings that do not agree with the table, because messages were deleted from, or added to, the middle of a stream."""
        if self._next_check is None or now < self._next_check:
            self._next_check = self._next_check or now + self.interval
            return
        self._next_check = now + self.interval * (CHECK_SELDOM if self._relying else 1)
        if not self._unchecked:
            self._unchecked = self._board.registry.logs()
        held: list[tuple[StreamLog, int, list[int]]] = []
        size = 0
        while self._unchecked and size < CHECKED_MESSAGES:
            log = self._unchecked.pop()
            ids = log.ids
            if ids:
                held.append((log, log.epoch, ids))
                size += len(ids)
        if not held:
            return
        found = self._source.inventory([(log.name, ids[0] - 1, ids[-1]) for log, _, ids in held])
        for (log, epoch, ids), (horizon, count, total) in zip(held, found, strict=True):
            there = [id for id in ids if id > horizon]
            if (len(there), sum(there)) != (count, total) and log.epoch == epoch:
                logger.info(
                    "the ring of %r does not agree with the table, in which messages were removed or added: clearing it",
                    log.name,
                )
                log.clear_ring()

    def _take(self, row: TailRow) -> bool:
        """Put a message from a tail into its log, or have a reader look. Return whether the message was new."""
        log = self._board.registry.log(row.stream)
        if log is None or not log.is_open:
            return False
        found = None if row.data is None else _row(row, row.data)
        if row.id <= log.head:
            if log.contradicts(found) if found is not None else log.lacks(row.id, LARGE):
                self._board.looks.add(log)
            return False
        if log.appended_at is None:
            log.appended_at = row.created_at
        if found is not None:
            self._board.take_next(log, found)
        else:
            log.hint(log.head)
            self._board.looks.add(log)
        return True


def _row(row: TailRow, data: str) -> Row:
    return Row(row.id, row.event, data, row.visible_to, row.exclude, row.prev_id, row.created_at, row.trace)
