"""Writes to the database every few seconds that this worker lives, and its counts, for the consoles and metrics of all workers."""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from time import time
from typing import Any, Protocol

import gevent

from ..core.board import Board
from ..errors import DatabaseError, DatabaseUnavailable, OriginRefused, PoolTimeout
from .clients import Clients

logger = logging.getLogger("pgbus_gevent.roll_call")

INTERVAL = 5.0
"""Seconds between two statements."""

INTERVAL_MOST = 10.0
"""The longest time between two statements in a large fleet, in seconds. A worker expires after 20 s of silence."""

_PER_WORKER = 0.1  # seconds between two statements of a worker, for each worker of the fleet

_FIRST = 0.5
_GIVEN_UP = 300.0  # seconds until the next try if the role has no right to write, or the schema is older


class Source(Protocol):
    """The statements that it needs; :class:`pgbus_gevent.database.fleet.Fleet` has them.

    ``beat`` returns the database's clock, in Unix seconds, the pace of the doorbell, in seconds, and the number of workers.
    """

    def beat(
        self, id: str, host: str, pid: int, started_at: float, facts: Mapping[str, Any]
    ) -> tuple[float, float, int]: ...
    def leave(self, id: str) -> None: ...


class FactSource(Protocol):
    """A part of the application that adds facts to a worker's row."""

    def facts(self) -> Mapping[str, Any]:
        """Return the facts, as values that JSON can hold."""

    def listening(self) -> AbstractContextManager[object]:
        """Return a context manager that is entered before the first facts are asked for, and left at the worker's end."""


class RollCall:
    """The greenlet that keeps the worker's row; :meth:`run` is its loop.

    ``port`` is the port on which the worker serves. Workers of one program on one machine share it, and so count as one service.
    ``wall_clock`` returns Unix seconds.
    """

    def __init__(
        self,
        source: Source,
        board: Board,
        clients: Clients,
        *,
        port: int = 0,
        wall_clock: Callable[[], float] = time,
    ) -> None:
        self._source = source
        self._board = board
        self._clients = clients
        self._port = port
        self._wall_clock = wall_clock
        self._fact_sources: list[FactSource] = []
        self._on_the_roll = False
        self.id = ""
        self.started_at = wall_clock()
        self.clock_offset: float | None = None
        """By how many seconds the database's clock is ahead of ours, measured at the quickest answer; None before the first."""
        self._quickest = float("inf")

    def join(self, source: FactSource) -> None:
        """Add the facts of ``source`` to the worker's row from now on."""
        self._fact_sources.append(source)

    @property
    def service(self) -> str:
        """A text that is the same for all workers of one program on one machine."""
        return f"{socket.gethostname()} {os.getppid()} {self._port}"

    def run(self) -> None:
        """Write the row, for ever. At the end, take the worker off the roll."""
        self.id = secrets.token_hex(8)  # made here, because the process may fork between __init__ and run
        self.started_at = self._wall_clock()
        pause = _FIRST
        listening = 0
        with ExitStack() as stack:
            stack.callback(self._leave)
            while True:
                for source in self._fact_sources[listening:]:
                    stack.enter_context(source.listening())
                    listening += 1
                gevent.sleep(pause * random.uniform(0.75, 1.0))
                try:
                    pause = self._report()
                except Exception:
                    # An error in the observation of the worker must not stop the worker.
                    logger.exception("cannot collect this worker's counts")
                    pause = _GIVEN_UP

    def _facts(self) -> dict[str, Any]:
        total = self._board.counter.total
        facts = {
            "connections": total.active_connections,
            "streams": len(self._board.counter.streams),
            "messages": total.broadcasts,
            "unready": self._clients.unready,
            "service": self.service,
            "relayed": self._board.relay.heard,
            "number": str(
                self._board.election_number
            ),  # `doctor` finds the steward by it; as text, because it is large
        }
        for source in self._fact_sources:
            facts.update(source.facts())
        return facts

    def _report(self) -> float:
        """Write the row once. Return after how many seconds to write it again."""
        began = self._wall_clock()
        try:
            there, pace, workers = self._source.beat(
                self.id, socket.gethostname(), os.getpid(), self.started_at, self._facts()
            )
        except (DatabaseUnavailable, PoolTimeout, OriginRefused):
            # The pulse logs the outage. Not on the roll: a statement at the worker's end would only delay the end.
            self._on_the_roll = False
            return INTERVAL
        except DatabaseError as error:
            self._on_the_roll = False
            logger.info("cannot write this worker's row to pgbus.workers, so only its own console shows it: %s", error)
            return _GIVEN_UP
        self._on_the_roll = True
        self._board.pace = pace
        self._board.workers = workers
        took = self._wall_clock() - began
        if took >= 0:
            self._quickest *= 1.05  # clocks drift, so an old measurement must give way in time
            if took <= self._quickest:
                self._quickest = took
                self.clock_offset = there - (began + took / 2)
        return max(INTERVAL, min(_PER_WORKER * workers, INTERVAL_MOST))

    def _leave(self) -> None:
        if not self._on_the_roll:
            return
        try:
            self._source.leave(self.id)
        except (DatabaseError, PoolTimeout):
            pass  # the row expires
