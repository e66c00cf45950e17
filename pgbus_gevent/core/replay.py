"""Decides where a client starts, which older messages it is sent, and whether it gets a gap event."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..messages import MAX_ID
from . import sse
from .client import Subscription
from .frames import Chunk, Stored, encode, make_chunk, up_to_a_gap
from .rows import OpenQuestion
from .stream_log import StreamLog

EARLIEST_ID = 10**15
"""No message has a lower id, because ids start at the clock in microseconds when the schema is made. This number is in 2001."""


class PageFrames:
    """The messages of a page as frames, complete above the cursor ``start``.

    ``horizon`` is the highest id that pruning has removed from the stream. ``anchor`` is the newest id above the horizon and not
    above ``start``, or 0. ``forgotten`` is the highest horizon of any stream whose horizon has been removed.
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
        """The oldest id in the page, or the horizon if the page is empty."""
        return self._ids[0] if self._ids else self.horizon

    @property
    def newest(self) -> int:
        """The newest id in the page, or the horizon if the page is empty."""
        return self._ids[-1] if self._ids else self.horizon

    def refutes(self, cursor: int) -> bool:
        """Whether the page proves that the table never had, or has lost, a message with the id ``cursor``.

        Each row names the id of the message before it. If a message with the id ``cursor`` had been pruned or deleted by hand,
        the first row above it would name it, or a later one. A row that names an older one was appended after the loss.

        Two cursors of a stream whose first row names no other prove nothing. If all messages of a stream were pruned and its
        horizon was forgotten, the stream starts again; so a cursor up to ``forgotten`` may be from before. And the id just below
        the first message is a common way to ask for that message.
        """
        index = bisect_right(self._ids, cursor)
        known = self._ids[index - 1] if index else self._anchor
        if index == len(self._ids) or known == cursor or cursor <= max(self.horizon, EARLIEST_ID):
            return False
        first = self.frames[index]
        if first.prev_id == 0:
            return self._forgotten < cursor < first.id - 1
        return 0 < first.prev_id < cursor

    def after(self, cursor: int) -> Chunk | None:
        """Return the page's frames above ``cursor``, up to the next gap, or None if there are none."""
        frames = self.frames[bisect_right(self._ids, cursor) :]
        return make_chunk(up_to_a_gap(frames), cursor) if frames else None


class Page:
    """Older messages of one stream. The page is for the waiting clients whose cursor lies from its start to below ``end``."""

    __slots__ = ("content", "end", "epoch", "log")

    def __init__(self, log: StreamLog, content: PageFrames, end: int) -> None:
        self.log = log
        self.content = content
        self.end = end
        self.epoch = log.epoch

    @property
    def current(self) -> bool:
        """Whether the log has not been rewound since the page was read."""
        return self.epoch == self.log.epoch

    def serves(self, cursor: int | None) -> bool:
        """Whether the page has the messages that follow ``cursor``."""
        return cursor is not None and self.content.start <= cursor < self.end


class Admission(NamedTuple):
    """The cursor from which a client starts, and the frame of its gap event (empty if there is none)."""

    cursor: int
    gap: bytes


def admit(subscription: Subscription) -> Admission | None:
    """Decide where a client starts. Return None if the database has to be asked first.

    A cursor above the head is not proof that the client is ahead, because its web page may know of a commit that this worker
    has not heard of. The database decides. Whether messages above the cursor were pruned is found when the first page is read.
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
    """Return why a client at ``cursor`` gets a gap event now, and the frame. Both are empty if there is no gap.

    ``horizon`` is the newest id that is known to be gone, ``oldest`` the oldest id after it, and ``newest`` the newest id that
    the read found.
    """
    log, lost = subscription.log, subscription.lost
    if lost is not None:
        reason, requested = "ahead", lost
    elif 0 < cursor < horizon:  # zero asks for all that is retained, so it misses nothing
        reason, requested = "expired", cursor
    else:
        return "", b""
    # The messages may have been read after the log's last look, so they may be newer than its head.
    last = max(log.head, oldest, newest)
    return reason, sse.gap_detected(log.name, requested=requested, oldest=oldest, last=last, reason=reason)


def replays(waiting: Iterable[Subscription]) -> list[int]:
    """Return the numbers of messages to replay of the clients whose start only the database can find."""
    return [
        subscription.place.replay
        for subscription in waiting
        if subscription.start is None and subscription.place.replay is not None
    ]


def question(log: StreamLog, waiting: Iterable[Subscription]) -> OpenQuestion:
    """Return the question about a stream whose answer serves all clients that wait for it."""
    counts = replays(waiting)
    cursor = min((subscription.start for subscription in waiting if subscription.start is not None), default=None)
    if log.is_open:
        cursor = None  # the log has its ring already, so only the start is asked for
    elif counts:
        cursor = 0
    return OpenQuestion(log.name, cursor, max(counts, default=None))


def _gap(log: StreamLog, requested: int | None, reason: str) -> bytes:
    return sse.gap_detected(log.name, requested=requested, oldest=log.oldest, last=log.head, reason=reason)
