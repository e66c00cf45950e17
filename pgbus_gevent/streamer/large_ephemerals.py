"""Fetches ephemeral messages that are too large for a notification."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from typing import Protocol

from ..core.board import Board
from ..core.rows import EphemeralRow
from ..core.wakes import Ephemeral
from ..errors import DatabaseError

logger = logging.getLogger("pgbus_gevent.ephemerals")

_BATCH = 64
_Found = dict[int, EphemeralRow]


class Source(Protocol):
    """The queries that it needs; :class:`pgbus_gevent.database.queries.Queries` has them."""

    def ephemerals(self, ids: Sequence[int]) -> _Found: ...


class LargeEphemerals:
    """The greenlet that fetches large ephemeral messages; :meth:`run` is its loop."""

    def __init__(self, source: Source, board: Board) -> None:
        self._source = source
        self._board = board

    def run(self) -> None:
        """Fetch the large messages, and have them and the messages behind them sent, for ever."""
        board = self._board
        while True:
            if not board.large:
                board.fetching.clear()
                board.fetching.wait()
            # During the fetch the listener may append to `large`. The batch stays at the front until it is sent, so that messages
            # which the listener takes meanwhile wait behind it and do not overtake it.
            batch = list(islice(board.large, _BATCH))
            found = self._fetch([message.number for message in batch if message.data is None])
            for message in batch:
                row = found.get(message.number) if message.data is None else None
                # A forged notification may name any number, so the stream has to agree with the table.
                if row is not None and row.stream == message.stream:
                    message = Ephemeral(row.stream, message.number, *row[1:])
                board.large.popleft()
                if message.data is not None:
                    board.buffer_ephemeral(message)

    def _fetch(self, numbers: list[int]) -> _Found:
        try:
            return self._source.ephemerals(numbers) if numbers else {}
        except DatabaseError as error:
            logger.warning(
                "%d large ephemeral messages are lost, because the database did not return them: %s",
                len(numbers),
                error,
            )
            return {}
