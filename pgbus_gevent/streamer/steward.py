"""The steward: one worker of the database, elected, does what is to be done once for all workers."""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple, Protocol

import gevent

from ..core.board import Board
from ..core.retries import Trouble
from ..core.rows import DutyAnswer
from ..errors import DatabaseError, DatabaseUnavailable, PoolTimeout

logger = logging.getLogger("pgbus_gevent.steward")

LEASE = 1.2
"""Seconds without a sign of the steward after which another worker takes its place."""

DEAF_LEASE = 5.0
"""The same for a worker that does not hear notifications. It leads only if no worker that hears does."""

RENEW = 0.4
"""The longest time between two signs of the steward, in seconds."""

ALONE = 10.0
"""Seconds without a sign of any steward after which each worker does the duties itself."""

ASK = (0.7, 2.0)
"""The shortest and the longest time between two questions of another worker, in seconds. The larger the fleet, the longer."""

_ASK_PER_WORKER = 0.02  # seconds between two questions of a worker, for each worker of the fleet


class Duty(NamedTuple):
    """Something to be done once for all workers. ``interval`` is the longest time in between, in seconds.

    ``run`` does it once. It returns in how many seconds it should be done again if that is sooner, else None.
    """

    name: str
    run: Callable[[], float | None]
    interval: float


class Source(Protocol):
    """The statements that it needs; :class:`pgbus_gevent.database.stewardship.Stewardship` has them."""

    def duty(self, me: int, *, may_lead: bool, lease: float, hears: bool, rings: bool) -> DutyAnswer: ...
    def leave_duty(self, me: int) -> None: ...


class Steward:
    """The greenlet that takes part in the election; :meth:`run` is its loop.

    Each worker has one. Nothing breaks if two workers take themselves for the steward for a moment, or none does: what a steward
    does for messages may be done twice, and each worker looks after itself while there is no steward.

    ``may_lead`` says whether this worker may be elected.
    """

    def __init__(
        self, source: Source, board: Board, *, may_lead: bool = True, clock: Callable[[], float] = monotonic
    ) -> None:
        self._source = source
        self._board = board
        self._may_lead = may_lead
        self._clock = clock
        self._number = 0
        self._until = 0.0
        self._began = clock()
        self._answered = False  # whether the database has answered the last question
        self.seen: float | None = None
        """When the steward last gave a sign, in monotonic seconds; None before the first."""
        self.elections = 0
        self.duties: list[Duty] = []

    @property
    def leads(self) -> bool:
        """Whether this worker is the steward now. False as soon as another one may have taken its place. Never yields."""
        return self._clock() < self._until

    @property
    def on_duty(self) -> bool:
        """Whether this worker does the duties: it is the steward, or the database knows of none. Never yields."""
        return self.leads or (self._answered and self._clock() - self._seen_or_began >= ALONE)

    def add_duty(self, name: str, run: Callable[[], float | None], interval: float) -> None:
        """Have ``run`` called every ``interval`` seconds, or a little earlier, while this worker is the steward.

        It is also called while there is no steward, as when the role may not take part in the election.

        Each duty has a greenlet of its own, so it may take long. ``run`` may raise :class:`DatabaseError`, which is logged. It
        must be harmless if two workers do it at the same time. To be called before the tasks are made.
        """
        self.duties.append(Duty(name, run, interval))

    def do_duty(self, duty: Duty) -> None:
        """Do one duty, for ever, while this worker is the steward."""
        trouble = Trouble(logger, f"cannot do the steward's duty {duty.name!r}, trying again: %s")
        while True:
            # A short wait first, so that workers that are started again and again do not each begin with it.
            gevent.sleep(duty.interval * random.uniform(0.25, 0.5))
            while self.on_duty:
                pause = duty.interval * random.uniform(0.75, 1.0)
                try:
                    asked = duty.run()
                    pause = pause if asked is None else min(pause, asked)
                    trouble.ends()
                except DatabaseError as error:
                    trouble.begins(error)
                gevent.sleep(pause)

    def run(self) -> None:
        """Ask who is the steward, and lead if it is this worker, for ever. At the end, give the lease back."""
        self._number = secrets.randbits(62) + 1  # made here, because the process may fork between __init__ and run
        self._began = self._clock()
        trouble = Trouble(logger, "cannot ask who is the steward, trying again: %s")
        try:
            while True:
                try:
                    self._ask()
                    self._answered = True
                    trouble.ends()
                except DatabaseError as error:
                    # If the database is away, the duties could not be done either, and each would log it.
                    self._answered = not isinstance(error, (DatabaseUnavailable, PoolTimeout))
                    trouble.begins(error)
                gevent.sleep(RENEW if self.leads else self._ask_interval * random.uniform(0.75, 1.0))
        finally:
            self._leave()

    @property
    def _seen_or_began(self) -> float:
        return self._began if self.seen is None else self.seen

    @property
    def _ask_interval(self) -> float:
        shortest, longest = ASK
        return min(longest, max(shortest, _ASK_PER_WORKER * self._board.workers))

    def _ask(self) -> None:
        asked, led = self._clock(), self.leads
        hears = self._board.listening.is_set()
        answer = self._source.duty(
            self._number, may_lead=self._may_lead, lease=LEASE if hears else DEAF_LEASE, hears=hears, rings=False
        )
        # From the question on, not from the answer: it may have been under way for long.
        self._until = asked + LEASE if answer.leads else 0.0
        if answer.age is not None:
            self.seen = asked - answer.age
        if answer.leads and not led:
            self.elections += 1
            logger.info("this worker is the steward now")
        elif led and not answer.leads:
            logger.info("another worker is the steward now")

    def _leave(self) -> None:
        if not self.leads:
            return
        self._until = 0.0
        try:
            self._source.leave_duty(self._number)
        except DatabaseError:
            pass  # the lease ends by itself
