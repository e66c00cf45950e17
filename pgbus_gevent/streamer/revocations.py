"""Ends the connections of clients whose right was taken back: by ``pgbus.disconnect``, or by the authorize hook."""

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

_LEAST_PAUSE = 0.02  # seconds between two questions, so that many revocations at once are found by one


class Source(Protocol):
    """The query that it needs: the recent revocations, each with an id and an owner."""

    def revocations(self) -> list[tuple[int, str]]: ...


class Revocations:
    """The greenlet that reads revocations from the database; :meth:`run` is its loop.

    It reads after a control notification, when the listener has a new session, and otherwise after ``interval`` seconds, because
    a notification may be lost.
    """

    def __init__(self, source: Source, board: Board, clients: Clients, *, interval: float) -> None:
        self._source = source
        self._board = board
        self._clients = clients
        self._interval = interval
        # None before the first read. The revocations of that read are older than every connection of this worker.
        self._seen: set[int] | None = None

    def run(self) -> None:
        """Read revocations and end connections, for ever."""
        trouble = Trouble(logger, "cannot look for revoked connections, trying again: %s")
        while True:
            try:
                self._check()
                trouble.ends()
            except DatabaseError as error:
                trouble.begins(error)
            gevent.sleep(_LEAST_PAUSE)
            self._board.control.wait(self._board.until_next(self._interval) * random.uniform(0.75, 1.0))

    def _check(self) -> None:
        # Cleared before the statement. A control notification that comes while it runs sets the flag, for the next check.
        self._board.control.clear()
        found = self._source.revocations()
        for id, owner in found:
            if self._seen is not None and id not in self._seen:
                number = self._clients.end_owner(owner)
                if number:
                    logger.info("closed %d connections of owner %r: revoked", number, owner)
        self._seen = {id for id, _ in found}


_PAUSE = 1.0  # seconds until a worker without connections looks for some again


class Rechecks:
    """The greenlet that asks the authorize hook again about connected clients; :meth:`run` is its loop.

    Each connection is checked every ``interval`` seconds, one after the other. A slow hook thus delays the next check, but no
    messages. If the hook raises, nothing changes until the next check, because an outage of a service that the hook asks must
    not end all connections.
    """

    def __init__(self, board: Board, clients: Clients, *, interval: float) -> None:
        self._board = board
        self._clients = clients
        self._interval = interval

    def run(self) -> None:
        """Ask the hook, for ever."""
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
                    continue  # the client left while this greenlet waited for the hook
                if answer is None:
                    self._clients.end(client, "revoked")
                else:
                    self._clients.adopt(client, answer)
            if not clients:
                gevent.sleep(min(_PAUSE, self._interval))
