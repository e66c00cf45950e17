"""The pages that a reader keeps for who comes a moment later."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from .replay import History
from .stream_log import StreamLog


class _Kept(NamedTuple):
    log: StreamLog
    history: History
    last: int
    read_at: float
    epoch: int


class KeptPages:
    """At most ``limit`` pages, none of them older than ``seconds``, as what is removed from the table is not to live on here.

    Times are of a monotonic clock.
    """

    def __init__(self, limit: int) -> None:
        self._pages: deque[_Kept] = deque(maxlen=limit)

    def __len__(self) -> int:
        return len(self._pages)

    def keep(self, log: StreamLog, history: History, last: int, read_at: float) -> None:
        """A page was read, which ends with the id ``last``."""
        self._pages.append(_Kept(log, history, last, read_at, log.epoch))

    def find(self, log: StreamLog, cursor: int, since: float) -> tuple[History, int] | None:
        """One that was read at ``since`` or later and has what comes after ``cursor``, and its last id.

        Nothing new can lie within one, as ids follow commits; that something of it was pruned a moment ago harms nobody.
        """
        for kept in self._pages:
            if kept.log is not log or kept.epoch != log.epoch:
                continue
            if kept.history.start <= cursor < kept.last and kept.read_at >= since:
                return kept.history, kept.last
        return None

    def clear(self) -> None:
        """Forget all of them."""
        self._pages.clear()
