"""The delivery board: the streams that somebody watches, and what remains to be done about them.

Delivery is level-triggered. A log has moved or it has not, and a client is behind or it is not; the board holds these facts, and
the greenlets of the streamer take work from it and put work on it. None of them calls another. Work stays here until it is done,
so a greenlet that died and was started again finds on the board what it left.

The board does no I/O, reads no clock and never waits, so each of its methods is atomic: no other greenlet can run within one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from . import sse
from .client import Client, Place, Subscription
from .events import Broadcast, Events
from .hints import HintLog, Hints
from .registry import Registry
from .replay import History
from .retries import Trouble
from .schedule import Schedule
from .stream_counter import StreamCounter
from .stream_log import Frame, RingBudget, Stored, StreamLog
from .wakes import Ephemeral
from .work import Flag, Work

logger = logging.getLogger("pgbus_gevent.board")

MAX_LARGE = 10_000
"""Ephemeral messages that wait behind a large one. Beyond that, new ones are dropped."""

POLL_SHARE = 0.1
"""How much sooner the next look at the database comes while no notifications are heard."""


class Page:
    """Older messages of one stream, for the clients that wait with a cursor from the page's start to below ``end``."""

    __slots__ = ("end", "epoch", "history", "log")

    def __init__(self, log: StreamLog, history: History, end: int) -> None:
        self.log = log
        self.history = history
        self.end = end
        self.epoch = log.epoch

    @property
    def current(self) -> bool:
        """Whether the log has not been rewound since the page was read."""
        return self.epoch == self.log.epoch

    def serves(self, cursor: int | None) -> bool:
        """Whether the page has what follows ``cursor``."""
        return cursor is not None and self.history.start <= cursor < self.end


class RingLimits(NamedTuple):
    """The most that the rings may hold: messages and bytes of one stream, bytes of all streams together."""

    messages: int
    bytes: int
    all_bytes: int


