"""The steward: one worker of the database, elected, does what is to be done once for all workers.

Above all, it sweeps for messages that did not ring, and rings for them. The other workers then rely on rings, and sweep seldom.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Protocol

import gevent

from ..core.board import Board
from ..core.id_tail import Hole
from ..core.outlet import Outlet
from ..core.retries import Trouble
from ..core.rows import DutyAnswer, DutyQuestion, IdTailRows
from ..errors import NO_RIGHT, DatabaseError, DatabaseUnavailable, PoolTimeout
from . import steward_sweeps
from .pulse import longest_silence
from .steward_duties import Duty
from .steward_ear import Ear
from .turns import wait_until_set

logger = logging.getLogger("pgbus_gevent.steward")

LEASE = 1.2
"""Seconds without a sign of the steward after which another worker takes its place."""

DEAF_LEASE = 5.0
"""The same for a worker that does not hear notifications. It leads only if no worker that hears does."""

DEAF_AFTER = 20.0
"""Seconds after which a steward that cannot hear gives way to a worker that can."""

DEAF_FOR = 600.0
"""Seconds for which such a worker then leaves the first turn in an election to the others, or does not lead at all."""

BACK_AFTER = 60.0
"""The same for a worker whose listener hears PostgreSQL then, because nobody relays. Not at once: the ear may not get a session."""

RENEW_ALONE = 0.8
"""Seconds between two signs of a steward that does not sweep, because it has no company, and its worker looks after itself."""

ALONE = 10.0
"""Seconds without a sign of any steward after which each worker does the duties itself."""

ASK = (0.7, 4.0)
"""The shortest and the longest time between two questions of another worker, in seconds. The larger the fleet, the longer."""

ASK_EARLIER = 0.2
"""Seconds before the pulse would ask whether the database answers. If nothing was answered until then, this question is early."""

FIRST = 0.5
"""Seconds a new worker waits for its listener before an election. Otherwise one that hears would soon take its place."""

RELY = 3.0
"""For how many seconds, beyond the time between two questions, a worker relies on a steward that has given a sign.

That is longer than a takeover takes, so that it does not make all workers sweep for themselves.
"""

SIGN_BEFORE_RING = 0.6
"""How old the steward's last sign may be before it rings, in seconds. With an older one, the ring could outlast the lease."""

MISSED_SPREAD = 0.5
"""Seconds after the end of a lease over which workers that miss the relay's beacons ask."""

MISSED_ASKERS = 20
"""About how many of them do so, however large the fleet."""

_ASK_PER_WORKER = 0.04  # seconds between two questions of a worker, for each worker of the fleet


class Source(steward_sweeps.Source, Protocol):
    """The statements that it needs; :class:`pgbus_gevent.database.stewardship.Stewardship` has them.

    ``answered`` is when the database last answered any statement of this worker, in monotonic seconds.
    """

    @property
    def answered(self) -> float: ...
    def duty(self, question: DutyQuestion) -> DutyAnswer: ...
    def leave_duty(self, me: int) -> None: ...
    def ids(
        self, question: DutyQuestion, above: int | None, holes: Sequence[tuple[int, int]], *, bind: bool, limit: int
    ) -> IdTailRows: ...


