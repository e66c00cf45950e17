"""Holds the LISTEN session: puts what publishers ring on the board, notices when it goes deaf, opens it again."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from time import monotonic, time
from typing import Protocol

import gevent

from ..core import wakes
from ..core.board import Board
from ..core.events import ListenerDown, ListenerUp
from ..core.retries import Backoff
from ..core.wakes import CONTROL
from ..errors import DatabaseError, Deaf

logger = logging.getLogger("pgbus_gevent.listener")

PROBE_TIMEOUT = 2.0
"""Seconds for a notification to come back, before the session is taken for deaf."""

PING_INTERVAL = 2.0
"""Seconds between two times that the server is asked whether it lives, and under which names publishers ring.

However much is heard meanwhile: it may be on a channel that was given up as its name got about.
"""

PING_SOON = 0.5
"""The same after a control notification."""

MAX_DISTANCE = 86_400.0
"""Seconds by which an id, or the time of an append, may be off this host's clock. Ids lag the database's clock in microseconds."""

_WAIT = 1.0
_PAUSES = 0.1, 5.0  # the first and the longest between two sessions, in seconds
_DEAF_PAUSE = 20.0  # seconds; a pooler seldom goes away by itself


class Session(Protocol):
    """A LISTEN session; :class:`pgbus_gevent.database.notifications.ListenSession` is one."""

    @property
    def cause(self) -> str: ...
    def receive(self, timeout: float) -> tuple[list[str], bool]: ...
    def hears(self, timeout: float) -> bool: ...
    def ping(self) -> None: ...
    def close(self) -> None: ...


class WakeSource(Protocol):
    """Where sessions come from; :class:`pgbus_gevent.database.Database` is one."""

    def listen(self) -> Session: ...
    def discard_idle(self) -> None: ...


class Listener:
    """The greenlet that owns the session; :meth:`run` is its loop, and nobody else ever touches the session.

    Between two reads of the session it never yields: a listener that does not read keeps the whole database from being vacuumed.
    ``wall_clock`` gives Unix seconds.
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
        """Why nothing is heard though the server answers, or empty."""
        self.reconnects = 0

    @property
    def live(self) -> bool:
        """Whether notifications are heard."""
        return self._board.listening.is_set()

    def run(self) -> None:
        """Listen, and open the session again whenever it is lost, for ever."""
        backoff, first = Backoff(*_PAUSES, least_share=0.3), True
        while True:
            session = None
            try:
                session = self._open()
                backoff.reset()
                first = True
                self._listen(session)
            except Deaf as error:
                self._lost(error, first=not self.deaf)
                self.deaf = str(error)
            except DatabaseError as error:
                self._lost(error, first=first)
            finally:
                self._board.listening.clear()
                if session is not None:
                    session.close()
            first = False
            gevent.sleep(_DEAF_PAUSE * random.uniform(0.3, 1.0) if self.deaf else backoff.next())

    def _open(self) -> Session:
        session = self._source.listen()
        try:
            if not session.hears(PROBE_TIMEOUT):
                raise Deaf(session.cause)
        except BaseException:
            session.close()
            raise
        self.deaf = ""
        self._board.listening.set()
        logger.info("listening")
        self._board.resync()
        self._up.emit(ListenerUp())
        return session

    def _listen(self, session: Session) -> None:
        asked = self._clock()
        while True:
            payloads, lost = session.receive(_WAIT)
            if payloads:
                self.hear(payloads)
                if CONTROL in payloads:
                    # It may be that the names were changed, which is told under the former one.
                    asked = min(asked, self._clock() - PING_INTERVAL + PING_SOON)
            if lost:
                logger.warning("more notifications came than there was room for; looking for what was missed")
                self._board.resync()
            if self._clock() - asked >= PING_INTERVAL:
                session.ping()
                asked = self._clock()

    def _lost(self, error: DatabaseError, *, first: bool) -> None:
        if self.live:
            self.reconnects += 1
            self._source.discard_idle()
            self._board.doubt()
            self._down.emit(ListenerDown(str(error)))
        if self.live or first:
            logger.warning("the LISTEN session is lost, opening a new one: %s", error)

    def hear(self, payloads: list[str]) -> None:
        """Payloads came, in this order."""
        self._board.doorbell.set()
        for payload in payloads:
            wake = wakes.parse(payload)
            if isinstance(wake, wakes.Ring):
                self._ring(wake)
            elif isinstance(wake, wakes.Ephemeral):
                self._board.take_ephemeral(wake)
            elif isinstance(wake, wakes.Control):
                self._board.control.set()
            else:
                for name in wake.streams or ():
                    log = self._board.log(name)
                    if log is not None:
                        self._board.looks.add(log)

    def _ring(self, ring: wakes.Ring) -> None:
        log = self._board.log(ring.stream)
        if log is None or (log.is_open and ring.id <= log.head):
            return  # what was heard already; a head that lies too far ahead is found by the next probe
        now = self._wall_clock()
        # Whoever knows a channel's name can ring with what was never stored, and with an id that would silence the stream. So what
        # is not plainly the next message is looked up.
        if log.follows(ring.prev_id) and ring.id < (now + MAX_DISTANCE) * 1e6:
            if log.appended_at is None and ring.created_at is not None and abs(now - ring.created_at) < MAX_DISTANCE:
                log.appended_at = ring.created_at
            self._board.extend(log, [ring])
        else:
            self._board.looks.add(log)
