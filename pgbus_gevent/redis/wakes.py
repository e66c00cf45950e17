"""Where a worker with Redis gets its wakes: from Redis, and from PostgreSQL while Redis is of no use."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from time import monotonic

import gevent

from ..core.board import Board
from ..core.relay_signs import spread
from ..core.retries import Trouble
from ..core.wake_source import Leaving, Session, WakeSource
from ..errors import DatabaseError, RedisRefused, RedisUnavailable
from .keys import Keys, Names
from .session import RESYNC_SPREAD, RedisSession
from .urls import RedisURL

logger = logging.getLogger("pgbus_gevent.wakes")

RELY = 4.5
"""Seconds after a beacon for which the worker relies on the relay to find messages that did not ring."""

ASK_AFTER = (1.3, 1.8)
"""Seconds without a beacon, at random, after which a worker asks who is the steward, because the relay may have died.

Another worker is to take its place within two seconds.
"""

RETURN = 8.0
"""The longest time in seconds between two tries to return to Redis."""

REFUSED = 30.0
"""The longest time in seconds until the next try after Redis has refused the login or a right, which somebody has to correct."""

LISTENERS = 40
"""About how many workers LISTEN in PostgreSQL while Redis is of no use. In a larger fleet, the others ask the database."""

TOO_MANY = 2
"""A worker that LISTENs ceases to if about this many times as many do, because the fleet is larger than it knew."""


class RedisWakes:
    """The wake source of a worker with Redis. The listener uses it; other greenlets only read its state.

    If Redis cannot be reached, or no relay publishes there, the worker uses PostgreSQL: it LISTENs, or in a large fleet it may
    only ask from time to time, so that a thousand workers do not LISTEN at once. It returns to Redis by itself.
    """

    def __init__(
        self, url: RedisURL, database: WakeSource, names: Names, board: Board, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._url = url
        self._database = database
        self._names = names
        self._board = board
        self._clock = clock
        self._known: tuple[str, str] | None = None
        # Drawn once for each outage. Drawn at each try, in the end every worker would LISTEN.
        self._lot = random.random()
        self._ready: RedisSession | None = None
        self._refusal: RedisRefused | None = None
        self._refused_until = 0.0
        self._trouble = Trouble(
            logger,
            "Redis is of no use, so workers listen to PostgreSQL until it is; nothing is lost: %s",
            over="using Redis again",
        )
        self.session: RedisSession | None = None
        """The session with Redis, while there is one."""
        self.on_redis = True
        """Whether Redis is used, or was to be used at the last try."""
        self.trouble = ""
        """Why PostgreSQL is used instead; empty while Redis is used."""
        self.fallbacks = 0
        """How often this worker began to use PostgreSQL instead."""

    # the wake source

    def listen(self) -> Session:
        """Open a session with Redis, or with PostgreSQL if Redis is of no use."""
        session = self._ready
        self._ready = None
        if session is None:
            try:
                session = self._connect()
            except RedisUnavailable as error:
                self._fall_back(error)
                return self._meanwhile()
        self._trouble.ends()
        self.on_redis, self.trouble = True, ""
        self.session = session
        self._board.relay.heard = True
        return _OnBoard(session, self, self._board)

    def discard_idle(self) -> None:
        """Do nothing: a session that is lost with Redis says nothing about the sessions of the database."""

    def _connect(self) -> RedisSession:
        """Return a session that has heard a beacon. After a refusal, Redis is not asked for a while."""
        if self._refusal is not None and self._clock() < self._refused_until:
            raise self._refusal.with_traceback(None)
        try:
            session = self._open()
        except RedisRefused as error:
            self._refusal = error
            self._refused_until = self._clock() + REFUSED * random.uniform(0.5, 1.0)
            raise
        self._refusal = None
        return session

    def _open(self) -> RedisSession:
        if self._known is None:
            self._known = self._names.redis_names()
        self._board.relay.reaches = False
        # If it cannot connect, the names are kept. Otherwise each try of each worker would ask the database for them.
        session = RedisSession(self._url, Keys(*self._known, sharded=self._url.kind == "cluster"))
        try:
            self._board.relay.reaches = True
            if not session.hears():
                raise RedisUnavailable(session.cause)
        except BaseException:
            self._known = None  # the names may have changed
            session.close()
            raise
        return session

    def _fall_back(self, error: RedisUnavailable) -> None:
        self.trouble = str(error)
        self._trouble.begins(error)
        if self.on_redis:
            self.on_redis = False
            self.fallbacks += 1
            self._lot = random.random()
            # Not all workers at once, because each now asks the database what it has missed.
            gevent.sleep(random.uniform(0, spread(self._board.workers)))

    def _meanwhile(self) -> Session:
        self._yield_to_others(LISTENERS)
        return _Meanwhile(self._database.listen(), self)

    def _yield_to_others(self, listeners: float) -> None:
        if self._lot * self._board.workers > listeners:
            raise RedisUnavailable(f"{self.trouble}; this worker asks the database from time to time")

    def check(self) -> None:
        """Raise :class:`RedisUnavailable` if too many workers LISTEN. A new worker does not know yet how large the fleet is."""
        self._yield_to_others(TOO_MANY * LISTENERS)

    def look(self) -> bool:
        """Try to return to Redis. Return whether the next :meth:`listen` does."""
        if self._ready is None:
            try:
                self._ready = self._connect()
            except DatabaseError as error:
                self.trouble = str(error)
                self._trouble.begins(error)
        return self._ready is not None

    def close(self) -> None:
        """Close a session that nobody has taken yet. Idempotent."""
        if self._ready is not None:
            self._ready.close()
            self._ready = None

    def left(self, session: RedisSession) -> None:
        """Note that a session with Redis has ended."""
        if self.session is session:
            self.session = None
            self._board.relay.heard = False
            self.trouble = "the session with Redis was lost"
            if session.changed:
                self._known = None


class _OnBoard:
    """A session with Redis that tells the board when the relay has given a sign of life."""

    def __init__(self, session: RedisSession, wakes: RedisWakes, board: Board) -> None:
        self._session = session
        self._wakes = wakes
        self._board = board
        self.cause = session.cause
        self.follow = session.follow
        self.narrow = session.narrow
        self.interrupt = session.interrupt
        self.ping = session.ping
        self._signed: float | None = None

    def hears(self) -> bool:
        """Whether it hears; it has heard a beacon already."""
        self._sign()
        return True

    def receive(self, timeout: float) -> tuple[list[str], bool]:
        """Wait for payloads; see :meth:`RedisSession.receive`."""
        found = self._session.receive(timeout)
        self._sign()
        return found

    def _sign(self) -> None:
        at = self._session.beacon_at
        if at is not None and at != self._signed:
            self._signed = at
            self._board.steward_until = at + RELY
            self._board.relay.until = at + random.uniform(*ASK_AFTER)
            self._session.spread = max(RESYNC_SPREAD, spread(self._board.workers))
            if self._board.follow_all:
                self._board.doorbell.set()  # the sweeper may wait for long, and now it can rely on the relay

    def close(self) -> None:
        """End the session. Idempotent."""
        self._wakes.left(self._session)
        self._session.close()


class _Meanwhile:
    """A session of PostgreSQL that ends when Redis is of use again. A greenlet of its own tries that."""

    def __init__(self, session: Session, wakes: RedisWakes) -> None:
        self._session = session
        self._wakes = wakes
        self._back = False
        self._looking = gevent.spawn(self._look)
        self.follow = session.follow
        self.narrow = session.narrow
        self.interrupt = session.interrupt
        self.hears = session.hears

    @property
    def cause(self) -> str:
        """The likely reason if nothing is heard."""
        return self._session.cause

    def _look(self) -> None:
        while not self._back:
            gevent.sleep(RETURN * random.uniform(0.4, 1.0))
            self._back = self._wakes.look()
        self._session.interrupt()

    def receive(self, timeout: float) -> tuple[list[str], bool]:
        """Wait for payloads. Raises :class:`Leaving` to end the session when Redis is back."""
        self.ping_redis()
        return self._session.receive(timeout)

    def ping_redis(self) -> None:
        """Raise :class:`Leaving` if this session is no longer needed, or :class:`RedisUnavailable` if too many workers have one."""
        if self._back:
            raise Leaving("Redis is back")
        self._wakes.check()

    def ping(self) -> None:
        """Return if the session lives."""
        self._session.ping()

    def close(self) -> None:
        """End the session. Idempotent."""
        self._looking.kill(block=False)
        self._session.close()
