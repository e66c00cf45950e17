"""The dispatcher's jobs for ephemeral messages: they go to clients at once, and to blocked clients when they take bytes again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic

from ..core.audience import Audience
from ..core.board import Board
from ..core.client import Subscription
from ..core.ephemeral_buffers import EphemeralBuffer
from ..core.frames import Chunk
from ..core.retries import Trouble
from .clients import Clients
from .turns import SLICE, Job

logger = logging.getLogger("pgbus_gevent.dispatcher")

EPHEMERAL_BYTES = 64 * 1024
"""About how many bytes one send carries."""


class EphemeralPasses:
    """The dispatcher's jobs for ephemeral messages.

    Only the dispatcher's greenlet calls it. :meth:`run` is a job: at each ``yield`` other jobs and other greenlets may run. The
    other methods do not yield.
    """

    def __init__(
        self, board: Board, clients: Clients, audience: Audience, clock: Callable[[], float] = monotonic
    ) -> None:
        self._board = board
        self._clients = clients
        self._audience = audience
        self._clock = clock
        self._slowness = Trouble(
            logger, "ephemeral messages of %r come faster than a client reads them: it has missed %d"
        )
        self.missed = 0

    def run(self, buffer: EphemeralBuffer) -> Job:
        """Send the messages that wait in ``buffer``. A stream has one such job at a time, because two would mix up the order."""
        buffer.took()  # ends a pass that did not finish because the dispatcher died
        while buffer.passed < buffer.end:
            chunk, now = buffer.take(EPHEMERAL_BYTES), self._clock()
            for n, subscription in enumerate(self._audience.receivers(buffer.stream, _labels(chunk)), 1):
                if n % SLICE == 0:
                    yield
                    now = self._clock()
                if subscription.cursor is None or subscription.client.closed or buffer.knows(subscription):
                    continue
                if subscription.client.blocked_since is None and subscription not in self._waiting(subscription):
                    self._send(subscription, chunk, now)
                else:
                    buffer.skip(subscription)
            buffer.took()
            if buffer.passed < buffer.end:
                yield
        self._board.ephemerals_sent(buffer)

    def _waiting(self, subscription: Subscription) -> dict[Subscription, None]:
        return self._board.waiting(subscription.log)

    def _send(self, subscription: Subscription, chunk: Chunk, now: float) -> None:
        data = self._audience.ephemerals_for(subscription, chunk)
        if data:
            self._clients.give(subscription.client, data, now)

    def step(self, subscription: Subscription) -> bool:
        """Send one connection the next messages that were kept for it, if any. Return whether it can take more."""
        stream, client = subscription.log.name, subscription.client
        buffer = self._board.ephemeral_buffers.buffer(stream)
        if buffer is None or subscription not in buffer.skipped:
            return False
        # If the client waits for a page, the page is sent first.
        if client.closed or client.blocked_since is not None or subscription in self._waiting(subscription):
            return False
        chunk, missed = buffer.next_for(subscription, EPHEMERAL_BYTES)
        if missed:
            self.missed += missed
            self._slowness.begins(stream, missed)
        self._send(subscription, chunk, self._clock())
        more = subscription in buffer.skipped
        self._board.ephemeral_buffers.tidy(stream)
        if not len(self._board.ephemeral_buffers):
            self._slowness.ends()
        return more


def _labels(chunk: Chunk) -> frozenset[str] | None:
    """Return the labels of a chunk, or None if a frame has none."""
    return None if any(frame.visible_to is None for frame in chunk.frames) else chunk.labels
