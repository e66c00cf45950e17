"""The position of the steward in the ids of all streams, and the holes below it, in which messages may still appear."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

MAX_HOLES = 1000
"""The most holes that are remembered. If there are more, the oldest are given up."""

YOUNG = 2.0
"""Seconds for which every tail asks for a hole. Nearly every hole is filled within milliseconds, at a commit, or never."""

MARK_AFTER = 1.0
"""Seconds until a hole gets its bound: longer than a transaction takes from drawing an id to its first write."""


BELOW = 10_000
"""How many ids below the oldest message are asked for at the start. Below these, the index may be full of dead entries."""


class Hole(NamedTuple):
    """The ids from ``low`` to ``high``, which no message had when they were first seen, at ``since`` in monotonic seconds.

    Each transaction that may have drawn one of them has a transaction id below ``bound``; None if that is not known yet.
    """

    low: int
    high: int
    since: float
    bound: int | None = None


class IdTail:
    """``top``, the highest id that was read, and the holes below it. ``top`` is None before the start.

    Ids follow commits within a stream, but not across streams. An id below the top may belong to a transaction that is still
    open, for minutes perhaps. A hole is therefore remembered until every transaction that may own it has ended: the hole's bound
    is a transaction id that was given after the hole was seen, so its owner has a lower one, and a snapshot in which all
    transactions below the bound have ended shows what is to come in the hole. A hole that is given up before, because there are
    too many, costs time but no message: the workers' probes find it.
    """

    def __init__(self) -> None:
        self.top: int | None = None
        self.holes: list[Hole] = []
        self._ended_below = 0

    def start(self, newest: Sequence[int], now: float, *, last: int, complete: bool) -> None:
        """Begin at the ``newest`` ids of the table, in rising order; ``complete`` says that there are no others.

        ``last`` is the last id that had been drawn. Of the ids below the newest, those in holes that are known already are asked
        for, and the last few if the table has none of them.
        """
        floor = newest[0] if newest else last + 1
        known = max(0, floor - 1 - BELOW) if self.top is None else self.top
        # Only cut off at the floor: below it, a hole may belong to a transaction that is still open.
        self.holes = [hole._replace(high=min(hole.high, floor - 1)) for hole in self.holes if hole.low < floor]
        self.top = newest[-1] if newest else last
        self._add([known, *newest] if complete and known < floor else newest, now)
        if complete and not newest:
            self._add([known, last + 1], now)

    def question(self, now: float, *, everything: bool) -> list[Hole]:
        """Return the holes to ask for: the young ones, those that can be given up after one last question, or ``everything``."""
        return [
            hole
            for hole in self.holes
            if everything or now - hole.since < YOUNG or (hole.bound is not None and hole.bound <= self._ended_below)
        ]

    def needs_bound(self, now: float) -> bool:
        """Whether the next tail is to bring a new transaction id, as the bound of holes that have none."""
        return any(hole.bound is None and now - hole.since >= MARK_AFTER for hole in self.holes)

    def saw(
        self,
        asked: Sequence[Hole],
        found: Iterable[int],
        above: Sequence[int],
        *,
        ended_below: int,
        last: int,
        now: float,
    ) -> None:
        """Note what one statement has read: the ids ``found`` in the holes ``asked``, and the ids ``above`` the top, rising.

        ``ended_below`` is the transaction id below which all transactions had ended in the snapshot of the statement, and
        ``last`` the last id that had been drawn.
        """
        assert self.top is not None
        self._ended_below = ended_below
        gone = set(asked)
        kept = [hole for hole in self.holes if hole not in gone]
        there = sorted(found)
        for hole in asked:
            if hole.bound is None or hole.bound > ended_below:
                kept += _without(hole, there)
        self.holes = kept
        self._add([self.top, *above], now)
        if above:
            self.top = above[-1]
        if self.top > last:
            # Somebody has set the sequence back. The ids above the last one are not asked for until they are drawn again.
            self.top = last
            self.holes = [hole for hole in self.holes if hole.high < last]

    def bind(self, bound: int, now: float) -> None:
        """Give the holes that have no bound the transaction id that a statement has got, which was sent at ``now``."""
        self.holes = [
            hole._replace(bound=bound) if hole.bound is None and now - hole.since >= MARK_AFTER else hole
            for hole in self.holes
        ]

    def _add(self, ids: Iterable[int], now: float) -> None:
        self.holes += [Hole(low + 1, high - 1, now) for low, high in pairwise(ids) if high - low > 1]
        if len(self.holes) > MAX_HOLES:
            self.holes = sorted(self.holes, key=lambda hole: hole.since)[-MAX_HOLES:]


def _without(hole: Hole, ids: Sequence[int]) -> list[Hole]:
    """Return what is left of a hole without ``ids``, which are in rising order."""
    inside = [id for id in ids if hole.low <= id <= hole.high]
    edges = [hole.low - 1, *inside, hole.high + 1]
    return [hole._replace(low=low + 1, high=high - 1) for low, high in pairwise(edges) if high - low > 1]
