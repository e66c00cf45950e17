"""Slows down those who are refused and come back at once, whatever they were told.

Some clients take the end of an answer with status 200 as a reason to connect again without a pause: one made six thousand
connections in forty seconds. A status that stops it would stop an EventSource for good too, so its refusals are held back. Only
refusals wait: whoever can be served is served at once, also in the middle of such a wait.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from time import monotonic

import gevent

LEAST = 5.0
"""Seconds: the least that is told to anybody who is refused, and the longest that a refusal is held."""

BURST = 30
"""Refusals that are answered at once, for many may be behind one address, and ask in the same words."""

MAX_KNOWN = 4096
"""Clients that are remembered; of more, the one that was refused first is forgotten."""

MAX_HELD = 100
"""Refusals that are held at once: each has a greenlet and a socket. One more is answered at once."""

HELD_SHARE = 8
"""Held refusals take one part of so many of the limit of open files at the most."""

_LOOK = 0.25


class Returners:
    """When each client could have come for all its refusals, had it kept to what it was told.

    A client is a number made of its address and its request, so several may count as one: then some are refused a little later.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._due: dict[int, float] = {}  # oldest first
        self.held = 0

    def hold(self, client: int, over: Callable[[], bool]) -> None:
        """Wait, at most :data:`LEAST` seconds, where the client came too soon too often; ``over`` ends that early."""
        now = self._clock()
        due = max(self._due.pop(client, now), now)
        if len(self._due) >= MAX_KNOWN:
            del self._due[next(iter(self._due))]
        # No further ahead than that, so that a client which learns better is not held for long.
        self._due[client] = min(due, now + BURST * LEAST) + LEAST
        until = min(due - (BURST - 1) * LEAST, now + LEAST)
        if until <= now or self.held >= _most_held():
            return
        self.held += 1
        try:
            while (left := until - self._clock()) > 0 and not over():
                gevent.sleep(min(left, _LOOK))
        finally:
            self.held -= 1


def _most_held() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_HELD if soft == resource.RLIM_INFINITY else min(MAX_HELD, soft // HELD_SHARE)
