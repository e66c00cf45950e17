"""Slows down clients that are refused and reconnect at once, although the refusal asked them to wait.

Some clients reconnect without a pause when an answer with status 200 ends; one made six thousand connections in forty seconds. A
status that stops such a client would stop an EventSource for good too, so its refusals are delayed. Only refusals are delayed. If
a client can be served in the meantime, it is served at once.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from time import monotonic

import gevent

LEAST = 5.0
"""Seconds. No refusal asks a client to wait for less, and no refusal is delayed for longer."""

BURST = 30
"""Refusals that are answered at once, because many clients may share an address and send the same request."""

MAX_KNOWN = 4096
"""The most clients that are remembered. Beyond that, the client that was refused first is forgotten."""

MAX_HELD = 100
"""The most refusals that are delayed at the same time, because each takes a greenlet and a socket. Others are answered at once."""

HELD_SHARE = 8
"""Delayed refusals take at most an eighth of the limit of open files."""

_LOOK = 0.25


class Returners:
    """Remembers for each client when its refusals would be due if it had waited as they asked.

    A client is a number made from its address and its request, so several clients may count as one. Then some are refused a little
    later.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._due: dict[int, float] = {}  # oldest first
        self.held = 0

    def hold(self, client: int, over: Callable[[], bool]) -> None:
        """Wait at most :data:`LEAST` seconds if the client came back too soon too often, and no longer once ``over()`` is true.

        The greenlet of the request waits here. The greenlets of other requests run meanwhile. Each changes the entry of its client
        before it waits, and ``held`` before and after, so no change is lost.
        """
        now = self._clock()
        due = max(self._due.pop(client, now), now)
        if len(self._due) >= MAX_KNOWN:
            del self._due[next(iter(self._due))]
        # Bounded, so that a client is not delayed for long once it begins to wait as asked.
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
