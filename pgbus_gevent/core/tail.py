"""How far a worker has read the messages of all streams, in the order of the one sequence that their ids come from."""

from __future__ import annotations

from collections.abc import Iterable

MAX_HOLES = 1000
"""Ids that are watched for at once; one more, and the oldest are given up."""

WIDEST_GAP = 100
"""Ids between two neighbours that are watched for; more were drawn by something large, or by nobody."""

HOLE_SECONDS = 2.0
"""For how long. Nearly all are filled within milliseconds, by a transaction that was about to commit, or never."""


class Tail:
    """A position in the sequence, and the holes below it.

    Ids follow commits within a stream, but not from one stream to another: below the highest id that was seen, others may
    be in transactions that are still open. These are the holes, and a read asks for them again. One that is given up is still
    found by whoever asks each stream for what is above its head, so this decides how soon a message is found, never whether.
    """

    def __init__(self) -> None:
        self.top: int | None = None
        self._holes: dict[int, float] = {}  # when each was first missed, oldest first

    def holes(self, now: float) -> list[int]:
        """The ids below ``top`` to ask for; ``now`` is of a monotonic clock, in seconds."""
        # Lists, for the dict changes; it is in the order of time, so the first that is young enough ends it.
        for hole, since in list(self._holes.items()):
            if now - since <= HOLE_SECONDS and len(self._holes) <= MAX_HOLES:
                break
            del self._holes[hole]
        return list(self._holes)

    def move(self, top: int) -> None:
        """All that is committed up to here was looked at by other means."""
        self.top = top if self.top is None else max(self.top, top)

    def back(self, top: int) -> None:
        """Nothing above ``top`` is there any more, so that what comes next may lie below where we were."""
        self.top = top
        self._holes = {hole: since for hole, since in self._holes.items() if hole <= top}

    def saw(self, ids: Iterable[int], now: float) -> None:
        """These were read, in rising order."""
        for id in ids:
            if self.top is None or id > self.top:
                if self.top is not None and id - self.top <= WIDEST_GAP:
                    self._holes.update(dict.fromkeys(range(self.top + 1, id), now))
                self.top = id
            else:
                self._holes.pop(id, None)
