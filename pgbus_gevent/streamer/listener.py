"""Holds the LISTEN session: reads what publishers ring, notices when it goes deaf, opens it again."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from time import monotonic
from typing import Protocol

import gevent

from ..core.events import ListenerDown, ListenerUp, Signal
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

_WAIT = 1.0
_MAX_PAUSE = 5.0
_DEAF_PAUSE = 20.0  # seconds; a pooler seldom goes away by itself


class Session(Protocol):
    """A LISTEN session; :class:`pgbus_gevent.database.notifications.ListenSession` is one."""

    @property
    def cause(self) -> str: ...
    def receive(self, timeout: float) -> tuple[list[str], bool]: ...
    def hears(self, timeout: float) -> bool: ...
    def ping(self) -> None: ...
    def close(self) -> None: ...


class Listener:
    """The greenlet that owns the session; :meth:`run` is its loop, and nobody else ever touches the session.

    ``connect`` opens one that has LISTENed. ``on_payloads`` is given what came and must not yield: a listener that does not read
    keeps the whole database from being vacuumed. ``on_up`` is called after each LISTEN, when what was missed is to be
    looked for, ``on_down`` when the session is lost.
    """

    def __init__(
        self,
        connect: Callable[[], Session],
        *,
        on_payloads: Callable[[list[str]], None],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        clock: Callable[[], float] = monotonic,
        up: Signal[ListenerUp] | None = None,
        down: Signal[ListenerDown] | None = None,
    ) -> None:
        self._connect = connect
        self._on_payloads = on_payloads
        self._on_up = on_up
        self._on_down = on_down
        self._clock = clock
        self._up = up or Signal()
        self._down = down or Signal()
        self.live = False
        self.deaf = ""
        """Why nothing is heard though the server answers, or empty."""
        self.reconnects = 0

    def run(self) -> None:
        """Listen, and open the session again whenever it is lost, for ever."""
        pause = 0.0
        while True:
            session = None
            try:
                session = self._open()
                pause = 0.0
                self._listen(session)
            except Deaf as error:
                self._lost(error, first=not self.deaf)
                self.deaf = str(error)
            except DatabaseError as error:
                self._lost(error, first=not pause)
            finally:
                self.live = False
                if session is not None:
                    session.close()
            pause = _DEAF_PAUSE if self.deaf else min(_MAX_PAUSE, max(0.1, pause * 2))
            # Many workers lose their sessions at the same moment, so they must not all come back at one.
            gevent.sleep(pause * random.uniform(0.3, 1.0))

    def _open(self) -> Session:
        session = self._connect()
        try:
            if not session.hears(PROBE_TIMEOUT):
                raise Deaf(session.cause)
        except BaseException:
            session.close()
            raise
        self.live, self.deaf = True, ""
        logger.info("listening")
        self._on_up()
        self._up.emit(ListenerUp())
        return session

    def _listen(self, session: Session) -> None:
        asked = self._clock()
        while True:
            payloads, lost = session.receive(_WAIT)
            if payloads:
                self._on_payloads(payloads)
                if CONTROL in payloads:
                    # It may be that the names were changed, which is told under the former one.
                    asked = min(asked, self._clock() - PING_INTERVAL + PING_SOON)
            if lost:
                logger.warning("more notifications came than there was room for; looking for what was missed")
                self._on_up()
            if self._clock() - asked >= PING_INTERVAL:
                session.ping()
                asked = self._clock()

    def _lost(self, error: DatabaseError, *, first: bool) -> None:
        if self.live:
            self.reconnects += 1
            self._on_down()
            self._down.emit(ListenerDown(str(error)))
        if self.live or first:
            logger.warning("the LISTEN session is lost, opening a new one: %s", error)
