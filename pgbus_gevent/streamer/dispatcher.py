"""Brings connections from their cursors to the heads of their streams.

Connections have no queues of messages. A pass over a stream sends each connection, in one go, all messages between its cursor and
the head. Messages that arrive during a pass are sent together, so the number of messages in one send grows with the load.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from ..core.audience import Audience
from ..core.board import Board
from ..core.client import Client, Subscription
from ..core.events import Admitted, Gap, Passed
from ..core.filters import Filters
from ..core.frames import Chunk
from ..core.greeting import Greeter
from ..core.identity import Identities
from ..core.replay import Page, admit, missed
from ..core.stream_log import StreamLog
from .clients import Clients
from .ephemeral_passes import EphemeralPasses
from .turns import SLICE, Job, Turns

logger = logging.getLogger("pgbus_gevent.dispatcher")

CHUNK_BYTES = 64 * 1024
"""About how many bytes one send carries. As many are kept for a client that then stops reading."""

BEHIND_SLICE = 5
"""As :data:`SLICE`, for connections that are behind. Each is sent up to :data:`CHUNK_BYTES`, which costs ten times as much."""

_CACHED_CURSORS = 32

_Key = TypeVar("_Key")
_Position = tuple[StreamLog, int, int, int]  # a log, its epoch, a cursor, and the head


class StreamEventDispatcher:
    """The greenlet that writes to clients; :meth:`run` is its loop.

    It takes from the board the logs that moved, the subscriptions that are ready, the pages that were read, and the streams with
    ephemeral messages. Each becomes a job, and jobs take turns. Other jobs, and other greenlets, run only at a ``yield`` of a
    job. Between two of them, a cursor moves and its bytes are sent in one atomic step.

    The first frame tells a client to come back after ``retry`` seconds if its connection is lost, and to expect a heartbeat
    every ``heartbeat`` seconds.
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
        self._audience = Audience(filters or Filters(), board.registry)
        self._greeter = Greeter(identities, retry, heartbeat)
        self._clock = clock
        self._passed = board.events.signal(Passed)
        self._admitted = board.events.signal(Admitted)
        self._gaps = board.events.signal(Gap)
        self._ephemerals = EphemeralPasses(board, clients, self._audience, clock)
        self.sends = 0
        self.passes = 0

    @property
    def missed(self) -> int:
        """How many ephemeral messages slow clients have missed, counted once for each client."""
        return self._ephemerals.missed

    # the loop

    def run(self) -> None:
        """Serve clients, for ever."""
        board, turns = self._board, Turns(self._clock)
        with board.delivering():
            while True:
                if board.delivery.is_set():
                    board.delivery.clear()
                    turns.add(self._new_jobs())
                    turns.add_bulk([self._serve(page) for page in board.pages.take()])
                if turns:
                    turns.step()
                else:
                    board.delivery.wait()
                    turns.start()

    def _new_jobs(self) -> list[Job]:
        """A job for each piece of work on the board that has none yet; pages are bulk jobs."""
        board = self._board
        jobs = [self._pass(log) for log in board.moved.take()]
        if board.ready and not board.ready.taken:
            jobs.append(self._bring(board.ready.take()))
        jobs += [self._ephemerals.run(buffer) for buffer in board.ephemeral.take()]
        return jobs

    # jobs: at each `yield`, other jobs and other greenlets may run

    def _pass(self, log: StreamLog) -> Job:
        """Bring the connections of a stream to its head: all, or only the holders of a label if the messages are for no others.

        The cursors of the others then rest where they are. Other jobs bring a connection that needs something else: one that was
        blocked, waited for a page, or is new.
        """
        start = head, epoch = log.head, log.epoch
        passed = log.passed
        labels = None if log.must_pass_all else log.labels_above(passed)
        appended_at, log.appended_at = log.appended_at, None
        began = now = self._clock()
        sent = 0
        chunks: dict[int, Chunk | None] = {}
        self.passes += 1
        board = self._board
        waiting = board.waiting(log)
        for n, subscription in enumerate(self._audience.receivers(log.name, labels), 1):
            if n % SLICE == 0:
                yield
                now, waiting = self._clock(), board.waiting(log)
                if (log.head, log.epoch) != (head, epoch):
                    # At the yield, the listener, the sweeper or a reader has extended the log, or a reader has rewound it. The
                    # rest of the connections get the new messages now. The log is in `moved` again, so the next pass serves the
                    # others.
                    head, epoch = log.head, log.epoch
                    chunks.clear()
            cursor, client = subscription.cursor, subscription.client
            if cursor is None or cursor >= head or client.reason is not None or client.blocked_since is not None:
                continue
            if waiting and subscription in waiting:
                continue
            if cursor < passed:
                # It rests, or it is in `ready`. Either way it needs none of the messages that are only for others.
                cursor = self._audience.move_past_others(subscription)
                if cursor >= head:
                    continue
            # Nearly all connections have the same cursor, so their frames are joined once.
            chunk = chunks[cursor] if cursor in chunks else _cache(chunks, cursor, log.after(cursor, CHUNK_BYTES))
            if chunk is None or (chunk.suspect and subscription.unproven) or subscription.lost is not None:
                board.wait(subscription)
                waiting = board.waiting(log)
                continue
            if chunk.data is not None and len(client.subscriptions) == 1:
                # The common case of _send(), inlined: its calls are a tenth of the cost of a delivery.
                client.messages_sent += len(chunk.frames)
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
            self._passed.emit(Passed(log.name, sent, self._clock() - began, appended_at, start[0]))
        log.note_pass(*start, all_clients=labels is None)
        # Only now, so that no second pass over this stream starts while this one is at a `yield`: it would go through the same
        # connections again.
        board.moved.done(log)

    def _bring(self, subscriptions: list[Subscription]) -> Job:
        """Admit or advance subscriptions that are ready, one after the other. There is one such job at a time."""
        ready = self._board.ready
        # When many clients come back at once, they have only a few different cursors, so the frames are joined once for each.
        chunks: dict[_Position, Chunk | None] = {}
        for n, subscription in enumerate(subscriptions, 1):
            if subscription.cursor is None:
                self._admit(subscription)
            if self._advance(subscription, chunks):
                ready.add(subscription)  # at the end, so that a client that is far behind takes turns with the others
            ready.done(subscription)
            if n % BEHIND_SLICE == 0:
                yield

    def _serve(self, page: Page) -> Job:
        """Send a page from the database to all waiting clients whose cursor lies within it."""
        board, log = self._board, page.log
        chunks: dict[int, Chunk | None] = {}
        served = 0
        for subscription in list(board.waiting(log)):
            cursor = subscription.cursor
            if not page.current:
                break  # a reader rewound the log while this job was at a yield, so the clients that still wait have new cursors
            if cursor is None or not page.serves(cursor) or not board.stop_waiting(subscription):
                continue
            board.ready.add(subscription)  # before it is sent anything, because it must not be forgotten if that raises
            if _takes_bytes(subscription.client):
                self._send_page(subscription, page, cursor, chunks)
            served += 1
            if served % BEHIND_SLICE == 0:
                yield
        board.served(page)

    def _send_page(self, subscription: Subscription, page: Page, cursor: int, chunks: dict[int, Chunk | None]) -> None:
        content, now = page.content, self._clock()
        if subscription.unproven and content.refutes(cursor):
            # The cursor is proven wrong. The next page tells the client, and starts with everything that is retained.
            subscription.lost, subscription.cursor = cursor, 0
            return
        gap = self._gap(subscription, cursor, content.horizon, content.oldest, content.newest)
        cursor = subscription.cursor = max(cursor, content.horizon)
        chunk = chunks[cursor] if cursor in chunks else _cache(chunks, cursor, content.after(cursor))
        if chunk is not None:
            self._send(subscription, chunk, now, gap)
            self.sends += 1
        elif gap:
            self._clients.give(subscription.client, gap, now)

    # one connection

    def _admit(self, subscription: Subscription) -> None:
        """Decide where a client starts in all of its streams, and greet it; or have a reader ask the database first."""
        client = subscription.client
        if client.closed:
            return
        admissions = []
        for each in client.subscriptions:
            if each in self._board.waiting(each.log):
                continue  # a look that answers it is under way or comes, and a second one would tell nothing more
            admission = admit(each)
            if admission is None:
                self._board.wait(each)
            else:
                admissions.append(admission)
        if len(admissions) < len(client.subscriptions):
            return  # the reader makes the subscription ready again, and this is tried again
        for each, admission in zip(client.subscriptions, admissions, strict=True):
            each.start = each.cursor = admission.cursor
            if admission.gap:
                self._gaps.emit(Gap(each.log.name, "invalid-cursor" if each.place.invalid_cursor else "ahead"))
        now = self._clock()
        try:
            client.greet(self._greeter, b"".join(each.gap for each in admissions), now)
        except Exception:
            self._clients.broken(client)
        if self._admitted.handlers:
            self._admitted.emit(Admitted(client.id, now - client.asked_at))
        for each in client.subscriptions:
            if each is not subscription:
                self._board.ready.add(each)

    def _advance(self, subscription: Subscription, chunks: dict[_Position, Chunk | None]) -> bool:
        """Send one connection the next messages and ephemeral messages that it lacks. Return whether it can take more."""
        if subscription.cursor is None or not self._may_send(subscription):
            return False
        # Each kind comes first in turn, because the socket may take only one of the two.
        subscription.ephemerals_first = not subscription.ephemerals_first
        if subscription.ephemerals_first:
            more = self._ephemerals.step(subscription)
            return self._step(subscription, chunks) or more
        more = self._step(subscription, chunks)
        return self._ephemerals.step(subscription) or more

    def _step(self, subscription: Subscription, chunks: dict[_Position, Chunk | None]) -> bool:
        """Send one connection the next frames of the ring. Return whether it can take more."""
        log, cursor = subscription.log, subscription.cursor
        if cursor is None or not self._may_send(subscription):
            return False  # the ephemeral messages that were sent first may have filled its socket
        if subscription.lost is not None:
            self._board.wait(subscription)  # the frame about the gap names the oldest id, which only the table knows
            return False
        cursor = self._audience.move_past_others(subscription)
        if cursor >= log.head:
            return False
        key = (log, log.epoch, cursor, log.head)
        chunk = chunks[key] if key in chunks else _cache(chunks, key, log.after(cursor, CHUNK_BYTES))
        if chunk is None or (chunk.suspect and subscription.unproven):
            self._board.wait(subscription)
            return False
        self._send(subscription, chunk, self._clock())
        self.sends += 1
        return chunk.cursor < log.head

    def _send(self, subscription: Subscription, chunk: Chunk, now: float, before: bytes = b"") -> None:
        if chunk.gap and not before:
            first = chunk.frames[0]
            before = self._gap(subscription, subscription.cursor or 0, first.prev_id, first.id, chunk.cursor)
        # The cursor also moves past messages that the client may not see.
        subscription.cursor = chunk.cursor
        try:
            data = self._audience.frames_for(subscription, chunk)
        except Exception:
            # Its cursor has moved, so if it stayed it would miss these frames. It comes back with the cursor that it has.
            self._clients.broken(subscription.client)
            return
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
    # Bounded, because each entry holds joined frames, and there may be as many cursors as clients.
    if len(chunks) >= _CACHED_CURSORS:
        chunks.clear()
    chunks[key] = chunk
    return chunk
