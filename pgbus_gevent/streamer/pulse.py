"""Knows whether the database answers, and whether the schema can be worked on: readyz and newcomers are judged by it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Protocol

import gevent

from ..core.retries import Trouble
from ..errors import DatabaseError, DatabaseUnavailable, PoolTimeout, SchemaMismatch, SchemaTooNew, SchemaTooOld

logger = logging.getLogger("pgbus_gevent.pulse")

INTERVAL = 2.0
"""Seconds between two questions."""

UNREADY_AFTER = 4.0
"""Seconds of silence after which this worker is not ready: more than a question and its deadline take where all is well."""


class Source(Protocol):
    """What it needs of the database; :class:`pgbus_gevent.database.Database` is one."""

    @property
    def answered(self) -> float: ...
    def check_life(self) -> None: ...


class Pulse:
    """The greenlet that asks; :meth:`run` is its loop, and all else never yields.

    ``patience`` is for how many seconds the database may be away before newcomers are refused.
    """

    def __init__(self, source: Source, *, patience: float, clock: Callable[[], float] = monotonic) -> None:
        self._source = source
        self._patience = patience
        self._clock = clock
        self._began: float | None = None
        self._reached = False
        self._silence = Trouble(logger, "the database does not answer: %s", over="the database answers again")
        self.fault = ""
        """What is wrong with the schema, where the database answers."""

    def begin(self, reached: bool) -> None:
        """The worker starts; ``reached`` tells whether the database has answered by now."""
        self._began, self._reached = self._clock(), reached

    def run(self) -> None:
        """Ask, for ever."""
        while True:
            self._ask()
            gevent.sleep(INTERVAL)

    def _ask(self) -> None:
        try:
            self._source.check_life()
        except (DatabaseUnavailable, PoolTimeout) as error:
            self._silence.begins(error)
        except DatabaseError as error:
            # Anybody may read it, so what PostgreSQL says is for the log alone.
            known = isinstance(error, (SchemaMismatch, SchemaTooNew, SchemaTooOld))
            fault = str(error) if known else "the schema cannot be used; the log says why"
            if self.fault != fault:
                logger.error("the streams cannot be served: %s", error)
            self.fault = fault
            self._answered()
        else:
            self.fault = ""
            self._answered()

    def _answered(self) -> None:
        self._reached = True
        self._silence.ends()

    @property
    def silence(self) -> float:
        """Seconds since the database last answered anything that was asked of it."""
        if self._began is None:
            return 0.0
        return self._clock() - max(self._began, self._source.answered)

    @property
    def away(self) -> bool:
        """Whether newcomers are to be refused: they could not be told where they start."""
        return bool(self.fault) or self.silence > self._patience

    @property
    def trouble(self) -> str:
        """Why this worker is not ready; empty where it is."""
        if self._began is not None and not self._reached:
            return "the database has not answered yet"
        silence = self.silence
        if silence > min(UNREADY_AFTER, self._patience):
            return f"the database has not answered for {silence:.0f} s"
        return self.fault
