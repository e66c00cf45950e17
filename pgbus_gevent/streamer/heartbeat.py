"""The heartbeat: keeps quiet connections alive, and ends connections whose deadline is over.

There is no timer for each connection. A schedule of slots holds each client in the slot in which it is due next, so clients are
not all due at once, and a client is not checked before it is due.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from time import monotonic, time

import gevent

from ..core import sse
from ..core.backlog import HURRY, MAX_BYTES
from ..core.board import Board
from ..core.client import Client
from ..core.retries import Trouble
from .clients import Clients

logger = logging.getLogger("pgbus_gevent.streamer")

_MAX_TICK = 0.25  # seconds

_SPREAD = 0.25
"""The share of the interval by which a heartbeat may be sent early, at random.

After a broadcast all connections fall silent together, and their heartbeats must not all be due at once. A heartbeat is never
late, because the interval is usually chosen to stay below the idle timeout of a proxy.
"""


def tick_of(interval: float, write_deadline: float, admit_deadline: float) -> float:
    """Return the length of a slot in seconds, short enough for each of the deadlines, which are in seconds too."""
    return min(_MAX_TICK, min(interval, write_deadline) / 8, admit_deadline / 4)


class Heartbeat:
    """The greenlet that checks connections; :meth:`run` is its loop.

    It takes the clients that are due from the board's schedule. ``interval`` is the longest silence before a heartbeat. A client
    that takes no byte for ``write_deadline`` is a slow consumer, and so are the slowest if too many bytes wait. A client
    that is not admitted within ``admit_deadline``, because the database is away, is sent away with the reason ``unavailable``. All
    are in seconds. ``wall_clock`` returns Unix seconds.
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
        self._board = board
        self._schedule = board.schedule
        self._clients = clients
        self._write_deadline = write_deadline
        self._admit_deadline = admit_deadline
        # Rare enough that nearly every check sends a heartbeat. A client that stops reading just after a check is noticed at the
        # next one, before its deadline is over, and is checked again at the deadline.
        self._longest = min(interval, write_deadline)
        self._tick = board.schedule.tick
        # A client is checked up to one tick after its slot, and the slot ends up to one tick after the due time.
        self._most = interval - 2 * self._tick
        self._least = self._most - interval * _SPREAD
        self._clock = clock
        self._wall_clock = wall_clock
        self.sent = 0
        self._flood = Trouble(
            logger,
            f"more than %d MB wait for clients that read slowly: closing those that have waited longest, after {HURRY:g} s."
            " They come back with their cursors. Lower max_connections, or publish smaller messages",
        )

    def run(self) -> None:
        """Check the connections that are due, for ever."""
        while True:
            gevent.sleep(self._tick)
            self.check_due()

    def check_due(self) -> None:
        """Check all clients that are due, and put each into its next slot. It does not yield."""
        now = self._clock()
        schedule = self._schedule
        while schedule.new:
            client = next(iter(schedule.new))
            # At a random time, because many clients may have come at the same moment.
            delay = self._until(client, client.opened_at + self._admit_deadline, now) * random.uniform(0.5, 1.0)
            schedule.put(client, now + delay)
        self._hurry(now)
        frame = sse.heartbeat(self._wall_clock())
        for client in schedule.due(now):
            delay = self._check(client, frame, now)
            # A client that is closing stays in the schedule as long as bytes wait for it.
            if client.reason is None or client.blocked_since is not None:
                schedule.put(client, now + delay)

    def _hurry(self, now: float) -> None:
        """If too many bytes wait, end the clients for which they have waited longest, until few enough wait."""
        backlog = self._board.backlog
        if not backlog.is_full:
            self._flood.ends()
            return
        self._flood.begins(MAX_BYTES >> 20)
        for client in backlog.longest(now):
            self._end(client, "slow-consumer")
            if not backlog.is_full:
                return

    def _check(self, client: Client, frame: bytes, now: float) -> float:
        """Do what is due for one client. Return after how many seconds to check it again."""
        blocked_since = client.blocked_since
        if blocked_since is not None:
            due = blocked_since + self._write_deadline
            if due <= now:
                return self._end(client, "slow-consumer")
        if client.reason is not None:
            # Its last frame waits to be sent. The client has a deadline, so that it cannot take one byte at a time for ever.
            if client.ends_at is None:
                client.ends_at = now + self._write_deadline
            return self._end(client, "slow-consumer") if client.ends_at <= now else self._tick
        if client.expires_at is not None and client.expires_at <= self._wall_clock():
            return self._end(client, "expired")
        if client.ends_at is not None and client.ends_at <= now:
            reason = client.over()
            return self._end(client, reason) if reason is not None else self._tick
        if blocked_since is None:
            if client.admitted:
                for subscription in client.subscriptions:
                    if (subscription.cursor or 0) < subscription.log.head:
                        # It may rest below messages for others. If it stayed there, they could be pruned, and a read would then
                        # report a gap that is none.
                        self._board.ready.add(subscription)
                # Nearly every check ends here, so this is what an idle connection costs.
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
        """Return after how many seconds to check a client that is due at ``due``: no later than its end or its expiry."""
        if client.ends_at is not None and client.ends_at < due:
            due = client.ends_at
        delay = max(self._tick, min(self._longest, due - now))
        if client.expires_at is not None:
            delay = min(delay, max(0.0, client.expires_at - self._wall_clock()))
        return delay
