"""Checks whether the standby may be read from: that it follows our primary, and how far it is behind."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import monotonic
from typing import Protocol

import gevent

from ..core.board import Board
from ..core.retries import Seldom
from ..core.rows import ChangeReads, MessageReads
from ..core.standby import Mark, State, trouble
from ..errors import DatabaseError

logger = logging.getLogger("pgbus_gevent.standby")

INTERVAL = 5.0
"""Seconds between two checks."""

_FIRST = 0.5
_FIRST_CHECKS = 20  # quick checks at the start, because clients that come back after a deployment come within seconds

PATIENCE = 0.25
"""Seconds to wait until the standby has replayed what the primary has, before the primary is asked instead."""

_LOOKS = (0.002, 0.005, 0.01, 0.02)  # pauses between looks at the standby's position; the last one repeats

_MARK_LASTS = 10.0  # seconds for which a mark of the primary serves to check sessions

_CONFLICT = "40001"  # the only statement that is cancelled; the session and the standby are sound


class Reads(MessageReads, ChangeReads, Protocol):
    """The reads that a standby can answer; :class:`pgbus_gevent.database.queries.Queries` has them."""


class Session(Protocol):
    """A session with the standby. What it shows is true only of this session, because the next one may be with another server."""

    @property
    def queries(self) -> Reads: ...
    def state(self) -> State: ...


class Standby(Protocol):
    """The standby, as its users need it; :class:`pgbus_gevent.database.standby.Standby` is one."""

    def mark(self) -> Mark: ...
    def session(self) -> AbstractContextManager[Session]: ...
    def discard_idle(self) -> None: ...


class StandbyWatch:
    """The greenlet that checks; :meth:`run` is its loop. The readers and the sweeper report what they find.

    It yields in statements and pauses. Meanwhile others may report a fault; the end of a check overrules that.
    """

    def __init__(self, standby: Standby, board: Board, *, clock: Callable[[], float] = monotonic) -> None:
        self._standby = standby
        self._board = board
        self._losses = 0
        self._clock = clock
        self._mark: Mark | None = None
        self._logged = ""
        self._seldom = Seldom(clock)
        self.fault = "it has not been checked yet"
        """Why nothing is read from the standby; empty if it is."""
        self.late = False
        """Whether the standby has lately not replayed within :data:`PATIENCE` what the primary had."""
        self.lag: float | None = None
        """By how many seconds the standby was behind at the last check; None if that is not known."""

    def run(self) -> None:
        """Check, for ever."""
        quick = _FIRST_CHECKS
        while True:
            self.check()
            quick = max(0, quick - 1) if self.fault else 0
            gevent.sleep((_FIRST if quick else INTERVAL) * random.uniform(0.75, 1.0))

    def check(self) -> None:
        """Check once."""
        mark = self.renew()
        if mark is None:
            return
        try:
            with self._standby.session() as session:
                state = self.wait_for(session, mark)
                self.judge(state, mark)
            self.lag = state.lag(mark, self._clock())
        except DatabaseError as error:
            self.lag = None
            self._set(trouble(error))
        if self.fault:
            # Of several servers, the next session may be with another one. A session outlives the promotion of its server.
            self._standby.discard_idle()

    def renew(self) -> Mark | None:
        """Have the primary set a mark, and return it, or None if it does not answer. It yields."""
        self._losses = self._board.losses
        try:
            self._mark = self._standby.mark()
        except DatabaseError as error:
            self._mark = self.lag = None
            self._set(f"the primary does not say what the standby should have: {error}")
        return self._mark

    def recent(self) -> Mark | None:
        """Return a recent mark, or None if the primary does not answer. It yields if there is none.

        A mark from before a loss may be that of another primary, whose standby may still have what was lost.
        """
        mark = self._mark
        if mark is None or self._losses != self._board.losses or self._clock() - mark.taken > _MARK_LASTS:
            return self.renew()
        return mark

    def wait_for(self, session: Session, mark: Mark) -> State:
        """Return what the standby shows once it has reached the mark, or after :data:`PATIENCE`. It yields.

        Raises :class:`DatabaseError`.
        """
        end = self._clock() + PATIENCE
        for n in range(1000):
            state = session.state()
            if state.reaches(mark) or not state.recovering or self._clock() >= end:
                break
            gevent.sleep(_LOOKS[min(n, len(_LOOKS) - 1)])
        self.late = not state.reaches(mark)
        return state

    def judge(self, state: State, mark: Mark) -> None:
        """Set :attr:`fault` by what a session of the standby shows."""
        self._set(state.fault(mark, self._clock()))

    def failed(self, error: DatabaseError) -> None:
        """Note that a read on the standby has failed. The primary is asked for it."""
        if error.sqlstate != _CONFLICT:
            self._set(trouble(error))
        elif self._seldom.due(_CONFLICT) is not None:
            logger.warning("%s. The primary was asked instead", trouble(error))

    def _set(self, fault: str) -> None:
        self.fault = fault
        kind = re.sub(r"\d+", "", fault)
        if kind != self._logged:
            # Two standbys behind one address may be sound and faulty in turn.
            if self._seldom.due(kind) is None:
                pass
            elif fault:
                logger.warning("reading from the primary instead of the standby: %s", fault)
            else:
                logger.info("reading from the standby again")
        self._logged = kind
