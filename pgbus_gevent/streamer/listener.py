"""Owns the LISTEN session: puts wakes on the board, notices when the session is deaf, and opens it again."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable
from time import monotonic, time

import gevent

from ..core import wakes
from ..core.board import Board
from ..core.events import ListenerDown, ListenerUp
from ..core.retries import Backoff
from ..core.stream_log import StreamLog
from ..core.wake_source import Leaving, Session, WakeSource
from ..core.wakes import CONTROL
from ..core.work import Flag
from ..errors import DatabaseError, Deaf, is_known
from .turns import wait_until_set

logger = logging.getLogger("pgbus_gevent.listener")

PING_INTERVAL = 2.0
"""Seconds between two pings, in a fleet of up to forty workers.

A ping asks the server whether it answers, and for the current names of the channels. It is sent even while notifications come,
because they may come on a channel whose name has been replaced.
"""

PING_INTERVAL_MOST = 5.0
"""Seconds between two pings in a large fleet."""

_LOOK = 0.1  # seconds until it is noticed that nobody waits for the session any more

_PINGS = 20.0  # of all workers together, in a second, until the longest interval is reached

PING_SOON = 0.5
"""Seconds until the next ping after a control notification."""

NARROW_INTERVAL = 60.0
"""Seconds after which the session stops following the streams that have no client any more."""

NARROW_SOON = 5.0
"""The same for a session that follows all streams and no longer has to, because its worker relies on the steward now."""

MAX_DISTANCE = 86_400.0
"""How far, in seconds, an id or a time of an append may differ from this host's clock. An id is at most the database's clock in
microseconds."""

_WAIT = 1.0
_PAUSES = 0.1, 5.0  # the first and the longest between two sessions, in seconds
_DEAF_PAUSE = 20.0  # seconds; a pooler in transaction mode rarely goes away by itself


class Listener:
    """The greenlet that owns the LISTEN session; :meth:`run` is its loop. No other greenlet uses the session.

    It hears the wakes of the streams that have clients here, or of all streams if the board says so.

    It yields only while it waits for the session. While a statement of the session runs, new logs may come; they wait in
    ``unheard`` for the next round. Between two reads it never yields, because a session whose client does not
    read holds up vacuum in the whole database. ``wall_clock`` returns Unix seconds.
    """

    def __init__(
        self,
        source: WakeSource,
        board: Board,
        *,
        clock: Callable[[], float] = monotonic,
        wall_clock: Callable[[], float] = time,
    ) -> None:
        self._source = source
        self._board = board
        self._clock = clock
        self._wall_clock = wall_clock
        self._up = board.events.signal(ListenerUp)
        self._down = board.events.signal(ListenerDown)
        self.deaf = ""
        """Why the session is deaf, or an empty text."""
        self.reconnects = 0
        self._follows_all = False
        self._late: deque[tuple[Flag, list[StreamLog]]] = deque()  # logs whose wakes are heard when the flag is set
        self._narrowed = 0.0

    @property
    def live(self) -> bool:
        """Whether notifications are heard."""
        return self._board.listening.is_set()

    def run(self) -> None:
        """Listen, and open the session again when it is lost, for ever."""
        backoff, first, suspected = Backoff(*_PAUSES, least_share=0.3), True, False
        while True:
            session = None
            told = True
            try:
                session = self._open()
                backoff.reset()
                first, suspected = True, False
                self._listen(session)
            except Deaf as error:
                # The first probe of a session may be late on a busy server. Behind a pooler, the next session is deaf too.
                certain = suspected or session is not None
                self._lost(error, first=certain and not self.deaf)
                if certain:
                    self.deaf = str(error)
                else:
                    backoff.reset()
                    told = False
                suspected = True
            except DatabaseError as error:
                self._lost(error, first=first)
                told = not is_known(error)
            finally:
                self._board.following.session = None
                self._give_up_late()
                self._board.deafen()
                if session is not None:
                    session.close()
            first = first and not told
            gevent.sleep(_DEAF_PAUSE * random.uniform(0.3, 1.0) if self.deaf else backoff.next())

    def await_session(self, timeout: float, *, unless: Callable[[], bool]) -> None:
        """Yield until wakes are heard, for at most ``timeout`` seconds, or until ``unless`` returns True."""
        end = monotonic() + timeout
        while not unless() and not wait_until_set(self._board.listening, max(0.0, min(_LOOK, end - monotonic()))):
            if monotonic() >= end:
                # On a busy machine, the time of a wait may be over although the flag was set before, or during it.
                if not self.live and not unless():
                    logger.warning("not listening yet after %g s; still trying", timeout)
                return

    def _open(self) -> Session:
        session = self._source.listen()
        try:
            if not session.hears():
                raise Deaf(session.cause)
            self._follows_all = False
            self._follow(session)
        except BaseException:
            session.close()
            raise
        self.deaf = ""
        self._board.following.session = session
        self._board.listening.set()
        logger.info("listening")
        self._board.resync()
        self._up.emit(ListenerUp())
        return session

    def _listen(self, session: Session) -> None:
        asked = self._narrowed = self._clock()
        while True:
            if self._board.following.is_set():
                self._follow(session)
            payloads, lost = session.receive(_WAIT)
            while self._late and self._late[0][0].is_set():
                self._heard(self._late.popleft()[1])
            if payloads:
                self.hear(payloads)
                if CONTROL in payloads:
                    # The names of the channels may have been replaced. This is announced on the old channel.
                    asked = min(asked, self._clock() - self.ping_interval + PING_SOON)
            if lost:
                logger.warning("some notifications may have been missed; looking for their messages")
                self._board.resync()
            if self._clock() - asked >= self.ping_interval:
                session.ping()
                asked = self._clock()
            if self._clock() - self._narrowed >= self._narrow_interval:
                self._narrow(session)

    @property
    def ping_interval(self) -> float:
        """The time between two pings, in seconds."""
        return max(PING_INTERVAL, min(self._board.workers / _PINGS, PING_INTERVAL_MOST))

    @property
    def _narrow_interval(self) -> float:
        needless = self._follows_all and not self._board.follow_all
        return min(NARROW_SOON, NARROW_INTERVAL) if needless else NARROW_INTERVAL

    def _follow(self, session: Session) -> None:
        """Follow the streams that are not heard yet."""
        board = self._board
        board.following.clear()  # before the work is taken: what comes during a statement sets it again
        if board.follow_all and not self._follows_all:
            session.follow(None)
            self._follows_all = True
        logs = board.unheard.take()
        later = None
        try:
            if logs and not self._follows_all:
                later = session.follow([log.name for log in logs])
        except BaseException:
            board.unheard.give_back(logs)
            raise
        if later is None:
            self._heard(logs)
        else:
            self._late.append((later, logs))

    def _heard(self, logs: list[StreamLog]) -> None:
        """Note that the wakes of these logs are heard from now on."""
        board = self._board
        for log in logs:
            board.unheard.done(log)
            if self.live and log.is_open and not log.retired:
                # It was opened while the session was new, and a message since then may have been missed.
                board.looks.add(log)
            else:
                board.heard(log)

    def _give_up_late(self) -> None:
        """Note that the session has ended before it heard the wakes of some logs."""
        for _, logs in self._late:
            self._board.unheard.give_back(logs)
        self._late.clear()

    def _narrow(self, session: Session) -> None:
        """Stop following the streams that have no client here."""
        self._narrowed = self._clock()
        if not self._board.follow_all:
            session.narrow([log.name for log in self._board.registry.logs()])
            self._follows_all = False

    def _lost(self, error: DatabaseError, *, first: bool) -> None:
        if self.live:
            self.reconnects += 1
            self._source.discard_idle()
            self._board.doubt()
            self._down.emit(ListenerDown(str(error)))
        if isinstance(error, Leaving):
            logger.info("opening another session for new messages: %s", error)
        elif (self.live or first) and not is_known(error):  # what is known, the pulse logs
            logger.warning("the session for new messages is lost, opening a new one: %s", error)

    def hear(self, payloads: list[str]) -> None:
        """Put the wakes in ``payloads`` on the board, in this order."""
        self._board.doorbell.set()
        for payload in payloads:
            wake = wakes.parse(payload)
            if isinstance(wake, wakes.NewMessage):
                self._take(wake)
            elif isinstance(wake, wakes.Ephemeral):
                self._board.take_ephemeral(wake)
            elif isinstance(wake, wakes.Control):
                self._board.take_control()
            elif wake.streams is None:
                # A worker that follows all streams sweeps after each notification; this one has to be told.
                self._board.unsure |= not self._board.follow_all
            else:
                for name in wake.streams:
                    log = self._board.log(name)
                    if log is not None:
                        log.hint(log.head)
                        self._board.look(log)

    def _take(self, message: wakes.NewMessage) -> None:
        log = self._board.log(message.stream)
        if log is None:
            return
        if log.is_open and message.id <= log.head:
            # Known already, unless a forged notification came first, with the id that was to be the next one. If only the head is
            # wrong and too high, the next probe finds it.
            if log.contradicts(message):
                self._board.look(log)
            return
        now = self._wall_clock()
        # A role that knows the channel's name can forge a message, and an id so high that all later messages would be ignored.
        # A message is therefore taken only if it is plainly the next one; otherwise a reader asks the table.
        if log.follows(message.prev_id) and message.id < (now + MAX_DISTANCE) * 1e6:
            at = message.created_at
            if log.appended_at is None and at is not None and abs(now - at) < MAX_DISTANCE:
                log.appended_at = at
            self._board.extend(log, [message])
        else:
            log.announced = max(log.announced, message.id)
            log.hint(log.head)
            self._board.look(log)
