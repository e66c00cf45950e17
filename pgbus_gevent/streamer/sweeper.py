"""Finds what no notification told of.

Most publishers do not ring: only one at a time does, and a notification may be lost, late, or not be had at all. So after every
ring, and every few seconds come what may, the database is asked.

There are two ways to ask. A *tail* reads what is new of all streams together, by id, and brings the messages themselves; it is
short however many streams are served, so it is what comes milliseconds after a ring. A *probe* compares the head of each stream
that is served with the table, in both directions; it misses nothing, whatever became of ids and clocks, so it is what the
promise rests on. A head that the table does not have was lost with a failover or a restore, or was never there.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Sequence
from time import monotonic
from typing import Protocol

import gevent

from ..core.board import Board
from ..core.retries import Trouble
from ..core.stream_log import StreamLog
from ..core.tail import Tail
from ..database.rows import Row, TailRow
from ..errors import DatabaseError

logger = logging.getLogger("pgbus_gevent.sweeper")

AFTER_RING = (0.004, 0.012, 0.05, 0.25)
"""Seconds from a ring to the sweeps that follow it; found something, and they begin anew. The last is a probe. Where rings keep a
distance, all are later by it: nobody rings until then."""

PROBE_AFTER = 1.0
"""Seconds without a probe after which the next sweep is one, where rings never let it come to the last."""

MAX_SHARE = 0.2
"""The most of the time that sweeps may take, however many streams there are, unless one alone takes seconds."""

TAIL_ROWS = 1000
"""Messages that one tail reads. Where more are new it gives way to a probe, which goes by streams, not by messages."""

TAIL_REST = 0.02
"""The longest rest after a tail, in seconds: it takes long only where the database is busy, and brings the more the later it is."""

CHECKED_MESSAGES = 5000
"""Messages in rings that are compared with the table at each interval; where there are more, the streams take turns."""

FEW_STREAMS = 200
"""Of so many streams or fewer, a tail names those that it wants; with more that would cost more than it saves."""

_REST = 1 / MAX_SHARE - 1


class Source(Protocol):
    """What it needs of the database."""

    def moved(self, heads: dict[str, int], pruned: Collection[str]) -> tuple[int, dict[str, int]]: ...
    def inventory(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[int, int, int]]: ...
    def tail(self, above: int, holes: Sequence[int], streams: Sequence[str] | None, *, limit: int) -> list[TailRow]: ...


class Sweeper:
    """The greenlet that sweeps; :meth:`run` is its loop.

    ``interval`` is the longest time in seconds until the next sweep, shortened at random by up to a quarter: so late can a message
    be whose notification never came. While no notifications are heard, it is ten times shorter.
    """

    def __init__(
        self, source: Source, board: Board, *, interval: float, clock: Callable[[], float] = monotonic
    ) -> None:
        self._source = source
        self._board = board
        self._interval = interval
        self._clock = clock
        self._stage = len(AFTER_RING)
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
            self._pause()
            began = self._clock()
            probing = self._probe_is_due(began)
            try:
                if self._sweep(began, probing):
                    self._stage = 0
                trouble.ends()
            except DatabaseError as error:
                trouble.begins(error)
                self._board.unsure |= probing
            # One that was slow, or hung up to its timeout, must not make the next one later than was promised.
            rest = min((self._clock() - began) * _REST, self.interval)
            if probing:
                # A probe of ten thousand streams keeps the next probe waiting, not the tails.
                self._next_probe = self._clock() + rest
            else:
                gevent.sleep(min(rest, TAIL_REST))

    def _pause(self) -> None:
        """Wait for the next sweep: a stage after the ring, or the interval, which a ring cuts short."""
        doorbell = self._board.doorbell
        if self._stage == len(AFTER_RING) and not doorbell.wait(self.interval * random.uniform(0.75, 1.0)):
            return
        if doorbell.is_set():
            doorbell.clear()
            self._stage = 0
        stage = self._stage
        gevent.sleep(AFTER_RING[stage] - (AFTER_RING[stage - 1] if stage else -self._board.pace))
        if doorbell.is_set() and stage:
            return  # a ring came meanwhile, which starts over
        doorbell.clear()
        self._stage = stage + 1
        if self._stage == len(AFTER_RING):
            gevent.sleep(max(0.0, self._next_probe - self._clock()))

    def _probe_is_due(self, now: float) -> bool:
        if self._tail.top is None or self._board.unsure:
            return True
        due = self._stage == len(AFTER_RING) or now - self._probed >= PROBE_AFTER
        return due and now >= self._next_probe

    def _sweep(self, now: float, probing: bool) -> bool:
        """Whether anything had moved that a publisher did not tell of."""
        logs = [log for log in self._board.registry.logs() if log.is_open]
        if not logs:
            return False
        self.sweeps += 1
        if probing:
            self._probed = now
            self._board.unsure = False
            moved = self._probe(logs)
            self._check_rings(now)
            return moved
        assert self._tail.top is not None  # else a probe is due
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
            # Not else: below the newest there may be ids that are about to commit, which only a tail remembers.
            self._tail.move(newest)
            self._flooded = False
        moved = False
        for log, doubted in zip(logs, doubts, strict=True):
            if log.name not in found:
                log.settle(doubted)
            # One that is beyond the table is looked at though it has moved meanwhile: it may go on behind what is not there.
            now, head = found.get(log.name), heads[log.name]
            if now is not None and not log.retired and (now < head or log.head == head):
                self._board.looks.add(log)
                moved = True
        return moved

    def _check_rings(self, now: float) -> None:
        """Drop rings that hold what was deleted from the middle of their streams, or not what came there later."""
        if self._next_check is None or now < self._next_check:
            self._next_check = self._next_check or now + self.interval
            return
        self._next_check = now + self.interval
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
                    "messages of %r that are held in memory were removed or added to in the table: reading them again",
                    log.name,
                )
                log.forget()

    def _take(self, row: TailRow) -> bool:
        """Whether the message was new here."""
        log = self._board.registry.log(row.stream)
        if log is None or not log.is_open or row.id <= log.head:
            return False
        if row.data is not None:
            self._board.take_next(log, Row(row.id, row.event, row.data, row.visible_to, row.exclude, row.prev_id))
        else:
            self._board.looks.add(log)
        return True
