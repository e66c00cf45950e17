"""Ends the connections of clients whose right was taken back: by ``pgbus.disconnect``, or by the authorize hook."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from time import monotonic
from typing import Protocol

import gevent
from gevent.event import Event

from ..core.board import Board
from ..core.outlet import Outlet
from ..core.retries import Trouble
from ..core.rows import Mark, Revoked
from ..core.shown import kind_of, traceable
from ..core.wakes import CONTROL
from ..errors import DatabaseError
from .clients import Clients
from .turns import breathe, wait_until_set

logger = logging.getLogger("pgbus_gevent.revocations")

_LEAST_PAUSE = 0.02  # seconds between two questions, so that many revocations at once are found by one

AGAIN = 300.0
"""Seconds after which the revocations of the last ten minutes are read again, whatever the marks say."""

AGAIN_UNHEARD = 60.0
"""The same while no notifications are heard. Then nothing tells that a crash has taken the numbers of transactions back."""


SELDOM = 60.0
"""Seconds between two reads without a notification, while notifications are heard: the steward reads more often, and notifies the
others."""


KEPT = 3300.0
"""Seconds after which revocations may have been removed unread; the database keeps them a little longer."""

SEEN = 2 * KEPT
"""Seconds for which a revocation that was read is remembered: longer than the database keeps it."""

_SLICE = 200


class Source(Protocol):
    """The statements that it needs; :class:`pgbus_gevent.database.queries.Queries` has them.

    ``ring_control`` sends a control notification to all workers, and returns whether that is possible now.
    """

    def revocations(self, after: Mark | None = None, *, recent: bool = False) -> Revoked: ...
    def ring_control(self) -> bool: ...


class Revocations:
    """The greenlet that reads revocations from the database; :meth:`run` is its loop.

    It reads after a control notification, when the listener has a new session, and otherwise now and then. It reads what is new
    since its last mark. With a new session, and every few minutes, it reads the last ten minutes again, because the server may be
    another one. If it could not read for :data:`KEPT` seconds, as at an edge that was cut off, it does not know who was revoked
    meanwhile. It then has all clients with an owner come back, so that they are authorized anew.

    A notification may not have been sent, because the queue was half full. So the steward reads every ``interval`` seconds,
    and sends another notification if it finds something that none had announced. The others read seldom by themselves.
    ``outlets`` are those of the steward; they are told directly, because the steward may not hear notifications either.
    """

    def __init__(
        self, source: Source, board: Board, clients: Clients, *, interval: float, outlets: Sequence[Outlet] = ()
    ) -> None:
        self._source = source
        self._board = board
        self._clients = clients
        self._interval = interval
        self._outlets = outlets
        self._mark: Mark | None = None
        self._late = False  # whether a read before the first one has failed
        self._looked = Event()  # set when the first read is over, even if it has failed
        # The revocations that were read while they were kept, and when. Without it, a second read would end the connections with
        # which the owner came back since.
        self._seen: dict[int, float] = {}
        self._resyncs = board.resyncs
        self._watching = False
        self._watches_until = 0.0
        self._unannounced = False
        self._recent_at = 0.0
        self._read_at = 0.0

    def run(self) -> None:
        """Read revocations and end connections, for ever."""
        trouble = Trouble(logger, "cannot look for revoked connections, trying again: %s")
        rung = True
        while True:
            watching, self._watching = self._watching, False
            resyncs = self._resyncs
            try:
                found = self.check(monotonic())
                # What the steward reads by itself, perhaps no notification has announced, and the next look does not find it again.
                alone = not rung or self._resyncs != resyncs
                if watching or (alone and monotonic() < self._watches_until):
                    self._announce(found)
                trouble.ends()
            except DatabaseError as error:
                trouble.begins(error)
            self._looked.set()
            gevent.sleep(_LEAST_PAUSE)
            pause = self._board.until_next(self._interval)
            if self._board.listening.is_set() and not trouble.lasts:
                pause = max(pause, SELDOM)
            rung = self._board.control.wait(pause * random.uniform(0.75, 1.0))

    def await_look(self, timeout: float) -> None:
        """Yield until the first read is over, for at most ``timeout`` seconds."""
        wait_until_set(self._looked, timeout)

    def _announce(self, found: bool) -> None:
        """Have the other workers read, now if that is possible, else with the next look."""
        if found:
            for outlet in self._outlets:
                outlet.heard([CONTROL])
        self._unannounced |= found
        if self._unannounced:
            self._unannounced = not self._source.ring_control()

    def watch(self) -> None:
        """Look for revocations for all workers: a duty of the steward."""
        self._watches_until = monotonic() + 2 * self._interval
        if not self._board.control.is_set():
            self._watching = True
            self._board.control.set()

    def check(self, now: float) -> bool:
        """Read revocations once, and end the connections of their owners. Return whether there were new ones.

        ``now`` is in monotonic seconds.
        """
        # Cleared before the statement. A control notification that comes while it runs sets the flag, for the next check.
        self._board.control.clear()
        resyncs = self._board.resyncs
        recent = resyncs != self._resyncs or now >= self._recent_at
        try:
            found = self._source.revocations(self._mark, recent=recent)
        except DatabaseError:
            self._late = self._mark is None
            raise
        ids = {id for id, _ in found.rows}
        if self._mark is not None and now - self._read_at > KEPT:
            self._end_all()
        self._read_at = now
        # The revocations of the first read are older than every connection of this worker, unless clients came before it, or while
        # no read was possible: at an edge, which authorizes them itself, or with a hook that needs no database. Owners who were
        # revoked before that may be sent away for it too. They come back, and are authorized anew.
        counts = self._mark is not None or self._late or any(client.owner for client in self._board.registry.clients())
        is_new = counts and not ids <= self._seen.keys()
        if is_new:
            for id, owner in dict(found.rows).items():
                if id not in self._seen:
                    self._end(owner)
        if recent or self._mark is None or self._mark.home != found.mark.home:
            self._seen = {id: at for id, at in self._seen.items() if now - at < SEEN}
            self._recent_at = now + (AGAIN if self._board.listening.is_set() else AGAIN_UNHEARD)
        self._seen |= dict.fromkeys(ids, now)
        self._mark, self._late = found.mark, False
        self._resyncs = resyncs
        return is_new

    def _end_all(self) -> None:
        logger.warning("revocations could not be read for too long: all connections with an owner are to come back")
        for n, _ in enumerate(self._clients.end_all(owned=True), 1):
            if n % _SLICE == 0:
                breathe()

    def _end(self, owner: str) -> None:
        number = self._clients.end_owner(owner)
        if number:
            logger.info("closed %d connections of owner %r: revoked", number, owner)


_PAUSE = 1.0  # seconds until a worker without connections looks for some again


class Rechecks:
    """The greenlet that asks the authorize hook again about connected clients; :meth:`run` is its loop.

    Each connection is checked every ``interval`` seconds, one after the other. A slow hook thus delays the next check, but no
    messages. If the hook raises, nothing changes until the next check, because an outage of a service that the hook asks must
    not end all connections.
    """

    def __init__(self, board: Board, clients: Clients, *, interval: float) -> None:
        self._board = board
        self._clients = clients
        self._interval = interval

    def run(self) -> None:
        """Ask the hook, for ever."""
        while True:
            clients = [client for client in self._board.registry.clients() if client.recheck is not None]
            failed = False
            for client in clients:
                gevent.sleep(self._interval / len(clients))
                if client.closed or client.recheck is None:
                    continue
                try:
                    answer = client.recheck()
                except BaseException as error:
                    if not failed:
                        logger.error(
                            "the authorize hook raised when it was asked again; asking later (%s)",
                            kind_of(error),
                            exc_info=traceable(error),
                        )
                    failed = True
                    continue
                if client.closed:
                    continue  # the client left while this greenlet waited for the hook
                if answer is None:
                    self._clients.end(client, "revoked")
                else:
                    self._clients.adopt(client, answer)
            if not clients:
                gevent.sleep(min(_PAUSE, self._interval))
