"""A page of older messages, as a reader has it from the database, for clients below the ring."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from ..messages import MAX_ID
from .stream_log import Chunk, Stored, encode, make_chunk, up_to_a_hole

EARLIEST_ID = 10**15
"""Ids begin at the clock in microseconds, when the schema is made; no lower number was ever one of ours (this was in 2001)."""


class History:
    """A page of older messages, complete above the cursor ``start``; ``horizon`` is the highest id that pruning removed.

    ``anchor`` is the newest id above the horizon and not above ``start``, ``forgotten`` the highest horizon of any stream that is
    not known any more.
    """

    def __init__(
        self, rows: Sequence[Stored], *, start: int, horizon: int, anchor: int = 0, forgotten: int = MAX_ID
    ) -> None:
        self.start = start
        self.horizon = horizon
        self._anchor = anchor
        self._forgotten = forgotten
        self.frames = [encode(row) for row in rows]
        self._ids = [row.id for row in rows]

    @property
    def oldest(self) -> int:
        """The oldest id that is retained, as far as this page tells."""
        return self._ids[0] if self._ids else self.horizon

    @property
    def newest(self) -> int:
        """The newest id that is there, as far as this page tells."""
        return self._ids[-1] if self._ids else self.horizon

    def refutes(self, cursor: int) -> bool:
        """Whether ``cursor`` is proven to be no message's id: not of one that is there, was pruned, or was deleted by hand.

        Where one with that id was committed and is gone, what came after it names it, or a later one. What names an older one came
        after the loss. A stream whose messages were all pruned begins anew once its horizon is forgotten; so cursors up to the
        highest of those prove nothing there, and neither does the one just below the first message, by which some ask for that.
        """
        place = bisect_right(self._ids, cursor)
        known = self._ids[place - 1] if place else self._anchor
        if place == len(self._ids) or known == cursor or cursor <= max(self.horizon, EARLIEST_ID):
            return False
        first = self.frames[place]
        if first.prev_id == 0:
            return self._forgotten < cursor < first.id - 1
        return 0 < first.prev_id < cursor

    def after(self, cursor: int) -> Chunk | None:
        """What of the page is above ``cursor``, up to the next hole; None if nothing is."""
        frames = self.frames[bisect_right(self._ids, cursor) :]
        return make_chunk(up_to_a_hole(frames), cursor) if frames else None
