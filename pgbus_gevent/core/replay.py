"""Where a client starts, what it is sent of older messages, and what it is told that it has missed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from ..messages import MAX_ID
from . import sse
from .client import Subscription
from .stream_log import Chunk, Stored, StreamLog, encode, make_chunk, up_to_a_hole

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


class Admission(NamedTuple):
    """Where a client starts, and the frame that tells it what it has missed, if anything."""

    cursor: int
    gap: bytes


def admit(subscription: Subscription) -> Admission | None:
    """Decide where a client starts; None where the database has to be asked first.

    A cursor beyond the head is not ahead before the database says so: the page may know of a commit that this worker has not
    yet heard of. That messages above the cursor were pruned is found by the read of the first page.
    """
    log, place, start = subscription.log, subscription.place, subscription.start
    if not log.is_open or log.in_doubt:
        return None
    if place.invalid_cursor:
        return Admission(log.head, _gap(log, None, "invalid-cursor"))
    if start is None and place.replay is not None:
        start = log.back(place.replay)
        return None if start is None else Admission(start, b"")
    if start is None:
        return Admission(log.head, b"")
    if start <= log.head:
        return Admission(0, _gap(log, start, "ahead")) if log.was_lost(start) else Admission(start, b"")
    return Admission(0, _gap(log, start, "ahead")) if subscription.verified else None


def missed(subscription: Subscription, cursor: int, horizon: int, oldest: int, newest: int = 0) -> tuple[str, bytes]:
    """Why a client at ``cursor`` has to be told of a gap before what follows, and the frame; both empty where there is none.

    ``horizon`` is the newest message that is known to be gone, ``oldest`` the oldest that is there after it, ``newest`` the newest,
    as far as is known.
    """
    log, lost = subscription.log, subscription.lost
    if lost is not None:
        reason, requested = "ahead", lost
    elif 0 < cursor < horizon:  # zero asks for all that is retained, so it misses nothing
        reason, requested = "expired", cursor
    else:
        return "", b""
    # What follows may have been read by a newer look than the log's.
    last = max(log.head, oldest, newest)
    return reason, sse.gap_detected(log.name, requested=requested, oldest=oldest, last=last, reason=reason)


def _gap(log: StreamLog, requested: int | None, reason: str) -> bytes:
    return sse.gap_detected(log.name, requested=requested, oldest=log.oldest, last=log.head, reason=reason)
