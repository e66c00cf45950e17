"""Asks whether the database answers and its schema fits. ``readyz``, and the admission of new clients, go by it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from time import monotonic
from typing import Protocol

import gevent

from ..core.board import Board
from ..core.relay_signs import RelaySigns
from ..core.retries import Trouble
from ..errors import (
    DatabaseError,
    DatabaseUnavailable,
    OriginRefused,
    OriginUnready,
    PoolTimeout,
    SchemaMismatch,
    SchemaTooNew,
    SchemaTooOld,
)

logger = logging.getLogger("pgbus_gevent.pulse")

INTERVAL = 2.0
"""Seconds without an answer after which the database is asked. Mostly other statements of the worker are answered before."""

INTERVAL_MOST = 3.0
"""The same in a large fleet."""

SCHEMA_INTERVAL = 10.0
"""The longest time between two questions about the schema, in seconds."""

SCHEMA_INTERVAL_MOST = 30.0
"""The same in a large fleet."""

UNREADY_AFTER = 4.0
"""Seconds without an answer after which this worker is not ready: longer than a healthy database can leave it without one. In a
large fleet, it is longer by as much as the interval is."""

RELAYED_INTERVAL = 300.0
"""The same for any fleet while the beacons of a relay come, which also show that the database answers."""

_RELAY_LASTS = 1.5  # seconds for which RelaySigns.until lies after a beacon
_LEAST = 0.05  # seconds
_PER_WORKER = 0.3  # seconds between two questions about the schema, for each worker of the fleet
_SILENCE_PER_WORKER = 0.03  # seconds without an answer, for each worker of the fleet


def longest_silence(workers: int) -> float:
    """Return after how many seconds without an answer a worker asks the database, in a fleet of so many workers."""
    return max(INTERVAL, min(_SILENCE_PER_WORKER * workers, INTERVAL_MOST))


class Source(Protocol):
    """The database, as the pulse needs it. ``answered`` is when it last answered, in monotonic seconds.

    :class:`pgbus_gevent.database.Database` is one.
    """

    @property
    def answered(self) -> float: ...
    def check_life(self) -> None: ...


class Pulse:
    """The greenlet that asks; :meth:`run` is its loop. The other methods never yield.

    ``patience`` is how many seconds the database may be away before new clients are refused. ``what`` is the word for the source in
    messages; an edge asks its origin. The ``board`` knows the size of the fleet, and of a relay, whose beacons are signs of
    life, too.
    """

    def __init__(
        self,
        source: Source,
        *,
        patience: float,
        what: str = "the database",
        board: Board | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._source = source
        self._patience = patience
        self._clock = clock
        self._began: float | None = None
        self._reached = False
        self._checked: float | None = None
        self._share = 1.0
        self._board = board
        self._relay = RelaySigns() if board is None else board.relay
        self._what = what
        self._unready = Trouble(logger, f"{what} cannot serve: %s", over=f"{what} can serve again")
        self._reason = ""  # why the source cannot serve, if it says so
        self._silence = Trouble(logger, f"{what} does not answer: %s", over=f"{what} answers again")
        self.fault = ""
        """What is wrong with the schema, if the database answers; else empty."""

    def begin(self, reached: bool) -> None:
        """Note that the worker starts. ``reached`` says whether the database has answered already."""
        self._began, self._reached = self._clock(), reached

    def run(self) -> None:
        """Ask, for ever."""
        while True:
            now = self._clock()
            if self._is_due(now):
                self._ask()
                self._checked, self._share = now, random.uniform(0.75, 1.0)
            gevent.sleep(self._rest)

    def _is_due(self, now: float) -> bool:
        unknown = not self._reached or self._lasts or bool(self.fault)
        # The interval of now and not that of the last question, which a new worker asks before it hears the relay.
        interval = RELAYED_INTERVAL if self._relay.until > now else self._schema_interval
        is_old = self._checked is None or now >= self._checked + interval * self._share
        return unknown or is_old or now - self._signed >= self._interval

    @property
    def _workers(self) -> int:
        return 1 if self._board is None else self._board.workers

    @property
    def _interval(self) -> float:
        return longest_silence(self._workers)

    @property
    def _schema_interval(self) -> float:
        return max(SCHEMA_INTERVAL, min(_PER_WORKER * self._workers, SCHEMA_INTERVAL_MOST))

    @property
    def _rest(self) -> float:
        """The seconds until the last answer has grown old, so that a silence is noticed in time."""
        if not self._reached or self._lasts or self.fault:
            return INTERVAL
        return max(_LEAST, min(self._interval, self._signed + self._interval - self._clock()))

    @property
    def _signed(self) -> float:
        """When the database last gave a sign of life: an answer, or a beacon, unless this worker itself gets no answer."""
        answered = self._source.answered
        return answered if self._lasts else max(answered, self._relay.until - _RELAY_LASTS)

    @property
    def _lasts(self) -> bool:
        """Whether the last question got no answer, or only the answer that the source cannot serve."""
        return self._silence.lasts or self._unready.lasts

    def _ask(self) -> None:
        try:
            self._source.check_life()
        except OriginUnready as error:
            self._unready.begins(error.reason)
            self._reason = error.reason
        except (DatabaseUnavailable, PoolTimeout) as error:
            self._silence.begins(error)
            self._reason = ""
        except DatabaseError as error:
            # readyz shows the fault to everybody, so PostgreSQL's own message goes only to the log.
            known = isinstance(error, (OriginRefused, SchemaMismatch, SchemaTooNew, SchemaTooOld))
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
        self._unready.ends()
        self._reason = ""

    @property
    def silence(self) -> float:
        """Seconds since the last sign of life of the database."""
        if self._began is None:
            return 0.0
        return self._clock() - max(self._began, self._signed)

    @property
    def away(self) -> bool:
        """Whether new clients are refused, because the database could not say where they start."""
        return bool(self.fault) or self.silence > self._patience

    @property
    def _unready_because(self) -> str:
        return f"{self._what} cannot serve: {self._reason}" if self._reason else ""

    @property
    def trouble(self) -> str:
        """Why this worker is not ready; empty if it is."""
        silence = self.silence
        if self._began is not None and not self._reached:
            return self._unready_because or f"{self._what} has not answered yet"
        if silence > min(UNREADY_AFTER + self._interval - INTERVAL, self._patience):
            return self._unready_because or f"{self._what} has not answered for {silence:.0f} s"
        return self.fault