class Steward:
    """The greenlet that takes part in the election, and sweeps if it wins; :meth:`run` is its loop.

    Each worker has one. Nothing breaks if two workers take themselves for the steward for a moment, or none does: workers ignore
    the ring for a message that they know, and sweep for themselves if there is no sign of a steward.

    A steward sweeps if it has company, or outlets. A new one first has everybody look, because messages of the last seconds may
    have been missed; only then it tells that it rings. Every tail is also a sign of life.

    ``may_lead`` says whether this worker may be elected. It yields in statements and pauses. Meanwhile the ear hears
    notifications, so a message is looked up there only after the statement that found it.
    """

    def __init__(
        self,
        source: Source,
        board: Board,
        ear: Ear,
        *,
        may_lead: bool = True,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._source = source
        self._board = board
        self._ear = ear
        self._may_lead = may_lead
        self._clock = clock
        self._began = clock()
        self._answered = False  # whether the database has answered the last question
        self._elected = False
        self._until = 0.0
        self.company = False
        """Whether there are other workers that hear."""
        self.sweeps = steward_sweeps.StewardSweeps(source, board, ear)
        self._deaf_since: float | None = None
        self._last_turn_until = 0.0
        self._yields_until = 0.0  # until when it does not lead at all
        self._back_from: float | None = None  # from when it may lead again if it turns out that it hears
        self._signed = 0.0  # when its last sign was sent, in monotonic seconds
        self.seen: float | None = None
        """When the steward last gave a sign, in monotonic seconds; None before the first."""
        self.elections = 0
        self._asked_rank = 0
        self.only_relays = False
        """Whether this worker does nothing else than relay, so that it takes the place of one that has clients."""
        self.duties: list[Duty] = []
        self.outlets: list[Outlet] = ear.outlets

    @property
    def state(self) -> str:
        """For operators: ``this worker``, ``another worker``, or ``none`` if there has been no sign of one for a while."""
        if self.leads:
            return "this worker"
        # With the time between two questions, as for reliance: a worker of a large fleet hears of a sign only then.
        return "none" if self.silence is None or self.silence > self._ask_interval + RELY else "another worker"

    @property
    def silence(self) -> float | None:
        """Seconds since the last sign of the steward, or while its relay counts as alive, 0; None before the first."""
        return None if self.seen is None else max(0.0, self._clock() - max(self.seen, self._board.relay.until))

    @property
    def hears(self) -> bool:
        """Whether this worker hears the notifications of all streams, as the steward."""
        return self._ear.hears

    @property
    def leads(self) -> bool:
        """Whether this worker is the steward now. False as soon as another one may have taken its place. Never yields."""
        return self._clock() < self._until

    # duties

    @property
    def on_duty(self) -> bool:
        """Whether this worker does the duties: it is the steward, or the database knows of none. Never yields."""
        return self.leads or (self._answered and self._clock() - self._seen_or_began >= ALONE)

    @property
    def _seen_or_began(self) -> float:
        return max(self._began if self.seen is None else self.seen, self._board.relay.until)

    def add_duty(self, name: str, run: Callable[[], float | None], interval: float) -> None:
        """Have ``run`` called every ``interval`` seconds, or a little earlier, while this worker is the steward.

        It is also called while there is no steward, as when the role may not take part in the election.

        Each duty has a greenlet of its own, so it may take long. ``run`` may raise :class:`DatabaseError`, which is logged. It
        must be harmless if two workers do it at the same time. To be called before the tasks are made.
        """
        self.duties.append(Duty(name, run, interval))

    # the election

    def run(self) -> None:
        """Ask who is the steward, and sweep if it is this worker, for ever. At the end, give the lease back."""
        # Made here, because the process may fork between __init__ and run.
        self._board.election_number = secrets.randbits(62) + 1
        self._began = self._clock()
        self._resign()
        wait_until_set(self._board.listening, FIRST)
        trouble = Trouble(logger, "cannot ask who is the steward, or ring as the steward, trying again: %s")
        try:
            while True:
                began = self._clock()
                try:
                    if self._sweeping:
                        self.sweeps.sweep(self, began)
                        self._give_way_if_deaf()
                    else:
                        self._note(began, self._source.duty(self._question()))
                    self._answered = True
                    trouble.ends()
                except DatabaseError as error:
                    # If the database is away, the duties could not be done either, and each would log it.
                    self._answered = not isinstance(error, (DatabaseUnavailable, PoolTimeout))
                    trouble.begins(error)
                    if not self._answered:
                        self._deaf_since = None  # nobody hears without the database
                    elif self._sweeping and error.sqlstate == NO_RIGHT:
                        self._give_way("may not ring")
                    # A ring may have failed, and the messages for it are not read again. Nobody is to rely on rings meanwhile.
                    self.sweeps.begins, self.sweeps.rings = True, False
                if self._sweeping and trouble.lasts:
                    gevent.sleep(steward_sweeps.RENEW)  # a series of tails would ask in vain every few milliseconds
                elif self._sweeping:
                    self.sweeps.pause(self._clock() - began)
                elif self._elected:
                    gevent.sleep(RENEW_ALONE)
                else:
                    self._pause()
                # The relay is the steward's, so while its beacons come there is no need to ask, unless our rank is a new one.
                while not self._elected and self._rank <= self._asked_rank and self._board.relay.until > self._clock():
                    gevent.sleep(max(0.0, self._board.relay.until - self._clock()))
        finally:
            self._ear.wanted.clear()
            self._leave()

    @property
    def _sweeping(self) -> bool:
        return self._elected and (self.company or bool(self.outlets))

    @property
    def _ask_interval(self) -> float:
        return max(ASK[0], min(_ASK_PER_WORKER * self._board.workers, ASK[1]))

    def _question(self) -> DutyQuestion:
        now, hears = self._clock(), self._board.relay.can_hear(self._board.listening.is_set())
        if not self._sweeping or self._ear.hears:
            self._deaf_since = None
        elif self._deaf_since is None:
            self._deaf_since = now
        elif now - self._deaf_since > DEAF_AFTER:
            hears = False
            self._last_turn_until = now + DEAF_FOR
        if self._back_from is not None and self._board.listening.is_set() and not self._board.relay.heard:
            self._yields_until = self._back_from  # its listener hears PostgreSQL, because no relay is at work
        first = hears and now >= self._last_turn_until
        lease = LEASE if first else DEAF_LEASE
        may_lead = self._may_lead and now >= self._yields_until
        self._asked_rank = self._rank
        return DutyQuestion(self._board.election_number, may_lead, lease, hears, self.sweeps.rings, self._asked_rank)

    @property
    def _rank(self) -> int:
        return (2 if self.only_relays else 1) if self.outlets and self._board.relay.reaches else 0

    def _until_next_question(self) -> float:
        pause = self._ask_interval * random.uniform(0.85, 1.0)
        relay, workers = self._board.relay, self._board.workers
        if relay.heard and self.seen is not None and random.random() * workers < MISSED_ASKERS:
            # No beacon came, but the steward has given a sign since the last one. It may have died after that.
            left = self.seen + LEASE - self._clock()
            if left > 0:
                pause = min(pause, left + MISSED_SPREAD * random.random())
        return pause

    def _pause(self) -> None:
        """Wait for the next question to another steward."""
        left, least, silence = self._until_next_question(), ASK[0], longest_silence(self._board.workers) - ASK_EARLIER
        while (step := min(left, max(least, self._source.answered + silence - self._clock()))) > 0:
            gevent.sleep(step)
            left, least = left - step, least - step

    def _give_way_if_deaf(self) -> None:
        """Let another worker relay. Others do not ask for the steward while beacons come, so it has to leave by itself."""
        if self.outlets and self._deaf_since is not None and self._clock() - self._deaf_since > DEAF_AFTER:
            self._give_way("does not hear notifications")
            self._back_from = self._clock() + BACK_AFTER

    def _give_way(self, why: str) -> None:
        logger.warning("this worker %s, so it leaves the duties of the steward to others for %g s", why, DEAF_FOR)
        self._yields_until, self._back_from, self._deaf_since = self._clock() + DEAF_FOR, None, None
        self._ear.wanted.clear()
        self._leave()

    def _note(self, asked: float, answer: DutyAnswer) -> None:
        """Note the answer to a question that was sent at ``asked``."""
        # From the question on, not from the answer: it may have been under way for long.
        self._until = asked + LEASE if answer.leads else 0.0
        self._signed = asked
        if answer.age is not None:
            self.seen = asked - answer.age
            if answer.rings:
                self._rely()
        if answer.leads and not self._elected:
            self._elected = True
            self.elections += 1
            logger.info("this worker is the steward now")
        elif self._elected and not answer.leads:
            self._resign()
            logger.info("another worker is the steward now")
        if self._elected and answer.company and not self._sweeping:
            # The others may not know what did not ring while there was no company. Outlets know it: their workers need not look.
            self.sweeps.begins = True
        self.company = answer.company
        if not self.company:
            self.sweeps.rings = False  # nobody hears it; before it rings again, it has everybody look
        if self._sweeping:
            self._ear.wanted.set()
        else:
            self._ear.wanted.clear()

    def _rely(self) -> None:
        """Have this worker rely on the steward, which has given a sign."""
        board = self._board
        board.steward_until = (self.seen or 0.0) + self._ask_interval + RELY
        if board.follow_all and board.listening.is_set():
            board.doorbell.set()  # the sweeper may wait for long

    def _resign(self) -> None:
        self._elected = self.company = False
        self._until = 0.0
        self.sweeps.reset()

    def _leave(self) -> None:
        if not self._elected:
            return
        self._resign()
        try:
            self._source.leave_duty(self._board.election_number)
        except DatabaseError:
            pass  # the lease ends by itself

    def sign(self) -> None:
        """Give a sign if the last one is not recent. For the sweeps, before a statement that may take long."""
        now = self._clock()
        if now - self._signed > SIGN_BEFORE_RING:
            self._note(now, self._source.duty(self._question()))

    def ask(self, above: int | None, holes: Sequence[Hole], *, bind: bool) -> tuple[float, IdTailRows]:
        """Ask for ids, and note the sign that comes with it. Return when it was asked, and the answer. For the sweeps."""
        asked = self._clock()
        ranges = [(hole.low, hole.high) for hole in holes]
        rows = self._source.ids(self._question(), above, ranges, bind=bind, limit=steward_sweeps.PAGE)
        self._note(asked, rows.duty)
        return asked, rows