class Board:
    """The state that the parts of a streamer share.

    For the dispatcher: ``moved`` (logs with new frames), ``ready`` (subscriptions that may be behind), ``pages`` (read from the
    database, to be sent) and ``hinted`` (streams with ephemeral messages to send). The flag ``delivery`` is set for all four.

    For the readers: ``looks`` (logs to compare with the table) and ``behind`` (logs with clients that need a page), with the
    flag ``reading``. The clients that wait for a reader are in :meth:`waiting`.

    For the others: ``doorbell`` (a publisher rang), ``large`` (ephemeral messages to fetch, with the flag ``fetching``) and
    ``control`` (connections may have been revoked). ``listening`` is set while notifications are heard.
    """

    def __init__(
        self,
        flag: Callable[[], Flag],
        rings: RingLimits,
        *,
        tick: float = 0.25,
        counter: StreamCounter | None = None,
        events: Events | None = None,
    ) -> None:
        self.counter = counter or StreamCounter()
        self.events = events or Events()
        self.registry = Registry(self._make_log)
        self.budget = RingBudget(rings.all_bytes)
        self.delivery, self.reading, self.doorbell = flag(), flag(), flag()
        self.fetching, self.control, self.listening = flag(), flag(), flag()
        self.moved: Work[StreamLog] = Work(self.delivery)
        self.ready: Work[Subscription] = Work(self.delivery)
        self.pages: Work[Page] = Work(self.delivery)
        self.hinted: Work[HintLog] = Work(self.delivery)
        self.looks: Work[StreamLog] = Work(self.reading)
        self.behind: Work[StreamLog] = Work(self.reading)
        self.schedule = Schedule(tick)
        self.hints = Hints()
        self.large: deque[Ephemeral] = deque()
        self.dropped = 0
        """How many ephemeral messages went to nobody, as too many came."""
        self._flood = Trouble(
            logger,
            "%d ephemeral messages (%d bytes) wait to be sent, and %d to be fetched: dropping new ones, first of %r",
        )
        self.unsure = True
        """Whether the next sweep has to compare all heads: the table may have gone back in time."""
        self.pace = 0.0
        """Seconds between two rings of the doorbell."""
        self._rings = rings
        self._broadcasts = self.events.signal(Broadcast)
        self._waiting: dict[StreamLog, dict[Subscription, None]] = {}

    def _make_log(self, name: str) -> StreamLog:
        return StreamLog(name, self.budget, max_frames=self._rings.messages, max_bytes=self._rings.bytes)

    # clients

    def join(self, client: Client, places: Iterable[Place]) -> None:
        """A client has come."""
        self.registry.add(client, places)
        self.schedule.add(client)
        # It stands for all of the client's subscriptions until the client is admitted.
        self.ready.add(client.subscriptions[0])

    def leave(self, client: Client) -> tuple[Subscription, ...]:
        """A client has gone; its subscriptions, or nothing if it had gone before."""
        subscriptions = self.registry.remove(client)
        if subscriptions:
            self.schedule.remove(client)
        for subscription in subscriptions:
            self.ready.discard(subscription)
            self.stop_waiting(subscription)
            log = subscription.log
            if log.retired:
                for work in (self.moved, self.looks, self.behind):
                    work.discard(log)
            self.hints.forget(subscription)
        return subscriptions

    def log(self, name: str) -> StreamLog | None:
        """The log of a stream that somebody watches."""
        return self.registry.log(name)

    def waiting(self, log: StreamLog) -> dict[Subscription, None]:
        """The subscriptions that wait for a reader: with a cursor for a page, without one for a look. Not to be changed."""
        return self._waiting.get(log, _NOBODY)

    def wait(self, subscription: Subscription) -> None:
        """A client needs the database: for its start, or for what lies below the ring."""
        log = subscription.log
        self._waiting.setdefault(log, {})[subscription] = None
        (self.looks if subscription.cursor is None else self.behind).add(log)

    def stop_waiting(self, subscription: Subscription) -> bool:
        """A client needs the database no more; whether it had waited."""
        waiting = self._waiting.get(subscription.log, _NOBODY)
        if subscription not in waiting:
            return False
        del waiting[subscription]
        if not waiting:
            del self._waiting[subscription.log]
        return True

    # what is new

    def extend(self, log: StreamLog, rows: Iterable[Stored]) -> int:
        """Messages that follow the head of a log, without a hole, have come; how many of them were new."""
        head = log.head
        new = log.extend(rows)
        if new:
            self.counter.broadcast(log.name, new)
            if self._broadcasts.handlers:
                self._broadcasts.emit(Broadcast(log.name, new))
        if log.head > head:
            self.moved.add(log)
        return new

    def take_next(self, log: StreamLog, row: Stored) -> None:
        """A message has come that may be the next one. If it is not known to be, the table is asked."""
        if log.follows(row.prev_id):
            self.extend(log, [row])
        else:
            self.looks.add(log)

    def note(self, log: StreamLog, horizon: int) -> None:
        """A stream is known to be pruned up to ``horizon``."""
        head = log.head
        log.note(horizon=horizon)
        if log.head > head:
            self.moved.add(log)

    def rewind(self, log: StreamLog, to: int, *, horizon: int) -> None:
        """The table has lost what it had above ``to``. Every client that was sent more is told, and starts again from what is
        retained.
        """
        log.rewind(to, horizon=horizon)
        for subscription in self.registry.subscriptions(log.name):
            if subscription.cursor is not None and subscription.cursor > to:
                subscription.lost = max(subscription.cursor, subscription.lost or 0)
                subscription.cursor = 0
                self.ready.add(subscription)

    def until_next(self, interval: float) -> float:
        """The time until the next look at the database: ``interval``, or less while no notifications are heard."""
        return interval if self.listening.is_set() else interval * POLL_SHARE

    def doubt(self) -> None:
        """A session with the database was lost: clients that come now wait until the table has been asked."""
        for log in self.registry.logs():
            log.doubts += 1

    def resync(self) -> None:
        """There is a new session, perhaps with a server that was promoted or restored: every head has to be compared."""
        self.doubt()
        self.unsure = True
        self.doorbell.set()
        self.control.set()

    # ephemeral messages

    def take_ephemeral(self, message: Ephemeral) -> None:
        """A notification has brought an ephemeral message. It waits while a large one that came before it is being fetched."""
        if self.registry.log(message.stream) is None:
            return
        if message.data is not None and not self.large:
            self.pass_on(message)
        elif len(self.large) < MAX_LARGE:
            self.large.append(message)
            self.fetching.set()
        else:
            self._drop(message.stream)

    def pass_on(self, message: Ephemeral) -> None:
        """Have an ephemeral message sent to the clients that are connected now."""
        stream = message.stream
        if self.registry.log(stream) is None:
            return
        self.counter.broadcast(stream)
        if self._broadcasts.handlers:
            self._broadcasts.emit(Broadcast(stream, 1))
        # Without an id: it is not stored, and a cursor that named it would be nowhere.
        data = sse.message(message.data or "", event=message.event)
        hints = self.hints.add(stream, Frame(0, data, message.visible_to, message.exclude))
        if hints is None:
            self._drop(stream)
        else:
            self.hinted.add(hints)

    def _drop(self, stream: str) -> None:
        self.dropped += 1
        self._flood.begins(self.hints.waiting, self.hints.bytes, len(self.large), stream)

    def hints_sent(self, hints: HintLog) -> None:
        """The ephemeral messages of a stream that waited have been sent."""
        self.hinted.done(hints)
        self.hints.tidy(hints.stream)
        if not self.hints.waiting and not self.large:
            self._flood.ends()

    # the dispatcher

    @contextmanager
    def delivering(self) -> Iterator[None]:
        """The dispatcher runs. Whatever ends it, what it took and did not finish is there for the next run."""
        try:
            yield
        finally:
            for work in (self.moved, self.ready, self.pages, self.hinted):
                work.give_back()

    def served(self, page: Page) -> None:
        """A page has been sent to all of the clients that it was for."""
        self.pages.done(page)
        if any(subscription.cursor is not None for subscription in self.waiting(page.log)):
            self.behind.add(page.log)
        self.behind.done(page.log)
        self.reading.set()  # there is room for another page


_NOBODY: dict[Subscription, None] = {}
