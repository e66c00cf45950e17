"""The dispatcher's jobs for ephemeral messages: at once to the clients that take bytes, and to the others when they do again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

from ..core.audience import Audience
from ..core.board import Board
from ..core.client import Subscription
from ..core.hints import HintLog
from ..core.retries import Trouble
from ..core.stream_log import Chunk
from .clients import Clients
from .turns import Job

logger = logging.getLogger("pgbus_gevent.dispatcher")

HINT_BYTES = 64 * 1024
"""About how much one send carries."""

SLICE = 100
"""Connections of one stream that are served before the next stream has its turn."""


class HintPasses:
    """The dispatcher's jobs for ephemeral messages. Only :meth:`run` gives way, at each ``yield``."""

    def __init__(
        self, board: Board, clients: Clients, audience: Audience, clock: Callable[[], float] = monotonic
    ) -> None:
        self._board = board
        self._clients = clients
        self._audience = audience
        self._clock = clock
        self._slowness = Trouble(
            logger, "ephemeral messages of %r come faster than a client reads: it has missed %d of them"
        )
        self.missed = 0

    def run(self, log: HintLog) -> Job:
        """Send what waits in ``log``. There is one such job for a stream at a time, as two would overtake each other."""
        log.took()  # a pass that was broken off
        while log.passed < log.end:
            chunk, now = log.take(HINT_BYTES), self._clock()
            for n, subscription in enumerate(self._board.registry.subscriptions(log.stream), 1):
                if n % SLICE == 0:
                    yield
                    now = self._clock()
                if subscription.cursor is None or subscription.client.closed or log.knows(subscription):
                    continue
                if subscription.client.blocked_since is None and subscription not in self._waiting(subscription):
                    self._send(subscription, chunk, now)
                else:
                    log.falls_behind(subscription)
            log.took()
            if log.passed < log.end:
                yield
        self._board.hints_sent(log)

    def _waiting(self, subscription: Subscription) -> dict[Subscription, None]:
        return self._board.waiting(subscription.log)

    def _send(self, subscription: Subscription, chunk: Chunk, now: float) -> None:
        data = self._audience.ephemerals_for(subscription, chunk)
        if data:
            self._clients.give(subscription.client, data, now)

    def step(self, subscription: Subscription) -> bool:
        """Send one connection the next of what it is behind on, if anything; whether it can take more."""
        stream, client = subscription.log.name, subscription.client
        log = self._board.hints.log(stream)
        if log is None or subscription not in log.behind:
            return False
        # A page comes first: if the client has to wait for one, it gets these afterwards.
        if client.closed or client.blocked_since is not None or subscription in self._waiting(subscription):
            return False
        chunk, missed = log.next_for(subscription, HINT_BYTES)
        if missed:
            self.missed += missed
            self._slowness.begins(stream, missed)
        self._send(subscription, chunk, self._clock())
        more = subscription in log.behind
        self._board.hints.tidy(stream)
        if not len(self._board.hints):
            self._slowness.ends()
        return more
