"""The delivery board: the logs of the streams that have clients, and the work that remains to be done on them.

Delivery is level-triggered. The board holds state, not events: a log has moved or it has not, and a client is behind or it is
not. The greenlets of the streamer put work on the board and take work from it; they do not call one another. Work stays on the
board until it is done. A greenlet that dies and is started again therefore finds its unfinished work here.

The board does no I/O, reads no clock and never waits, so each of its methods is atomic.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from . import sse
from .backlog import Backlog
from .client import Client, Place, Subscription
from .ephemeral_buffers import EphemeralBuffer, EphemeralBuffers
from .events import Broadcast, Events, Traced
from .frames import Frame, Stored
from .registry import Registry
from .relay_signs import RelaySigns, until_next
from .replay import Page
from .retries import Trouble
from .ring_budget import RingBudget, RingLimits
from .schedule import Schedule
from .stream_counter import StreamCounter
from .stream_log import StreamLog
from .taps import Taps
from .traces import report
from .wakes import Ephemeral
from .work import Flag, SessionFlag, Work

logger = logging.getLogger("pgbus_gevent.board")

MAX_LARGE = 10_000
"""The most ephemeral messages that wait while a large one is fetched. Beyond that, new ones are dropped."""


class Board:
    """The state that the parts of a streamer share.

    The dispatcher takes ``moved`` (logs with new frames), ``ready`` (subscriptions that may be sent something), ``pages`` (pages
    that a reader has read) and ``ephemeral`` (streams with ephemeral messages to send). Adding to any of them sets the flag
    ``delivery``.

    The readers take ``looks`` (logs to compare with the table) and ``behind`` (logs with clients that need a page). Adding to
    either sets the flag ``reading``. :meth:`waiting` returns the clients that wait for a reader.

    The listener takes ``unheard`` (logs whose wakes it does not hear yet). Adding to it, and a change of :attr:`follow_all`, sets
    the flag ``following``, which interrupts the listener's session.

    The other parts wait for flags: ``doorbell`` (a notification came), ``fetching`` (``large`` has ephemeral messages that must
    be fetched) and ``control`` (connections may have been revoked). ``listening`` is set while notifications are heard.

    ``flag`` makes a flag, such as a :class:`gevent.event.Event`. ``tick`` is the length of a slot of the schedule, in seconds.
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
        self.counter, self.events = counter or StreamCounter(), events or Events()
        self.registry, self.budget = Registry(self._make_log), RingBudget(rings.all_bytes)
        self.delivery, self.reading, self.doorbell = flag(), flag(), flag()
        self.fetching, self.control, self.listening = flag(), flag(), flag()
        self.moved: Work[StreamLog] = Work(self.delivery)
        self.ready: Work[Subscription] = Work(self.delivery)
        self.pages: Work[Page] = Work(self.delivery)
        self.ephemeral: Work[EphemeralBuffer] = Work(self.delivery)
        self.looks: Work[StreamLog] = Work(self.reading)
        self.behind: Work[StreamLog] = Work(self.reading)
        self.following = SessionFlag()
        self.unheard: Work[StreamLog] = Work(self.following)
        self._follow_all = True
        self.schedule, self.taps, self.backlog = Schedule(tick), Taps(), Backlog()
        self.ephemeral_buffers = EphemeralBuffers()
        self.large: deque[Ephemeral] = deque()
        self.dropped = 0  # ephemeral messages, because too many were waiting
        self._flood = Trouble(
            logger,
            "%d ephemeral messages (%d bytes) wait to be sent, and %d to be fetched: dropping new ones, first of %r",
        )
        self.unsure = True
        """Whether the next sweep must be a probe, because the table may have gone back in time."""
        self.steward_until = 0.0  # when this worker ceases to rely on the steward's rings, in monotonic seconds
        self.election_number = 0
        """The number of this worker in the elections of the steward."""
        self.losses = 0
        """How often the table may have lost messages, or has: the doubts about all logs, and the rewinds."""
        self.relay = RelaySigns()
        self.pace = 0.0  # the least time between two notifications of the doorbell, in seconds
        self.workers = 1
        """How many workers the fleet has, as of the last report of this one."""
        self.resyncs = 0
        """How often all that was read from the database came into question, because a session with it was new."""
        self._rings = rings
        self._broadcasts, self._traced = self.events.signal(Broadcast), self.events.signal(Traced)
        self._waiting: dict[StreamLog, dict[Subscription, None]] = {}

    def _make_log(self, name: str) -> StreamLog:
        log = StreamLog(name, self.budget, max_frames=self._rings.messages, max_bytes=self._rings.bytes)
        self.unheard.add(log)
        return log

    # clients

    def join(self, client: Client, places: Iterable[Place]) -> None:
        """Register a client with a subscription for each place, and have it admitted."""
        self.registry.add(client, places)
        self.schedule.add(client)
        # One subscription stands for all of them, because a client is admitted to all of its streams at once.
        self.ready.add(client.subscriptions[0])

    def leave(self, client: Client) -> tuple[Subscription, ...]:
        """Take a client off the board. Return its subscriptions, or an empty tuple if it had left before."""
        subscriptions = self.registry.remove(client)
        if subscriptions:
            self.schedule.remove(client)
        for subscription in subscriptions:
            self.ready.discard(subscription)
            self.stop_waiting(subscription)
            self.forget(subscription.log)
            self.ephemeral_buffers.remove(subscription)
        return subscriptions

    def forget(self, log: StreamLog) -> None:
        """Take a log off the board if it is retired."""
        if log.retired:
            for work in (self.moved, self.looks, self.behind, self.unheard):
                work.discard(log)

    def log(self, name: str) -> StreamLog | None:
        """Return the log of a stream, or None if the stream has no client here."""
        return self.registry.log(name)

    def waiting(self, log: StreamLog) -> dict[Subscription, None]:
        """Return the subscriptions that wait for a reader. Do not change the dict.

        A subscription with a cursor waits for a page, one without a cursor for a look.
        """
        return self._waiting.get(log, _NOBODY)

    def wait(self, subscription: Subscription) -> None:
        """Have a reader ask the database where a client starts, or for the messages below the ring."""
        log = subscription.log
        self._waiting.setdefault(log, {})[subscription] = None
        if subscription.cursor is None:
            self.look(log)
        else:
            self.behind.add(log)

    def stop_waiting(self, subscription: Subscription) -> bool:
        """Stop waiting for a reader. Return whether the subscription was waiting."""
        waiting = self._waiting.get(subscription.log, _NOBODY)
        if subscription not in waiting:
            return False
        del waiting[subscription]
        if not waiting:
            del self._waiting[subscription.log]
        return True

    # the listener

    @property
    def follow_all(self) -> bool:
        """Whether the listener follows all streams, not only those of this worker."""
        return self._follow_all

    @follow_all.setter
    def follow_all(self, value: bool) -> None:
        if value is not self._follow_all:
            self._follow_all = value
            self.following.set()

    def look(self, log: StreamLog) -> None:
        """Have a reader compare a log with the table; while the worker listens, not before the log's wakes are heard.

        If the look came first, an ephemeral message that is published between the look and the LISTEN would be lost, although
        the look lets clients start.
        """
        if not (self.listening.is_set() and log in self.unheard):
            self.looks.add(log)

    def heard(self, log: StreamLog) -> None:
        """Note that the wakes of a log are heard from now on, and have the looks done that were held up until now."""
        if not log.retired and (not log.is_open or any(each.cursor is None for each in self.waiting(log))):
            self.looks.add(log)

    def deafen(self) -> None:
        """Note that no wakes are heard from now on. Looks need not wait for the listener."""
        self.listening.clear()
        for log in self.unheard:
            self.heard(log)
        for log in self.registry.logs():
            self.unheard.add(log)

    # new messages

    def announce(self, log: StreamLog) -> None:
        """Have the clients and the edges of a log served, because it was opened or has a new head."""
        self.moved.add(log)
        self.taps.moved(log)

    def extend(self, log: StreamLog, rows: Sequence[Stored]) -> int:
        """Add messages that follow the head of a log without a gap. Return how many of them were new."""
        head = log.head
        new = log.extend(rows)
        if new:
            self.counter.broadcast(log.name, new)
            if self._broadcasts.handlers:
                self._broadcasts.emit(Broadcast(log.name, new))
            if self._traced.handlers:
                report(self._traced, log.name, rows, head)
        if log.head > head:
            self.announce(log)
        return new

    def take_next(self, log: StreamLog, row: Stored) -> None:
        """Add a message if it is known to be the next one of the log; otherwise have a reader look at the table."""
        if log.follows(row.prev_id):
            self.extend(log, [row])
        else:
            log.hint(log.head)
            self.looks.add(log)

    def note(self, log: StreamLog, horizon: int) -> None:
        """Remember that the stream has been pruned up to ``horizon``."""
        head = log.head
        log.note(horizon=horizon)
        if log.head > head:
            self.announce(log)

    def rewind(self, log: StreamLog, to: int, *, horizon: int) -> None:
        """Take a log back to ``to``, because the table has lost the messages above it.

        Every client that was sent a lost message gets a gap event, and then everything that is retained.
        """
        self.losses += 1
        to = to if log.recheck is None else min(to, log.recheck)  # a rewind leaves nothing to compare with the table
        log.rewind(to, horizon=horizon)
        if log.retired:
            return  # the stream may have a new log, which was opened with what the table has now
        self.taps.rewound(log)
        for subscription in self.registry.subscriptions(log.name):
            if subscription.rewind(to):
                self.ready.add(subscription)

    def until_next(self, interval: float) -> float:
        """Return the seconds until the next question to the database: ``interval``, or what the fleet and its wakes allow."""
        listening = self.listening.is_set()
        return until_next(interval, workers=self.workers, listening=listening, relayed=listening and self.relay.heard)

    def doubt(self) -> None:
        """Put all logs in doubt, because a session with the database was lost.

        Clients that come now wait until the table has been asked.
        """
        self.losses += 1
        for log in self.registry.logs():
            log.doubts += 1
        self.taps.resync()

    def resync(self) -> None:
        """Have every head compared with the table, because a new session may be with a promoted or restored server."""
        self.doubt()
        self.unsure = True
        self.resyncs += 1
        self.doorbell.set()
        self.take_control()

    def take_control(self) -> None:
        """Take a control notification: connections may have been revoked."""
        self.control.set()
        self.taps.control()

    # ephemeral messages

    def take_ephemeral(self, message: Ephemeral) -> None:
        """Take an ephemeral message from a notification. It waits behind a large one that came before it and is being fetched."""
        if self.registry.log(message.stream) is None:
            return
        if message.data is not None and not self.large:
            self.buffer_ephemeral(message)
        elif len(self.large) < MAX_LARGE:
            self.large.append(message)
            self.fetching.set()
        else:
            self._drop(message.stream)

    def buffer_ephemeral(self, message: Ephemeral) -> None:
        """Have an ephemeral message sent to the clients that are connected now. If too many wait, drop it."""
        stream = message.stream
        if (log := self.registry.log(stream)) is None:
            return
        self.counter.broadcast(stream)
        self.taps.ephemeral(log, message)
        if self._broadcasts.handlers:
            self._broadcasts.emit(Broadcast(stream, 1))
        # The frame has no id: the message is not stored, so no cursor could point at it.
        data = sse.message(message.data or "", event=message.event)
        buffer = self.ephemeral_buffers.add(stream, Frame(0, data, message.visible_to, message.exclude))
        if buffer is None:
            self._drop(stream)
        else:
            self.ephemeral.add(buffer)

    def _drop(self, stream: str) -> None:
        self.dropped += 1
        self._flood.begins(self.ephemeral_buffers.waiting, self.ephemeral_buffers.bytes, len(self.large), stream)

    def ephemerals_sent(self, buffer: EphemeralBuffer) -> None:
        """Note that the dispatcher has sent the ephemeral messages that waited in ``buffer``."""
        self.ephemeral.done(buffer)
        self.ephemeral_buffers.tidy(buffer.stream)
        if not self.ephemeral_buffers.waiting and not self.large:
            self._flood.ends()

    # the dispatcher

    @contextmanager
    def delivering(self) -> Iterator[None]:
        """Within this block the dispatcher runs. At its end, even after an exception, the work that it took is given back."""
        # The last dispatcher may have cleared the flag and left work on the board, because a subscription before it was not done.
        self.delivery.set()
        try:
            yield
        finally:
            for work in (self.moved, self.ready, self.pages, self.ephemeral):
                work.give_back()

    def served(self, page: Page) -> None:
        """Note that a page has been sent to all clients that stood within it."""
        self.pages.done(page)
        if any(subscription.cursor is not None for subscription in self.waiting(page.log)):
            self.behind.add(page.log)
        self.behind.done(page.log)
        self.reading.set()  # there is room for another page


_NOBODY: dict[Subscription, None] = {}
