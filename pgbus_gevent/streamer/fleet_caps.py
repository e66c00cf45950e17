"""Makes the caps of owners and addresses hold over all workers: reports this worker's counts, and learns those of the others."""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Mapping
from time import monotonic
from typing import Protocol

import gevent
from gevent.event import Event

from ..core.board import Board
from ..core.client import Client
from ..core.fleet_counts import FleetCounts, Name, Report, Sum
from ..core.retries import Trouble
from ..errors import DatabaseError
from .clients import Clients
from .limits import network_of

logger = logging.getLogger("pgbus_gevent.caps")

INTERVAL = 5.0
"""The longest time between two reports, in seconds."""

PAUSE = 2.0
"""The longest age of the sum that a worker is content with, in seconds, if nothing has changed."""

LEAST = 0.1
"""The shortest time between two reports, in seconds, in a small fleet."""

LEAST_EACH = 0.02
"""The same for each worker of a large fleet, so that all together report at most fifty times in a second."""

_REST = 3  # the time between two reports is at least so many times as long as the last one took
_FIRST = 0.5  # seconds until the first report, with which a new worker learns what the others have
_STALE = 3  # reports that fail one after the other, after which the last sum is forgotten


class Source(Protocol):
    """Where it reports; :class:`pgbus_gevent.database.caps.CapQueries` is one."""

    def report(self, worker: str, report: Report, *, pause: float) -> Sum: ...
    def leave(self, worker: str) -> None: ...


class FleetCaps:
    """The greenlet that reports and learns; :meth:`run` is its loop.

    It reports at once when a count near its cap changes, and goes on until two sums have the change; otherwise every
    ``interval`` seconds.

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
        self._flag = counts.flag = Event()
        self._least = LEAST
        self._trouble = Trouble(
            logger,
            "caps hold on this worker alone, because the other workers cannot be asked: %s",
            over="caps hold over all workers",
        )

    def run(self) -> None:
        """Report, for ever. At the end, take the report back, so that the clients find room elsewhere."""
        self._worker = secrets.token_hex(8)  # made here, because the process may fork between __init__ and run
        _sleep(min(_FIRST, self.interval))
        try:
            while True:
                try:
                    self.report()
                except DatabaseError as error:
                    self._failed(error)
                    _sleep(self.interval)
                    continue
                self._failures = 0
                self._trouble.ends()
                least = min(self._least, self.interval)
                _sleep(least)
                if self._counts.settled:
                    self._flag.wait((self.interval - least) * random.uniform(0.75, 1.0))
        finally:
            self._leave()

    def report(self) -> None:
        """Report once, and end the connections that are above a cap. It yields during the statement."""
        workers = self._board.workers
        pause = self.pause if self._counts.settled else min(self.pause, self._least / 2)
        began = monotonic()
        report = self._counts.report(self._clients.counts(), workers)
        found = self._source.report(self._worker, report, pause=pause)
        self._least = max(LEAST, LEAST_EACH * workers, _REST * (monotonic() - began))
        kept = self._counts.learn(report, found)
        if kept:
            self.end_newest(kept)
            self._least = 0.0  # the others must not count them any more, or they might end some of theirs too

    def end_newest(self, kept: Mapping[Name, int]) -> None:
        """Close the newest connections of some owners and addresses, so that of each as many remain as ``kept`` says."""
        theirs: dict[Name, list[Client]] = {name: [] for name in kept}
        for client in self._board.registry.clients():
            for name in (("owner", client.owner or ""), ("address", network_of(client.address))):
                if name in theirs:
                    theirs[name].append(client)
        for name, clients in theirs.items():
            # Without those that were closed just now, for their owner.
            left = sorted((client for client in clients if not client.closed), key=lambda client: client.opened_at)
            for client in left[kept[name] :]:
                self._clients.end(client, "too-many-connections")

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


def _sleep(seconds: float) -> None:
    gevent.sleep(seconds * random.uniform(0.75, 1.0))
