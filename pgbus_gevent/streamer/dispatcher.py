"""Brings connections from their cursors to the heads of their streams.

Nobody has a queue of messages. A pass over a stream sends each connection, in one go, all that lies between its cursor and the
head. Messages that arrive during a pass go out with the next one, so the batches grow with the load.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from ..core.audience import Audience
from ..core.board import Board, Page
from ..core.client import Client, Subscription
from ..core.events import Gap, Passed
from ..core.filters import Filters
from ..core.greeting import greeting
from ..core.identity import Identities
from ..core.replay import admit, missed
from ..core.stream_log import Chunk, StreamLog
from .clients import Clients
from .hint_passes import HintPasses
from .turns import Job, Turns

logger = logging.getLogger("pgbus_gevent.dispatcher")

CHUNK_BYTES = 64 * 1024
"""About how much one send carries, and so how much is kept for a client that then stops reading."""

SLICE = 100
"""Connections of one stream that are served before the next stream has its turn."""

BEHIND_SLICE = 5
"""The same for connections that are behind: each is sent up to :data:`CHUNK_BYTES`, ten times what a live one costs."""

_CACHED_CURSORS = 32

_Key = TypeVar("_Key")
_Place = tuple[StreamLog, int, int, int]  # with its epoch, a cursor, and the head


class StreamEventDispatcher:
    """The greenlet that writes to clients; :meth:`run` is its loop.

    It takes from the board the streams that moved, the subscriptions that are ready to be served, and the pages that were read
    for those that are behind. Each is a job, and all jobs take turns. No other greenlet runs between two ``yield`` of a job, so a
    cursor and the bytes that it stands for move together.

    Clients are told to come back after ``retry`` seconds if their connection is lost, and to expect a heartbeat every ``heartbeat``
    seconds.
    """

    def __init__(
        self,
        board: Board,
        clients: Clients,
        *,
        filters: Filters | None = None,
        identities: Identities | None = None,
        retry: float = 2.0,
        heartbeat: float = 15.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._board = board
        self._clients = clients
        self._audience = Audience(filters or Filters())
        self._identities = identities
        self._retry = retry
        self._heartbeat = heartbeat
        self._clock = clock
        self._passed = board.events.signal(Passed)
        self._gaps = board.events.signal(Gap)
        self._hints = HintPasses(board, clients, self._audience, clock)
        self.sends = 0
        self.passes = 0

    @property
    def missed(self) -> int:
        """How many ephemeral messages clients missed that read too slowly, counted for each client."""
        return self._hints.missed

    # the loop

    def run(self) -> None:
        """Serve clients, for ever."""
        board, turns = self._board, Turns(self._clock)
        with board.delivering():
            while True:
                if board.delivery.is_set():
                    board.delivery.clear()
                    turns.add(self._new_jobs())
                if turns:
                    turns.step()
                else:
                    board.delivery.wait()
                    turns.start()

    def _new_jobs(self) -> list[Job]:
        """A job for each piece of work on the board that has none yet."""
        board = self._board
        jobs = [self._pass(log) for log in board.moved.take()]
        if board.ready and not board.ready.taken:
            jobs.append(self._bring(board.ready.take()))
        jobs += [self._serve(page) for page in board.pages.take()]
        jobs += [self._hints.run(log) for log in board.hinted.take()]
        return jobs

    # jobs: each `yield` is where others have their turn

    def _pass(self, log: StreamLog) -> Job:
        """Bring all connections of a stream to its head."""
        head, epoch = log.head, log.epoch
        appended_at, log.appended_at = log.appended_at, None
        began = now = self._clock()
        sent = 0
        chunks: dict[int, Chunk | None] = {}
        self.passes += 1
        board = self._board
        waiting = board.waiting(log)
        for n, subscription in enumerate(board.registry.subscriptions(log.name), 1):
            if n % SLICE == 0:
                yield
                now, waiting = self._clock(), board.waiting(log)
                if (log.head, log.epoch) != (head, epoch):
                    # What came meanwhile goes out to the rest. Those that were served already get it from the next pass.
                    head, epoch = log.head, log.epoch
                    chunks.clear()
            cursor, client = subscription.cursor, subscription.client
            if cursor is None or cursor >= head or client.reason is not None or client.blocked_since is not None:
                continue
            if waiting and subscription in waiting:
                continue
            # Nearly all stand at the same cursor, so their frames are joined once.
            chunk = chunks[cursor] if cursor in chunks else _cache(chunks, cursor, log.after(cursor, CHUNK_BYTES))
            if chunk is None or (chunk.strange and subscription.unproven) or subscription.lost is not None:
                board.wait(subscription)
                waiting = board.waiting(log)
                continue
            if chunk.data is not None and len(client.subscriptions) == 1:
                # What _send does for nearly all, without its calls: they are a tenth of what a delivery costs.
                subscription.cursor = chunk.cursor
                try:
                    client.send(chunk.data, now)
                except Exception:
                    self._clients.broken(client)
            else:
                self._send(subscription, chunk, now)
            sent += 1
            if chunk.cursor < head:
                board.ready.add(subscription)
        self.sends += sent
        if self._passed.handlers:
            self._passed.emit(Passed(log.name, sent, self._clock() - began, appended_at))
        # Only now: two passes over one stream would each look at all of its connections, and send to many of them twice.
        board.moved.done(log)

    def _bring(self, subscriptions: list[Subscription]) -> Job:
        """Admit or advance connections that are ready, one after the other. There is one such job at a time."""
        ready = self._board.ready
        # Clients that come back at once stand at a few cursors, so the frames that they lack are joined once for each.
        chunks: dict[_Place, Chunk | None] = {}
        for n, subscription in enumerate(subscriptions, 1):
            if subscription.cursor is None:
                self._admit(subscription)
            if self._advance(subscription, chunks):
                ready.add(subscription)  # behind those that wait: one that is far behind takes turns with the others
            ready.done(subscription)
            if n % BEHIND_SLICE == 0:
                yield

    def _serve(self, page: Page) -> Job:
        """Send a page from the database to all clients that stand within it."""
        board, log = self._board, page.log
        chunks: dict[int, Chunk | None] = {}
        served = 0
        for subscription in list(board.waiting(log)):
            cursor = subscription.cursor
            if not page.current:
                break  # the log was rewound: those that still wait have other cursors now
            if cursor is None or not page.serves(cursor) or not board.stop_waiting(subscription):
                continue
            if _takes_bytes(subscription.client):
                self._send_page(subscription, page, cursor, chunks)
            board.ready.add(subscription)
            served += 1
            if served % BEHIND_SLICE == 0:
                yield
        board.served(page)

    def _send_page(self, subscription: Subscription, page: Page, cursor: int, chunks: dict[int, Chunk | None]) -> None:
        history, now = page.history, self._clock()
        if subscription.unproven and history.refutes(cursor):
            # The next page tells the client so, and starts again with all that is retained.
            subscription.lost, subscription.cursor = cursor, 0
            return
        gap = self._gap(subscription, cursor, history.horizon, history.oldest, history.newest)
        cursor = subscription.cursor = max(cursor, history.horizon)
        chunk = chunks[cursor] if cursor in chunks else _cache(chunks, cursor, history.after(cursor))
        if chunk is not None:
            self._send(subscription, chunk, now, gap)
            self.sends += 1
        elif gap:
            self._clients.give(subscription.client, gap, now)

    # one connection

    def _admit(self, subscription: Subscription) -> None:
        """Decide where a client starts, in all of its streams, and greet it; or have the database asked first."""
        client = subscription.client
        if client.closed:
            return
        admissions = []
        for each in client.subscriptions:
            admission = None if each in self._board.waiting(each.log) else admit(each)
            if admission is None:
                self._board.wait(each)
            else:
                admissions.append(admission)
        if len(admissions) < len(client.subscriptions):
            return  # each answer makes the client ready again
        for each, admission in zip(client.subscriptions, admissions, strict=True):
            each.cursor = admission.cursor
            if admission.gap:
                self._gaps.emit(Gap(each.log.name, "invalid-cursor" if each.place.invalid_cursor else "ahead"))
        hello = greeting(client, self._identities, retry_after=self._retry, heartbeat=self._heartbeat)
        self._clients.give(client, hello + b"".join(each.gap for each in admissions), self._clock())
        for each in client.subscriptions:
            if each is not subscription:
                self._board.ready.add(each)

    def _advance(self, subscription: Subscription, chunks: dict[_Place, Chunk | None]) -> bool:
        """Send one connection the next of what it lacks, messages and ephemeral ones; whether it can take more."""
        if subscription.cursor is None or not self._may_send(subscription):
            return False
        # By turns, as its socket may take no more than one of the two.
        subscription.hinted = not subscription.hinted
        if subscription.hinted:
            more = self._hints.step(subscription)
            return self._step(subscription, chunks) or more
        more = self._step(subscription, chunks)
        return self._hints.step(subscription) or more

    def _step(self, subscription: Subscription, chunks: dict[_Place, Chunk | None]) -> bool:
        """Send one connection the next frames of the ring; whether it can take more."""
        log, cursor = subscription.log, subscription.cursor
        if cursor is None or not self._may_send(subscription):
            return False  # what had the first turn may have filled its socket
        if subscription.lost is not None:
            self._board.wait(subscription)  # what it has to be told is what is retained, which only the table knows
            return False
        if cursor >= log.head:
            return False
        key = (log, log.epoch, cursor, log.head)
        chunk = chunks[key] if key in chunks else _cache(chunks, key, log.after(cursor, CHUNK_BYTES))
        if chunk is None or (chunk.strange and subscription.unproven):
            self._board.wait(subscription)
            return False
        self._send(subscription, chunk, self._clock())
        self.sends += 1
        return chunk.cursor < log.head

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
            self._clients.give(subscription.client, data, now)

    def _gap(self, subscription: Subscription, cursor: int, horizon: int, oldest: int, newest: int) -> bytes:
        reason, frame = missed(subscription, cursor, horizon, oldest, newest)
        if reason:
            subscription.lost = None
            self._gaps.emit(Gap(subscription.log.name, reason))
        return frame

    def _may_send(self, subscription: Subscription) -> bool:
        return subscription not in self._board.waiting(subscription.log) and _takes_bytes(subscription.client)


def _takes_bytes(client: Client) -> bool:
    return client.reason is None and client.blocked_since is None


def _cache(chunks: dict[_Key, Chunk | None], key: _Key, chunk: Chunk | None) -> Chunk | None:
    # Bounded: each holds its frames joined, and there may be as many cursors as clients.
    if len(chunks) >= _CACHED_CURSORS:
        chunks.clear()
    chunks[key] = chunk
    return chunk
