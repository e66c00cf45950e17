"""Passes ephemeral messages on in the order in which they came, those too large for a notification included."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from gevent.event import Event

from ..core import sse
from ..core.stream_log import Frame
from ..core.wakes import Ephemeral
from ..database.rows import EphemeralRow
from ..errors import DatabaseError

logger = logging.getLogger("pgbus_gevent.ephemerals")

MAX_WAITING = 10_000
"""Ephemeral messages that wait behind a large one; beyond that new ones are dropped, with one warning for all of a flood."""

_BATCH = 64
_Found = dict[int, EphemeralRow]


class Source(Protocol):
    """What it needs of the database."""

    def ephemerals(self, ids: Sequence[int]) -> _Found: ...


class Ephemerals:
    """The greenlet that fetches large ones; :meth:`run` is its loop. :meth:`take` never yields.

    ``wanted`` tells whether somebody watches a stream; ``pass_on`` is given a stream's name and a frame.
    """

    def __init__(self, source: Source, *, wanted: Callable[[str], bool], pass_on: Callable[[str, Frame], None]) -> None:
        self._source = source
        self._wanted = wanted
        self._pass_on = pass_on
        self._queue: deque[Ephemeral] = deque()
        self._fetching = False
        self._dropping = False
        self._work = Event()
        self.dropped = 0

    def take(self, message: Ephemeral) -> None:
        """A notification brought one."""
        if not self._wanted(message.stream):
            return
        if message.data is not None and not self._queue and not self._fetching:
            self._pass_on(message.stream, _frame(message))
        elif len(self._queue) >= MAX_WAITING:
            if not self._dropping:
                logger.warning(
                    "more than %d ephemeral messages wait: dropping new ones of %r", MAX_WAITING, message.stream
                )
            self._dropping = True
            self.dropped += 1
        else:
            self._queue.append(message)
            self._work.set()

    def run(self) -> None:
        """Fetch what is large, and pass on what waits behind it, for ever."""
        while True:
            if not self._queue:
                self._dropping = False
                self._work.clear()
                self._work.wait()
            batch = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            self._fetching = True
            try:
                found = self._fetch([message.number for message in batch if message.data is None])
                for message in batch:
                    row = found.get(message.number) if message.data is None else None
                    # Anybody may name a number in a notification: whose message it is, the table says.
                    if row is not None and row.stream == message.stream:
                        message = Ephemeral(row.stream, message.number, *row[1:])
                    if message.data is not None:
                        self._pass_on(message.stream, _frame(message))
            finally:
                self._fetching = False

    def _fetch(self, numbers: list[int]) -> _Found:
        try:
            return self._source.ephemerals(numbers) if numbers else {}
        except DatabaseError as error:
            logger.warning(
                "%d large ephemeral messages are lost, the database did not give them: %s", len(numbers), error
            )
            return {}


def _frame(message: Ephemeral) -> Frame:
    # Without an id: it is not stored, and a cursor that named it would be nowhere.
    return Frame(0, sse.message(message.data or "", event=message.event), message.visible_to, message.exclude)
