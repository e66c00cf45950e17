"""Tells the database every few seconds that this worker lives, and what it counts: for the consoles and metrics of others."""

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
from ..errors import DatabaseError, DatabaseUnavailable, PoolTimeout
from .clients import Clients

logger = logging.getLogger("pgbus_gevent.roll_call")

INTERVAL = 5.0
"""Seconds between two statements."""

_FIRST = 0.5
_GIVEN_UP = 300.0  # seconds until the next try of who may not write there, or has an older schema


class Source(Protocol):
    """What it needs of the database."""

    def beat(
        self, id: str, host: str, pid: int, started_at: float, facts: Mapping[str, Any]
    ) -> tuple[float, float]: ...
    def leave(self, id: str) -> None: ...


class Teller(Protocol):
    """Who has more to tell of a worker than its numbers."""

    def facts(self) -> Mapping[str, Any]:
        """What to tell, as JSON has it."""

    def listening(self) -> AbstractContextManager[object]:
        """Is entered when the worker starts to tell, and left at its end."""


class RollCall:
    """The greenlet that tells; :meth:`run` is its loop.

    ``port`` is the one that the worker serves at: workers of one program on one host share it, and so are one service.
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
        self._tellers: list[Teller] = []
        self._on_the_roll = False
        self.id = ""
        self.started_at = wall_clock()
        self.clock_offset: float | None = None
        """Seconds that the database's clock is ahead of ours, as of the quickest of the answers; None before the first."""
        self._quickest = float("inf")

    def join(self, teller: Teller) -> None:
        """Tell what ``teller`` has to tell, too."""
        self._tellers.append(teller)

    @property
    def service(self) -> str:
        """The same for the workers of one program on one host."""
        return f"{socket.gethostname()} {os.getppid()} {self._port}"

    def run(self) -> None:
        """Tell, for ever; take the worker off the roll at the end."""
        self.id = secrets.token_hex(8)  # here, as a fork may lie before
        self.started_at = self._wall_clock()
        pause = _FIRST
        listening = 0
        with ExitStack() as stack:
            stack.callback(self._leave)
            while True:
                for teller in self._tellers[listening:]:
                    stack.enter_context(teller.listening())
                    listening += 1
                gevent.sleep(pause * random.uniform(0.75, 1.0))
                try:
                    pause = self._tell()
                except Exception:
                    # What watches must not bring down what is watched.
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
        }
        for teller in self._tellers:
            facts.update(teller.facts())
        return facts

    def _tell(self) -> float:
        """After how many seconds to tell again."""
        began = self._wall_clock()
        try:
            there, pace = self._source.beat(self.id, socket.gethostname(), os.getpid(), self.started_at, self._facts())
        except (DatabaseUnavailable, PoolTimeout):
            # Others speak of that; a statement at the end would only make the end late.
            self._on_the_roll = False
            return INTERVAL
        except DatabaseError as error:
            self._on_the_roll = False
            logger.info("cannot write this worker's row to pgbus.workers, so only its own console shows it: %s", error)
            return _GIVEN_UP
        self._on_the_roll = True
        self._board.pace = pace
        took = self._wall_clock() - began
        if took >= 0:
            self._quickest *= 1.05  # clocks drift, so that no measurement is the best for ever
            if took <= self._quickest:
                self._quickest = took
                self.clock_offset = there - (began + took / 2)
        return INTERVAL

    def _leave(self) -> None:
        if not self._on_the_roll:
            return
        try:
            self._source.leave(self.id)
        except (DatabaseError, PoolTimeout):
            pass  # it expires
