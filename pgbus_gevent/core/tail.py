"""The position of a worker's tails in the sequence from which the ids of all streams come."""

from __future__ import annotations

from collections.abc import Iterable

MAX_HOLES = 1000
"""The most holes that are remembered. If there are more, the oldest are given up."""

MAX_HOLES_BETWEEN = 100
"""If two neighbouring messages are further apart than this, the ids between them are not taken for holes.

Usually one large transaction drew all of them, or the sequence jumped and nothing drew them.
"""

HOLE_SECONDS = 2.0
"""How long a hole is remembered, in seconds. Nearly every hole is filled within milliseconds, at a commit, or never."""


class Tail:
    """``top``, the highest id that a tail has seen, and the holes below it. ``top`` is None before the first probe.

    Ids follow commits within a stream, but not across streams. Ids below ``top`` may belong to transactions that are still open.
    These are the holes, and each tail asks for them again. If a hole is given up, a probe still finds its message. The holes
    therefore decide how soon a message is found, never whether it is found.
    """

    def __init__(self) -> None:
        self.top: int | None = None
        self._holes: dict[int, float] = {}  # the time at which each was found, oldest first

    def holes(self, now: float) -> list[int]:
        """Give up old holes, and return the others. ``now`` is in seconds of a monotonic clock."""
        # The dict is in the order of time, so the first hole that is young enough ends the loop.
        for hole, since in list(self._holes.items()):
            if now - since <= HOLE_SECONDS and len(self._holes) <= MAX_HOLES:
                break
            del self._holes[hole]
        return list(self._holes)

    def move(self, top: int) -> None:
        """Move up to ``top``, because a probe has covered every message that was committed up to there."""
        self.top = top if self.top is None else max(self.top, top)

    def back(self, top: int) -> None:
        """Move back to ``top``, because the table has no message above it any more."""
        self.top = top
        self._holes = {hole: since for hole, since in self._holes.items() if hole <= top}

    def saw(self, ids: Iterable[int], now: float) -> None:
        """Note the ids that a tail has read, in rising order."""
        for id in ids:
            if self.top is None or id > self.top:
                if self.top is not None and id - self.top <= MAX_HOLES_BETWEEN:
                    self._holes.update(dict.fromkeys(range(self.top + 1, id), now))
                self.top = id
            else:
                self._holes.pop(id, None)
