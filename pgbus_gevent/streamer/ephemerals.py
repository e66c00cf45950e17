"""Fetches the ephemeral messages that are too large for a notification."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from typing import Protocol

from ..core.board import Board
from ..core.wakes import Ephemeral
from ..database.rows import EphemeralRow
from ..errors import DatabaseError

logger = logging.getLogger("pgbus_gevent.ephemerals")

_BATCH = 64
_Found = dict[int, EphemeralRow]


class Source(Protocol):
    """What it needs of the database."""

    def ephemerals(self, ids: Sequence[int]) -> _Found: ...


class Ephemerals:
    """The greenlet that fetches; :meth:`run` is its loop."""

    def __init__(self, source: Source, board: Board) -> None:
        self._source = source
        self._board = board

    def run(self) -> None:
        """Fetch the large ones, and pass on those that wait behind them, for ever."""
        board = self._board
        while True:
            if not board.large:
                board.fetching.clear()
                board.fetching.wait()
            # They stay in the queue until they are passed on, so that none that comes meanwhile overtakes them.
            batch = list(islice(board.large, _BATCH))
            found = self._fetch([message.number for message in batch if message.data is None])
            for message in batch:
                row = found.get(message.number) if message.data is None else None
                # Anybody may name a number in a notification: whose message it is, the table says.
                if row is not None and row.stream == message.stream:
                    message = Ephemeral(row.stream, message.number, *row[1:])
                board.large.popleft()
                if message.data is not None:
                    board.pass_on(message)

    def _fetch(self, numbers: list[int]) -> _Found:
        try:
            return self._source.ephemerals(numbers) if numbers else {}
        except DatabaseError as error:
            logger.warning(
                "%d large ephemeral messages are lost, the database did not give them: %s", len(numbers), error
            )
            return {}
