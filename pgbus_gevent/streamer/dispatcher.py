"""Brings connections from their cursors to the heads of their streams.

Delivery is level-triggered: a connection is behind, or it is not. There is no queue of messages for anybody; a pass over a
stream sends each connection, in one go, all that lies between its cursor and the head. What arrives during a pass goes with
the next one, so the busier it gets, the larger the batches.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from ..core.audience import Audience
from ..core.client import Client, Subscription, admit, missed
from ..core.events import Gap, Passed, Signal
from ..core.filters import Filters
from ..core.greeting import Identify, greeting
from ..core.history import History
from ..core.registry import Registry
from ..core.stream_log import Chunk, Frame, StreamLog
from .hint_passes import HintPasses
from .turns import Steps, Turns, breathe

logger = logging.getLogger("pgbus_gevent.dispatcher")

CHUNK_BYTES = 64 * 1024
"""About how much one send carries, and so what a client that then stops reading makes us keep."""

SLICE = 100
"""Connections of one stream that are served before the next stream has its turn."""

BEHIND_SLICE = 5
"""The same of connections that are behind: each is sent up to :data:`CHUNK_BYTES`, ten times what a live one costs."""

_CACHED_CURSORS = 32

_Key = TypeVar("_Key")
_Place = tuple[StreamLog, int, int, int]  # with its epoch, a cursor, and the head


class StreamEventDispatcher:
    """The greenlet that writes to clients; :meth:`run` is its loop.

    Anybody may call the other methods, none of which yields. ``on_behind`` is given who needs a read from the database (a cursor
    that the ring does not reach, or a start that only the database knows); ``on_error`` a client whose delivery raised.
    ``retry`` tells when a client that loses its connection is to come back, ``heartbeat`` is the interval that it is told; both
    in seconds. ``identify`` makes the identity of a connection with these subscribers.
    """

    def __init__(
        self,
        registry: Registry,
        filters: Filters,
        *,
        on_behind: Callable[[Subscription], None],
        on_error: Callable[[Client], None],
        retry: Callable[[], float],
        heartbeat: float = 15.0,
        identify: Identify = lambda *subscribers: None,
        clock: Callable[[], float] = monotonic,
        passed: Signal[Passed] | None = None,
        gaps: Signal[Gap] | None = None,
    ) -> None:
        self._passed = passed or Signal()
        self._gaps = gaps or Signal()
        self._registry = registry
        self._audience = Audience(filters)
        self._on_behind = on_behind
        self._on_error = on_error
        self._retry = retry
        self._heartbeat = heartbeat
        self._identify = identify
        self._clock = clock
        self._turns = Turns(clock)
        self._moved: set[StreamLog] = set()
        self._lagging: deque[Subscription] = deque()
        self._hints = HintPasses(registry, self._audience, self._turns, send=self._give, clock=clock)
        self.sends = 0
        self.passes = 0

    @property
    def dropped(self) -> int:
        """Ephemeral messages that went to nobody, as too many came."""
        return self._hints.dropped

    @property
    def missed(self) -> int:
        """Ephemeral messages that went by a client which read too slowly, counted for each client."""
        return self._hints.missed

    # what the other parts tell

    def moved(self, log: StreamLog) -> None:
        """The stream has new frames."""
        if log not in self._moved:
            self._moved.add(log)
            self._turns.add(self._pass(log))

    def rewound(self, log: StreamLog) -> None:
        """The table has lost what was above the log's head: who was sent it is told so, and gets all that is retained."""
        for subscription in self._registry.subscriptions(log.name):
            if subscription.cursor is not None and subscription.cursor > log.head:
                subscription.lost = max(subscription.cursor, subscription.lost or 0)
                subscription.cursor = 0
                self.bring(subscription)

    def bring(self, subscription: Subscription) -> None:
        """One connection may be behind: it is new, or can take bytes again."""
        if not self._lagging:
            self._turns.add(self._bring_lagging())
        self._lagging.append(subscription)

    def pass_on(self, stream: str, frame: Frame) -> None:
        """Send an ephemeral message to who is connected now."""
        self._hints.add(stream, frame)

    def forget(self, subscription: Subscription) -> None:
        """The client has left."""
        self._hints.forget(subscription)

    # the loop

    def run(self) -> None:
        """Serve streams in turns, for ever."""
        self._resume()
        self._turns.run()

    def _resume(self) -> None:
        """Find what a run that died left undone: who is behind shows by the cursors."""
        self._turns.clear()
        self._lagging.clear()
        self._moved.clear()
        for log in self._registry.logs():
            self.moved(log)
            for subscription in self._registry.subscriptions(log.name):
                if subscription.cursor is None or subscription.lost is not None:
                    self.bring(subscription)
        for subscription in self._hints.resume():
            self.bring(subscription)

    # passes; each `yield` is where other streams have their turn

    def _pass(self, log: StreamLog) -> Steps:
        first = head, epoch = (log.head, log.epoch)
        appended_at, log.appended_at = log.appended_at, None
        began = now = self._clock()
        sent = 0
        chunks: dict[int, Chunk | None] = {}
        self.passes += 1
        for n, subscription in enumerate(self._registry.subscriptions(log.name), 1):
            if n % SLICE == 0:
                yield
                now = self._clock()
                if (log.head, log.epoch) != (head, epoch):
                    # What came meanwhile goes out with the rest; those who were served already get it from the next pass.
                    head, epoch = log.head, log.epoch
                    chunks.clear()
            cursor, client = subscription.cursor, subscription.client
            if cursor is None or cursor >= head or not _may_send(subscription):
                continue
            if subscription.lost is not None:
                self._on_behind(subscription)
                continue
            # Nearly all stand at the same cursor, so their frames are joined once.
            chunk = chunks[cursor] if cursor in chunks else _cache(chunks, cursor, log.after(cursor, CHUNK_BYTES))
            if chunk is None or (chunk.strange and subscription.unproven):
                self._on_behind(subscription)
                continue
            if chunk.data is not None and len(client.subscriptions) == 1:
                # What _send does for nearly all, without its calls: they are a tenth of what a delivery costs.
                subscription.cursor = chunk.cursor
                try:
                    client.send(chunk.data, now)
                except Exception:
                    self._broken(client)
            else:
                self._send(subscription, chunk, now)
            sent += 1
            if chunk.cursor < head:
                self.bring(subscription)
        self.sends += sent
        if self._passed.handlers:
            self._passed.emit(Passed(log.name, sent, self._clock() - began, appended_at))
        # Only now: two passes over one stream would each look at all of its connections, and send to many of them twice.
        self._moved.discard(log)
        if (log.head, log.epoch) != first:
            self.moved(log)

    def _bring_lagging(self) -> Steps:
        served = 0
        # Those who come back at once stand at a few cursors, so what they lack is joined once for each.
        chunks: dict[_Place, Chunk | None] = {}
        while self._lagging:
            subscription = self._lagging.popleft()
            if subscription.cursor is None:
                self._admit(subscription)
            if self._advance(subscription, chunks):
                # Behind those who wait: one that is far behind takes turns with the others.
                self._lagging.append(subscription)
            served += 1
            if served % BEHIND_SLICE == 0 and self._lagging:
                yield

    def _step(self, subscription: Subscription, chunks: dict[_Place, Chunk | None]) -> bool:
        """Send one connection the next frames of the ring; whether it can take more."""
        log, cursor = subscription.log, subscription.cursor
        if cursor is None or not _may_send(subscription):
            return False  # what has the first turn may have filled its socket
        if subscription.lost is not None:
            self._on_behind(subscription)  # what it has to be told is what is retained, which only the table knows
            return False
        if cursor >= log.head:
            return False
        key = (log, log.epoch, cursor, log.head)
        chunk = chunks[key] if key in chunks else _cache(chunks, key, log.after(cursor, CHUNK_BYTES))
        if chunk is None or (chunk.strange and subscription.unproven):
            self._on_behind(subscription)
            return False
        self._send(subscription, chunk, self._clock())
        self.sends += 1
        return chunk.cursor < log.head

    def _advance(self, subscription: Subscription, chunks: dict[_Place, Chunk | None]) -> bool:
        """Send one connection what it lacks next, of messages and of ephemeral ones; whether it can take more."""
        if subscription.cursor is None or not _may_send(subscription):
            return False
        # By turns, as its socket may take no more than one of the two.
        subscription.hinted = not subscription.hinted
        if subscription.hinted:
            more = self._hints.step(subscription)
            return self._step(subscription, chunks) or more
        more = self._step(subscription, chunks)
        return self._hints.step(subscription) or more

    def serve(self, log: StreamLog, history: History, subscriptions: list[Subscription]) -> None:
        """Send a page from the database to all who stand within it; called by a reader, and gives way as it goes."""
        chunks: dict[int, Chunk | None] = {}
        now = self._clock()
        for n, subscription in enumerate(subscriptions, 1):
            if n % BEHIND_SLICE == 0:
                breathe()
                now = self._clock()
            # It may have left, or been blocked, while others were served.
            cursor = subscription.cursor
            if cursor is None or cursor < history.start or not _takes_bytes(subscription.client):
                continue
            if subscription.unproven and history.refutes(cursor):
                # The reader brings it back, to be told, and to get all that is retained.
                subscription.lost, subscription.cursor = cursor, 0
                continue
            gap = self._gap(subscription, cursor, history.horizon, history.oldest, history.newest)
            cursor = subscription.cursor = max(cursor, history.horizon)
            chunk = chunks[cursor] if cursor in chunks else _cache(chunks, cursor, history.after(cursor))
            if chunk is not None:
                self._send(subscription, chunk, now, gap)
                self.sends += 1
            elif gap:
                self._give(subscription.client, gap, now)

    def _gap(self, subscription: Subscription, cursor: int, horizon: int, oldest: int, newest: int) -> bytes:
        reason, frame = missed(subscription, cursor, horizon, oldest, newest)
        if reason:
            subscription.lost = None
            self._gaps.emit(Gap(subscription.log.name, reason))
        return frame

    # one connection

    def _admit(self, subscription: Subscription) -> None:
        """Decide where a connection starts, in all of its streams, and greet it, or have the database asked first."""
        client = subscription.client
        if client.closed:
            return
        admissions = []
        for each in client.subscriptions:
            admission = None if each.waiting else admit(each)
            if admission is not None:
                admissions.append(admission)
            elif not each.waiting:
                self._on_behind(each)
        if len(admissions) < len(client.subscriptions):
            return  # the reader brings us back for each one that was missing
        for each, admission in zip(client.subscriptions, admissions, strict=True):
            each.cursor = admission.cursor
            if admission.gap:
                self._gaps.emit(Gap(each.log.name, "invalid-cursor" if each.place.invalid_cursor else "ahead"))
        hello = greeting(client, self._identify, retry_after=self._retry(), heartbeat=self._heartbeat)
        self._give(client, hello + b"".join(each.gap for each in admissions), self._clock())
        self._lagging.extend(each for each in client.subscriptions if each is not subscription)

    def _send(self, subscription: Subscription, chunk: Chunk, now: float, before: bytes = b"") -> None:
        if chunk.hole and not before:
            first = chunk.frames[0]
            before = self._gap(subscription, subscription.cursor or 0, first.prev_id, first.id, chunk.cursor)
        # The cursor moves with the bytes, past what the client may not see too.
        subscription.cursor = chunk.cursor
        data = self._audience.frames_for(subscription, chunk)
        if before:
            data = before + data
        if data:
            self._give(subscription.client, data, now)

    def _give(self, client: Client, data: bytes, now: float) -> None:
        try:
            client.send(data, now)
        except Exception:
            self._broken(client)

    def _broken(self, client: Client) -> None:
        """One client's trouble must not keep the others from their messages."""
        logger.exception("delivery to connection %s failed; closing it", client.id)
        self._on_error(client)


def _may_send(subscription: Subscription) -> bool:
    return not subscription.waiting and _takes_bytes(subscription.client)


def _takes_bytes(client: Client) -> bool:
    return client.reason is None and client.blocked_since is None


def _cache(chunks: dict[_Key, Chunk | None], key: _Key, chunk: Chunk | None) -> Chunk | None:
    # Bounded: each holds its frames joined, and there may be as many cursors as clients.
    if len(chunks) >= _CACHED_CURSORS:
        chunks.clear()
    chunks[key] = chunk
    return chunk
