"""Looks at every connection now and then: keeps the quiet ones alive, ends those whose time is over.

One sweep in slots over the interval, and not a timer for each connection: a connection stands in the slot in which it is due
next, so that neither all are due at once nor anybody is looked at in vain.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from time import monotonic, time

import gevent

from ..core import sse
from ..core.board import Board
from ..core.client import Client
from .clients import Clients

_MAX_TICK = 0.25  # seconds

_SPREAD = 0.25
"""Up to so many intervals less pass before a heartbeat: after a broadcast to all, all are quiet from the same moment on.

Less, and not more: whoever sets the interval has somebody on the way in mind who cuts off what is quiet for longer.
"""


def tick_of(interval: float, write_deadline: float, admit_deadline: float) -> float:
    """How often connections are looked at, in seconds, so that each of the deadlines is kept."""
    return min(_MAX_TICK, min(interval, write_deadline) / 8, admit_deadline / 4)


class Heartbeat:
    """The greenlet that looks; :meth:`run` is its loop.

    It takes the clients that are due from the board's schedule. ``interval`` is the longest silence before a heartbeat. A client
    that takes no byte for ``write_deadline`` is a slow consumer, and one that nobody could tell where it starts within
    ``admit_deadline`` is refused. All are in seconds.
    """

    def __init__(
        self,
        board: Board,
        clients: Clients,
        *,
        interval: float,
        write_deadline: float,
        admit_deadline: float,
        clock: Callable[[], float] = monotonic,
        wall_clock: Callable[[], float] = time,
    ) -> None:
        self._schedule = board.schedule
        self._clients = clients
        self._write_deadline = write_deadline
        self._admit_deadline = admit_deadline
        # Seldom enough that nearly each look is a heartbeat. One that stops reading just after it was looked at is found at the
        # next, before its deadline is over, and is looked at again when that is.
        self._look = min(interval, write_deadline)
        self._tick = board.schedule.tick
        # A slot is up to one tick late, and so is the sweep.
        self._most = interval - 2 * self._tick
        self._least = self._most - interval * _SPREAD
        self._clock = clock
        self._wall_clock = wall_clock
        self.sent = 0

    def run(self) -> None:
        """Look at all connections in turn, for ever."""
        while True:
            gevent.sleep(self._tick)
            self.sweep()

    def sweep(self) -> None:
        """Look at all that are due."""
        now = self._clock()
        schedule = self._schedule
        while schedule.new:
            client = next(iter(schedule.new))
            # At a random moment, as many may have come at the same one.
            delay = self._until(client, client.opened_at + self._admit_deadline, now) * random.uniform(0.5, 1.0)
            schedule.place(client, now + delay)
        frame = sse.heartbeat(self._wall_clock())
        for client in schedule.due(now):
            delay = self._look_at(client, frame, now)
            # One that is closing stays as long as something waits for it.
            if client.reason is None or client.blocked_since is not None:
                schedule.place(client, now + delay)

    def _look_at(self, client: Client, frame: bytes, now: float) -> float:
        """Do what is due for one client; after how many seconds to look again."""
        blocked_since = client.blocked_since
        if blocked_since is not None:
            due = blocked_since + self._write_deadline
            if due <= now:
                return self._end(client, "slow-consumer")
        if client.reason is not None:
            # It was told why, and still takes what waits for it; not a byte at a time for ever.
            if client.ends_at is None:
                client.ends_at = now + self._write_deadline
            return self._end(client, "slow-consumer") if client.ends_at <= now else self._tick
        if client.expires_at is not None and client.expires_at <= self._wall_clock():
            return self._end(client, "expired")
        if client.ends_at is not None and client.ends_at <= now:
            return self._end(client, "max-age")
        if blocked_since is None:
            if client.admitted:
                # As good as all come this way, every quarter of a minute: what it costs is what an idle connection costs.
                if now - client.last_sent >= self._least:
                    client.send(frame, now)
                    self.sent += 1
                due = client.last_sent + random.uniform(self._least, self._most)
            else:
                due = client.opened_at + self._admit_deadline
                if due <= now:
                    return self._end(client, "unavailable")
        return self._until(client, due, now)

    def _end(self, client: Client, reason: str) -> float:
        self._clients.end(client, reason)
        return self._tick

    def _until(self, client: Client, due: float, now: float) -> float:
        """After how many seconds to look, where ``due`` is known: no later than its end, nor than may go unnoticed."""
        if client.ends_at is not None and client.ends_at < due:
            due = client.ends_at
        delay = max(self._tick, min(self._look, due - now))
        if client.expires_at is not None:
            delay = min(delay, max(0.0, client.expires_at - self._wall_clock()))
        return delay
