"""Looks at every connection now and then: keeps the quiet ones alive, ends those whose time is over.

One sweep in slots over the interval, and not a timer for each connection: a connection stands in the slot in which it is due
next, so that neither all are due at once nor anybody is looked at in vain.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from time import monotonic, time

import gevent

from ..core import sse
from ..core.client import Client

_MAX_TICK = 0.25  # seconds

_SPREAD = 1.25
"""A heartbeat goes out after one to so many intervals: after a broadcast to all, all are quiet from the same moment on."""


class Heartbeat:
    """The greenlet that sweeps; :meth:`run` is its loop. :meth:`watch` and :meth:`forget` never yield.

    ``interval`` is after how long a silence a heartbeat goes out; a client that takes no byte for ``write_deadline`` is a slow
    consumer; one that nobody could tell where it starts within ``admit_deadline`` is refused; all in seconds. ``on_end`` is given a
    client and the reason why it is to be closed.
    """

    def __init__(
        self,
        *,
        interval: float,
        write_deadline: float,
        admit_deadline: float,
        on_end: Callable[[Client, str], None],
        clock: Callable[[], float] = monotonic,
        wall_clock: Callable[[], float] = time,
    ) -> None:
        self._interval = interval
        self._write_deadline = write_deadline
        self._admit_deadline = admit_deadline
        # Seldom enough that nearly each look is a heartbeat. One that stops reading just after it was looked at is found at the
        # next, before its deadline is over, and is looked at again when that is.
        self._look = min(interval * _SPREAD, write_deadline)
        self._tick = min(_MAX_TICK, self._look / 4, admit_deadline / 4)
        self._on_end = on_end
        self._clock = clock
        self._wall_clock = wall_clock
        self._slots: dict[int, dict[Client, None]] = {}
        self._done = math.floor(clock() / self._tick)
        self.sent = 0

    def watch(self, client: Client) -> None:
        """A connection was opened."""
        now = self._clock()
        self._place(client, now, self._delay(client, now) * random.uniform(0.5, 1.0))

    def forget(self, client: Client) -> None:
        """A connection has ended."""
        slot = self._slots.get(client.due)
        if slot is not None and slot.pop(client, self) is None and not slot:
            del self._slots[client.due]

    def _place(self, client: Client, now: float, delay: float) -> None:
        client.due = max(self._done + 1, math.ceil((now + delay) / self._tick))
        self._slots.setdefault(client.due, {})[client] = None

    def run(self) -> None:
        """Sweep, for ever."""
        while True:
            gevent.sleep(self._tick)
            self.sweep()

    def sweep(self) -> None:
        """Look at all that are due."""
        now = self._clock()
        self._done = math.floor(now / self._tick)
        frame = sse.heartbeat(self._wall_clock())
        for slot in sorted(slot for slot in self._slots if slot <= self._done):
            clients = self._slots[slot]
            while clients:
                # One by one, so that the others are still there should this one raise.
                client, _ = clients.popitem()
                delay = self._look_at(client, frame, now)
                # One that is closing stays as long as something waits for it.
                if not client.closed or client.blocked_since is not None:
                    self._place(client, now, delay)
            self._slots.pop(slot, None)

    def _look_at(self, client: Client, frame: bytes, now: float) -> float:
        """Do what is due for one client; after how many seconds to look again."""
        reason = self._reason_to_end(client, now)
        if reason is not None:
            self._on_end(client, reason)
            return self._look
        if client.admitted and client.blocked_since is None and now - client.last_sent >= self._interval:
            client.send(frame, now)
            self.sent += 1
        return self._delay(client, now)

    def _delay(self, client: Client, now: float) -> float:
        """After how many seconds there may be something to do for a client."""
        due = client.last_sent + self._interval * random.uniform(1.0, _SPREAD)
        if client.blocked_since is not None:
            due = client.blocked_since + self._write_deadline
        elif not client.admitted:
            due = client.opened_at + self._admit_deadline
        if client.ends_at is not None:
            due = min(due, client.ends_at)
        delay = max(self._tick, min(self._look, due - now))
        return delay if client.closed else min(delay, self._until_expiry(client))

    def _until_expiry(self, client: Client) -> float:
        expires_at = client.expires_at
        return math.inf if expires_at is None else max(0.0, expires_at - self._wall_clock())

    def _reason_to_end(self, client: Client, now: float) -> str | None:
        if client.blocked_since is not None and now - client.blocked_since >= self._write_deadline:
            return "slow-consumer"
        if client.closed:
            # It was told why, and still takes what waits for it; not a byte at a time for ever.
            if client.ends_at is None:
                client.ends_at = now + self._write_deadline
            return "slow-consumer" if now >= client.ends_at else None
        if client.expires_at is not None and self._wall_clock() >= client.expires_at:
            return "expired"
        if client.ends_at is not None and now >= client.ends_at:
            return "max-age"
        if not client.admitted and now - client.opened_at >= self._admit_deadline:
            return "unavailable"
        return None
