"""Sends ephemeral messages: to all at once who take bytes, and to the others when they do again. A part of the dispatcher."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

from ..core.audience import Audience
from ..core.client import Client, Subscription
from ..core.hints import HintLog, Hints
from ..core.registry import Registry
from ..core.stream_log import Chunk, Frame
from .turns import Steps, Turns

logger = logging.getLogger("pgbus_gevent.dispatcher")

HINT_BYTES = 64 * 1024
"""About how much one send carries."""

SLICE = 100
"""Connections of one stream that are served before the next stream has its turn."""


class HintPasses:
    """Passes run in ``turns``; ``send`` gives bytes to a client for which nothing waits. Nothing else here yields."""

    def __init__(
        self,
        registry: Registry,
        audience: Audience,
        turns: Turns,
        *,
        send: Callable[[Client, bytes, float], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._registry = registry
        self._audience = audience
        self._turns = turns
        self._give = send
        self._clock = clock
        self._hints = Hints()
        self._dropping = False
        self._missing = False
        self.dropped = 0
        self.missed = 0

    def add(self, stream: str, frame: Frame) -> None:
        """Have a message sent to who is connected now, or dropped where too many wait."""
        log = self._hints.add(stream, frame)
        if log is None:
            if not self._dropping:
                waiting, size = self._hints.waiting, self._hints.bytes
                logger.warning(
                    "%d ephemeral messages (%d bytes) wait: dropping new ones, first of %r", waiting, size, stream
                )
            self._dropping = True
            self.dropped += 1
        elif not log.passing:
            self._begin(stream, log)

    def _begin(self, stream: str, log: HintLog) -> None:
        log.passing = True
        self._turns.add(self._pass(stream, log))

    def _pass(self, stream: str, log: HintLog) -> Steps:
        # One pass over a stream at a time, as two would overtake each other.
        while log.passed < log.end:
            chunk, now = log.take(HINT_BYTES), self._clock()
            for n, subscription in enumerate(self._registry.subscriptions(stream), 1):
                if n % SLICE == 0:
                    yield
                    now = self._clock()
                if subscription.cursor is None or subscription.client.closed or log.knows(subscription):
                    continue
                if subscription.client.blocked_since is None and not subscription.waiting:
                    self._send(subscription, chunk, now)
                else:
                    log.falls_behind(subscription)
            log.took()
            if not self._hints.waiting:
                self._dropping = False
            if log.passed < log.end:
                yield
        log.passing = False
        self._hints.tidy(stream)

    def _send(self, subscription: Subscription, chunk: Chunk, now: float) -> None:
        data = self._audience.ephemerals_for(subscription, chunk)
        if data:
            self._give(subscription.client, data, now)

    def step(self, subscription: Subscription) -> bool:
        """Send one connection the next of what it is behind on, if it is; whether it can take more."""
        stream, client = subscription.log.name, subscription.client
        log = self._hints.log(stream)
        if log is None or subscription not in log.behind:
            return False
        # For a page that a reader brings it has to take bytes: whose turn that is, gives way to it.
        if client.closed or client.blocked_since is not None or subscription.waiting:
            return False
        chunk, missed = log.next_for(subscription, HINT_BYTES)
        if missed:
            self._tell(stream, missed)
        self._send(subscription, chunk, self._clock())
        more = subscription in log.behind
        self._hints.tidy(stream)
        if not len(self._hints):
            self._missing = False
        return more

    def _tell(self, stream: str, missed: int) -> None:
        self.missed += missed
        if not self._missing:
            logger.warning(
                "ephemeral messages of %r come faster than a client reads: it has missed %d of them", stream, missed
            )
        self._missing = True

    def forget(self, subscription: Subscription) -> None:
        """The client has left."""
        self._hints.forget(subscription)

    def resume(self) -> list[Subscription]:
        """Begin what a run that died left undone; who is behind, and has to be brought."""
        behind: list[Subscription] = []
        for stream, log in self._hints:
            log.took()
            behind += log.behind
            self._begin(stream, log)
        return behind
