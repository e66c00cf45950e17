"""Pages that a reader keeps for clients that need them a moment later."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from .replay import PageFrames
from .stream_log import StreamLog


class _Kept(NamedTuple):
    log: StreamLog
    content: PageFrames
    last: int
    read_at: float
    epoch: int


class KeptPages:
    """At most ``limit`` pages. Times are in seconds of a monotonic clock.

    The reader asks only for pages that were read within the last few seconds, so that messages which are removed from the table
    do not live on here.
    """

    def __init__(self, limit: int) -> None:
        self._pages: deque[_Kept] = deque(maxlen=limit)

    def __len__(self) -> int:
        return len(self._pages)

    def keep(self, log: StreamLog, content: PageFrames, last: int, read_at: float) -> None:
        """Keep a page that was read at ``read_at`` and ends with the id ``last``."""
        self._pages.append(_Kept(log, content, last, read_at, log.epoch))

    def find(self, log: StreamLog, cursor: int, since: float) -> tuple[PageFrames, int] | None:
        """Return a page that was read at ``since`` or later and has the messages after ``cursor``, with its last id, or None.

        A page cannot miss a message between its ids, because ids follow commits. If messages of the page were pruned a moment
        ago, sending them does no harm.
        """
        for kept in self._pages:
            if kept.log is not log or kept.epoch != log.epoch:
                continue
            if kept.content.start <= cursor < kept.last and kept.read_at >= since:
                return kept.content, kept.last
        return None

    def clear(self) -> None:
        """Drop all pages."""
        self._pages.clear()
