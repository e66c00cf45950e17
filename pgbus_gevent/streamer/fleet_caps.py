"""Makes the caps of owners and addresses hold over all workers: reports this worker's counts, and learns those of the others."""

from __future__ import annotations

import logging
import random
import secrets
from typing import Protocol

import gevent

from ..core.board import Board
from ..core.fleet_counts import FleetCounts, Report, Sum
from ..core.retries import Trouble
from ..errors import DatabaseError
from .clients import Clients

logger = logging.getLogger("pgbus_gevent.caps")

INTERVAL = 5.0
"""The longest time between two reports, in seconds."""

PAUSE = 2.0
"""The shortest time between two sums of all reports, in seconds."""

_FIRST = 0.5  # seconds until the first report, with which a new worker learns what the others have
_STALE = 3  # reports that fail one after the other, after which the last sum is forgotten


class Source(Protocol):
    """The statements that it needs; :class:`pgbus_gevent.database.caps.CapQueries` has them."""

    def report(self, worker: str, report: Report, *, pause: float) -> Sum: ...
    def leave(self, worker: str) -> None: ...


class FleetCaps:
    """The greenlet that reports and learns; :meth:`run` is its loop.

    ``counts`` is shared with ``Clients``, which refuses a connection if its owner or address has reached the cap with it.
    """

    def __init__(
        self,
        source: Source,
        board: Board,
        clients: Clients,
        counts: FleetCounts,
        *,
        interval: float = INTERVAL,
        pause: float = PAUSE,
    ) -> None:
        self._source = source
        self._board = board
        self._clients = clients
        self._counts = counts
        self.interval = interval
        self.pause = pause
        self._worker = ""
        self._failures = 0
        self._trouble = Trouble(
            logger,
            "caps hold on this worker alone, because the other workers cannot be asked: %s",
            over="caps hold over all workers",
        )

    def run(self) -> None:
        """Report, for ever. At the end, take the report back, so that the clients find room elsewhere."""
        self._worker = secrets.token_hex(8)  # made here, because the process may fork between __init__ and run
        pause = min(_FIRST, self.interval)
        try:
            while True:
                gevent.sleep(pause * random.uniform(0.75, 1.0))
                pause = self.interval
                try:
                    self.report()
                except DatabaseError as error:
                    self._failed(error)
                else:
                    self._failures = 0
                    self._trouble.ends()
        finally:
            self._leave()

    def report(self) -> None:
        """Report once, and end the connections that are above a cap. It yields during the statement."""
        report = self._counts.report(self._clients.counts(), self._board.workers)
        found = self._source.report(self._worker, report, pause=self.pause)
        for name, kept in self._counts.learn(report, found):
            self._clients.end_newest(*name, kept)

    def _failed(self, error: DatabaseError) -> None:
        self._failures += 1
        if self._failures == _STALE:
            self._counts.forget()
        if self._failures >= _STALE:
            self._trouble.begins(error)

    def _leave(self) -> None:
        if self._failures:
            return
        try:
            self._source.leave(self._worker)
        except DatabaseError:
            pass  # the report expires
