"""The steward's own LISTEN session, which follows all streams while this worker is the steward."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from time import monotonic
from typing import Protocol

import gevent
from gevent.event import Event

from ..core import wakes
from ..core.outlet import Outlet
from ..core.retries import Backoff, Trouble
from ..core.wakes import CONTROL
from ..errors import DatabaseError, Deaf

logger = logging.getLogger("pgbus_gevent.steward_ear")

REMEMBERED = 10_000
"""How many messages are remembered that rang, and how many for which the steward rang. Beyond that, some are rung for twice."""

PING_INTERVAL = 2.0
"""Seconds between two pings, as those of the worker's listener."""

_WAIT = 1.0
_PAUSES = 0.1, 5.0  # the first and the longest between two sessions, in seconds
_DEAF_PAUSE = 20.0


class Session(Protocol):
    """A session that hears wakes; :class:`pgbus_gevent.database.notifications.ListenSession` is one."""

    @property
    def cause(self) -> str: ...
    def follow(self, streams: Collection[str] | None) -> None: ...
    def receive(self, timeout: float) -> tuple[list[str], bool]: ...
    def hears(self) -> bool: ...
    def ping(self) -> None: ...
    def close(self) -> None: ...


class WakeSource(Protocol):
    """Opens sessions; :class:`pgbus_gevent.database.Database` is one."""

    def listen(self) -> Session: ...


class Ear:
    """The greenlet that listens for the steward; :meth:`run` is its loop. No other greenlet uses the session.

    Between two reads it never yields, because a session whose client does not read holds up vacuum in the whole database.

    ``wanted`` is set while the steward needs it. ``heard`` has the messages that rang, by id, with their streams: for these the
    steward need not ring. ``rung`` has those for which the steward rang itself; their notifications do not set the ``doorbell``.
    """

    def __init__(self, source: WakeSource, *, clock: Callable[[], float] = monotonic) -> None:
        self._source = source
        self._clock = clock
        self.wanted, self.doorbell = Event(), Event()
        self.heard: dict[int, str] = {}
        self.rung: dict[int, None] = {}
        self.hears = False
        """Whether notifications of all streams are heard."""
        self.outlets: list[Outlet] = []
        """Get all payloads as they come."""

    def run(self) -> None:
        """Listen while it is wanted, for ever."""
        backoff = Backoff(*_PAUSES)
        trouble = Trouble(logger, "the steward does not hear notifications, so it asks for messages more often: %s")
        while True:
            self.wanted.wait()
            pause = 0.0
            try:
                self._listen_while_wanted(backoff, trouble)
            except Deaf as error:
                trouble.begins(error)
                pause = _DEAF_PAUSE
            except DatabaseError as error:
                trouble.begins(error)
                pause = backoff.next()
            finally:
                self.hears = False
                self.doorbell.set()
            gevent.sleep(pause)

    def _listen_while_wanted(self, backoff: Backoff, trouble: Trouble) -> None:
        session = self._source.listen()
        try:
            if not session.hears():
                raise Deaf(session.cause)
            session.follow(None)
            self.heard.clear()
            self.hears = True
            self.take([CONTROL])  # control notifications may have been missed, and the outlets' workers hear no others
            backoff.reset()
            trouble.ends()
            asked = self._clock()
            while self.wanted.is_set():
                payloads, lost = session.receive(_WAIT)
                if payloads or lost:
                    self.take([*payloads, CONTROL] if lost else payloads)
                if self._clock() - asked >= PING_INTERVAL:
                    session.ping()
                    asked = self._clock()
        finally:
            session.close()

    def take(self, payloads: list[str]) -> None:
        """Note what rang. Notifications about messages set the doorbell, unless the steward has sent them itself."""
        for payload in payloads:
            wake = wakes.parse(payload)
            if isinstance(wake, wakes.NewMessage):
                if wake.id in self.rung:
                    del self.rung[wake.id]
                    continue
                self.heard[wake.id] = wake.stream
            elif not isinstance(wake, wakes.Moved):
                continue
            self.doorbell.set()
        _forget(self.heard)
        for outlet in self.outlets:
            outlet.heard(payloads)

    def has_heard(self, id: int, stream: str) -> bool:
        """Whether a message rang. It is forgotten then, because the steward asks once for each."""
        return self.heard.pop(id, None) == stream

    def forget(self, ids: list[int]) -> None:
        """Forget that these messages rang, if they did."""
        for id in ids:
            self.heard.pop(id, None)

    def rang(self, ids: list[int]) -> None:
        """Note that the steward rings for these messages."""
        self.rung.update(dict.fromkeys(ids))
        _forget(self.rung)


def _forget(ids: dict[int, str] | dict[int, None]) -> None:
    """Forget the oldest, if there are too many."""
    while len(ids) > REMEMBERED:
        del ids[next(iter(ids))]
