"""Ends the connections of clients whose right to be connected was taken back, by the application or by its authorize hook."""

from __future__ import annotations

import logging
import random
from typing import Protocol

import gevent

from ..core.board import Board
from ..core.retries import Trouble
from ..errors import DatabaseError
from .clients import Clients

logger = logging.getLogger("pgbus_gevent.revocations")

_LEAST_PAUSE = 0.02  # seconds between two looks: many revocations at once are one look


class Source(Protocol):
    """What it needs of the database."""

    def revocations(self) -> list[tuple[int, str]]: ...


class Revocations:
    """The greenlet that looks for revocations in the database; :meth:`run` is its loop.

    It looks when a control notification came, when the listener is back, and otherwise after ``interval`` seconds: notifications
    are hints here too.
    """

    def __init__(self, source: Source, board: Board, clients: Clients, *, interval: float) -> None:
        self._source = source
        self._board = board
        self._clients = clients
        self._interval = interval
        # Those of before this worker's first look: whoever is connected came after them.
        self._seen: set[int] | None = None

    def run(self) -> None:
        """Look, for ever."""
        trouble = Trouble(logger, "cannot look for revoked connections, trying again: %s")
        while True:
            try:
                self._look()
                trouble.ends()
            except DatabaseError as error:
                trouble.begins(error)
            gevent.sleep(_LEAST_PAUSE)
            self._board.control.wait(self._board.until_next(self._interval) * random.uniform(0.75, 1.0))

    def _look(self) -> None:
        # Before the look: what rings during it is seen by the next one.
        self._board.control.clear()
        found = self._source.revocations()
        for id, owner in found:
            if self._seen is not None and id not in self._seen:
                number = self._clients.end_owner(owner)
                if number:
                    logger.info("closed %d connections of owner %r: revoked", number, owner)
        self._seen = {id for id, _ in found}


_PAUSE = 1.0  # seconds: how soon a first connection is noticed


class Rechecks:
    """The greenlet that asks the authorize hook again about the clients that are connected; :meth:`run` is its loop.

    Each connection is asked about every ``interval`` seconds, one after the other, so that a slow hook delays the next question
    and nobody's messages. A hook that raises changes nothing: an outage of what it asks must not throw everybody out. It is
    asked again in time.
    """

    def __init__(self, board: Board, clients: Clients, *, interval: float) -> None:
        self._board = board
        self._clients = clients
        self._interval = interval

    def run(self) -> None:
        """Ask, for ever."""
        while True:
            clients = [client for client in self._board.registry.clients() if client.recheck is not None]
            failed = False
            for client in clients:
                gevent.sleep(self._interval / len(clients))
                if client.closed or client.recheck is None:
                    continue
                try:
                    answer = client.recheck()
                except (Exception, gevent.Timeout):
                    if not failed:
                        logger.exception("the authorize hook raised when it was asked again; asking later")
                    failed = True
                    continue
                if client.closed:
                    continue  # while the hook was asked
                if answer is None:
                    self._clients.end(client, "revoked")
                else:
                    self._clients.adopt(client, answer)
            if not clients:
                gevent.sleep(min(_PAUSE, self._interval))
