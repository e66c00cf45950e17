"""The place of a reader that follows one stream by reading pages of the table, and decides for itself where it has gaps."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from ..errors import InvalidEvent
from .frames import predecessor
from .names import check_event
from .replay import PageFrames
from .rows import PageRows, Row


class Gap(NamedTuple):
    """Messages that a reader wanted and that are gone.

    ``requested`` (int) is the cursor after which they were. ``reason`` (str) is ``expired`` if retention has removed them; the
    messages from ``oldest`` on follow. It is ``ahead`` if the database has no message ``requested``, because it was restored or
    another server took its place; then all messages that it has follow. ``last`` (int) is the newest id that was found.
    """

    stream: str
    requested: int
    oldest: int
    last: int
    reason: str


class TableTail:
    """The place of one reader. Give it a page of the messages after :attr:`cursor` while :meth:`next` returns None.

    ``cursor`` is where it starts, and ``seen`` says whether the table has had a message with that id, or is empty. A cursor from
    elsewhere may be of a message that the table has lost.
    """

    def __init__(self, stream: str, cursor: int, *, seen: bool = False) -> None:
        self.stream = stream
        self.cursor = cursor
        """The cursor after what :meth:`next` has returned: the id of the last message."""
        self._seen = seen
        self._horizon = 0
        self._lost: int | None = None  # the cursor whose message the table has lost
        self._waiting: deque[tuple[Row | Gap, int]] = deque()  # each with the cursor after it

    @property
    def pruned(self) -> bool:
        """Whether all messages up to the cursor are known to have been removed by retention."""
        return self._horizon >= self.cursor

    def take(self, page: PageRows) -> bool:
        """Take the page of the messages after :attr:`cursor`. Return False if nothing follows for now.

        After True, call :meth:`next`, and read another page if it returns None.
        """
        at, gone = self.cursor, page.horizon
        newest = page.rows[-1].id if page.rows else max(page.anchor, page.horizon)
        if self._is_lost(page):
            # All that the table has follows, so the next page is read from the beginning.
            self._lost, self.cursor, self._horizon = at, 0, 0
            return True
        if self._lost is not None:
            oldest = page.rows[0].id if page.rows else newest
            self._waiting.append((Gap(self.stream, self._lost, oldest, newest, "ahead"), at))
            self._lost = None
        if 0 < at < gone and not page.rows:
            self._waiting.append((Gap(self.stream, at, gone, newest, "expired"), gone))
        for row in page.rows:
            gone = max(gone, predecessor(row))
            if 0 < at < gone:
                self._waiting.append((Gap(self.stream, at, row.id, newest, "expired"), gone))
            self._waiting.append((row, row.id))
            at = row.id
        self._seen, self._horizon = True, max(self._horizon, page.horizon)
        return bool(self._waiting)

    def _is_lost(self, page: PageRows) -> bool:
        """Whether the table has no message with the id of the cursor, although it was not removed by retention."""
        at = self.cursor
        if at == 0 or max(page.anchor, page.horizon) >= at or (self._horizon >= at and page.forgotten >= at):
            return False
        if self._seen or not page.rows:
            return True
        content = PageFrames(page.rows, start=at, horizon=page.horizon, anchor=page.anchor, forgotten=page.forgotten)
        return content.refutes(at)

    def next(self) -> Row | Gap | None:
        """Return the next message, or the gap before it, and move the cursor there. None: read another page."""
        while self._waiting:
            found, self.cursor = self._waiting.popleft()
            if isinstance(found, Gap) or _is_valid(found):
                return found
        return None


def _is_valid(row: Row) -> bool:
    """Whether the event name of a row is allowed. Nobody gets a row whose name is not, which was written into the table by hand."""
    try:
        check_event(row.event)
    except InvalidEvent:
        return False
    return True
