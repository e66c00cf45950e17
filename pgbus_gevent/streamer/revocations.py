"""Ends the connections of those whose right to be connected was taken back."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Protocol

import gevent
from gevent.event import Event

from ..errors import DatabaseError

logger = logging.getLogger("pgbus_gevent.revocations")

_LEAST_PAUSE = 0.02  # seconds between two looks: many revocations at once are one look


class Source(Protocol):
    """What it needs of the database."""

    def revocations(self) -> list[tuple[int, str]]: ...


class Revocations:
    """The greenlet that looks for them; :meth:`run` is its loop, :meth:`ring` never yields.

    It looks when a control notification came, when the listener is back, and else after ``interval()`` seconds: notifications
    are hints here too. ``end_owner`` closes all connections of an owner and returns how many.
    """

    def __init__(self, source: Source, *, end_owner: Callable[[str], int], interval: Callable[[], float]) -> None:
        self._source = source
        self._end_owner = end_owner
        self._interval = interval
        self._rung = Event()
        # Those of before this worker's first look: whoever is connected came after them.
        self._seen: set[int] | None = None

    def ring(self) -> None:
        """There may be new ones."""
        self._rung.set()

    def run(self) -> None:
        """Look, for ever."""
        failing = False
        while True:
            try:
                self._look()
                failing = False
            except DatabaseError as error:
                if not failing:
                    logger.warning("cannot look for revoked connections, trying again: %s", error)
                failing = True
            gevent.sleep(_LEAST_PAUSE)
            self._rung.wait(self._interval() * random.uniform(0.75, 1.0))

    def _look(self) -> None:
        # Before the look: what rings during it is seen by the next one.
        self._rung.clear()
        found = self._source.revocations()
        for id, owner in found:
            if self._seen is not None and id not in self._seen:
                number = self._end_owner(owner)
                if number:
                    logger.info("closed %d connections of owner %r: revoked", number, owner)
        self._seen = {id for id, _ in found}
