"""``Tail``: the messages of one stream as an asynchronous iterator."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timezone

from ..core.retries import Backoff, Trouble
from ..core.rows import OpenQuestion, PageRows, Row
from ..core.table_tail import Gap, TableTail
from ..database import statements
from ..errors import DatabaseUnavailable, GapDetected
from ..messages import Message
from .ear import Ear
from .sessions import Sessions

logger = logging.getLogger("pgbus_gevent.aio")

PAGE = 500
"""The most messages that are read at once."""

PAGE_BYTES = 1024 * 1024
"""About how many bytes are read at once."""

_PAUSES = 0.05, 2.0  # the first and the longest pause between tries while the database is away, in seconds


class Tail:
    """An asynchronous iterator over the messages of a stream, made by :meth:`Stream.tail`. It ends when its bus is closed.

    Each message comes once, in the order of the commits. While the database is away, the iterator waits, and then continues where
    it was. Only the first read raises :class:`DatabaseUnavailable` in that case. One task at a time may use a tail.
    """

    def __init__(
        self,
        sessions: Sessions,
        ear: Ear,
        stream: str,
        *,
        since: int | None,
        replay: int | None,
        on_gap: Callable[[Gap], object] | None,
    ) -> None:
        self._sessions = sessions
        self._ear = ear
        self._stream = stream
        self._since = since
        self._replay = replay
        self._on_gap = on_gap
        self._place: TableTail | None = None
        self._read_before = False
        self._busy = False
        self._closings = ear.closings

    @property
    def cursor(self) -> int | None:
        """The id of the last message that came, or the cursor from which the tail starts; None before that is known."""
        return self._since if self._place is None else self._place.cursor

    def __aiter__(self) -> Tail:
        return self

    async def __anext__(self) -> Message:
        """Return the next message, and wait until there is one.

        Raises :class:`GapDetected` if messages before it are gone, unless the tail has ``on_gap``; the next call continues after
        the gap. Raises :class:`DatabaseError` if the database refuses to be read, and RuntimeError if another task waits for it.
        """
        if self._busy:
            raise RuntimeError("another task waits for this tail: give each task a tail of its own")
        self._busy = True
        try:
            return await self._next()
        finally:
            self._busy = False

    async def _next(self) -> Message:
        while True:
            found = None if self._place is None else self._place.next()
            if found is None:
                await self._fetch()
            elif isinstance(found, Gap):
                if self._on_gap is None:
                    raise GapDetected(found)
                self._on_gap(found)
            else:
                return Message(self._stream, found.id, _time(found), *found[1:5])

    async def _fetch(self) -> None:
        """Wait until the place has something to return, or has to be read again. Raises StopAsyncIteration if it is over."""
        self._end_if_closed()
        if self._place is None:
            self._place = await self._start()
        backoff = Backoff(*_PAUSES)
        trouble = Trouble(logger, "cannot read messages, trying again: %s")
        with self._ear.following(self._place) as follower:
            while True:
                self._end_if_closed()
                follower.woken.clear()
                try:
                    found = self._place.take(await self._page(self._place))
                except DatabaseUnavailable as error:
                    if not self._read_before:
                        raise
                    trouble.begins(error)
                    await asyncio.sleep(backoff.next())
                    continue
                self._read_before = True
                if found:
                    return
                trouble.ends()
                backoff.reset()
                follower.idle = True
                await follower.woken.wait()
                follower.idle = False

    def _end_if_closed(self) -> None:
        if self._closings != self._ear.closings:
            raise StopAsyncIteration

    async def _page(self, place: TableTail) -> PageRows:
        asked = statements.pages_asked([(self._stream, place.cursor)], limit=PAGE, size=PAGE_BYTES)
        return statements.page_rows(await self._sessions.rows(statements.PAGES, asked), 1, PAGE)[0]

    async def _start(self) -> TableTail:
        if self._since is not None:
            return TableTail(self._stream, self._since)
        question = OpenQuestion(self._stream, None, self._replay)
        asked = statements.openings_asked([question], limit=1, size=1)
        rows = await self._sessions.rows(statements.OPENINGS, asked)
        (opening,) = statements.opening_rows(rows, [question], 1)
        start = opening.head if self._replay is None else opening.start
        return TableTail(self._stream, start, seen=True)


def _time(row: Row) -> datetime | None:
    return None if row.created_at is None else datetime.fromtimestamp(row.created_at, timezone.utc)
