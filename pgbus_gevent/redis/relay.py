"""The relay: passes on to Redis what the steward hears and finds."""

from __future__ import annotations

import json
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic
from typing import NamedTuple, Protocol

import gevent
from gevent.event import Event

from ..core.retries import Backoff, Trouble
from ..core.rows import EphemeralRow
from ..core.wakes import CONTROL, Control, Ephemeral, NewMessage, parse
from ..errors import DatabaseError, RedisRefused, RedisUnavailable
from .keys import CHANGED, Keys, Names
from .publisher import Outgoing, Publisher
from .urls import RedisURL

logger = logging.getLogger("pgbus_gevent.relay")

QUEUE = 20_000
"""The most wakes that wait to be published. If more come, a new reign begins, so that the workers look into the database."""

QUEUE_BYTES = 64 * 1024 * 1024
"""The most bytes of them, because messages that did not ring may be large."""

FETCHED = 50
"""The most messages whose content is fetched by one statement."""

ROUND = 2000
"""The most wakes that are published before the relay looks whether a beacon is due."""

BEACON_INTERVAL = 1.0
"""Seconds between two beacons."""

CHECK_INTERVAL = 2.0
"""Seconds between two questions to the database for the names, which change when it was restarted or has failed over."""

HOLD = 0.06
"""How long a message waits for the one before it, in seconds. The steward finds those that did not ring some milliseconds later."""

LARGEST = 1024 * 1024
"""The most bytes of a wake that goes through Redis. Workers fetch larger messages from the database."""

REMEMBERED = 100_000
"""The number of streams whose last message is remembered."""

REFUSED = 30.0
"""The longest time in seconds until the next try after Redis has refused the login or a right, which somebody has to correct."""

MOVED = '["moved"]'
_UNSTORED = '["ephemeral"', '["large"', '["control"'
_PAUSES = 0.1, 5.0  # the first and the longest between two publishers, in seconds


class Messages(Protocol):
    """The statement that makes wakes of messages."""

    def wakes(self, ids: Sequence[int], *, size: int) -> list[tuple[int, str, str]]: ...


class Ephemerals(Protocol):
    """The statement that fetches large ephemeral messages."""

    def ephemerals(self, ids: Sequence[int]) -> dict[int, EphemeralRow]: ...


class Duty(Protocol):
    """Whether this worker is the steward, and hears; :class:`pgbus_gevent.streamer.steward.Steward` says it."""

    @property
    def leads(self) -> bool: ...
    @property
    def hears(self) -> bool: ...


class Held(NamedTuple):
    """A message that waits until ``until`` for the one before it."""

    until: float
    prev_id: int
    wake: Outgoing


class Sequencer:
    """Puts the messages of each stream in order: each waits for a short time for the one before it, and none comes twice.

    The transactions that ring are not the first ones in their stream, so the message of a ring often comes before those that the
    steward finds. Published in that order, each would be a gap for every worker. Does no I/O, and never waits itself.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._recent: dict[int, None] = {}
        self._held: dict[str, dict[int, Held]] = {}

    def add(self, wake: Outgoing, prev_id: int | None, now: float) -> Iterator[Outgoing]:
        """Take a message, and return those that can be published now."""
        stream, id = wake.stream, wake.id
        assert stream is not None and id is not None
        if id in self._recent:
            return
        last = self._last.get(stream)
        if last is not None and prev_id is not None and prev_id > last:
            self._held.setdefault(stream, {})[id] = Held(now + HOLD, prev_id, wake)
            return
        # One below the last comes late, or the last one was forged. It is never left out.
        yield self._take(stream, id, wake)
        yield from self._following(stream)

    def _take(self, stream: str, id: int, wake: Outgoing) -> Outgoing:
        self._last[stream] = max(id, self._last.pop(stream, 0))
        if len(self._last) > REMEMBERED:
            del self._last[next(iter(self._last))]
        self._recent[id] = None
        if len(self._recent) > REMEMBERED:
            del self._recent[next(iter(self._recent))]
        return wake

    def _following(self, stream: str) -> Iterator[Outgoing]:
        held = self._held.get(stream)
        while held:
            id = min(held)
            if held[id].prev_id > self._last[stream]:
                return
            yield self._take(stream, id, held.pop(id).wake)
        self._held.pop(stream, None)

    def due(self, now: float) -> Iterator[Outgoing]:
        """Return the messages that have waited long enough, and those that follow them."""
        for stream, held in list(self._held.items()):
            while held and min(one.until for one in held.values()) <= now:
                id = min(held)
                yield self._take(stream, id, held.pop(id).wake)
                yield from self._following(stream)
            if not held:
                self._held.pop(stream, None)

    def next_due(self) -> float | None:
        """Return when the next message has waited long enough; None if none waits."""
        return min((one.until for held in self._held.values() for one in held.values()), default=None)


class Relay:
    """The greenlet that publishes to Redis while this worker is the steward; :meth:`run` is its loop.

    It is an outlet of the steward. Nothing is lost if it fails or is slow: a new publisher begins a new reign, and then every
    worker asks the database what it has missed.
    """

    def __init__(
        self,
        url: RedisURL,
        names: Names,
        messages: Messages,
        ephemerals: Ephemerals,
        duty: Duty,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._url = url
        self._names = names
        self._messages = messages
        self._ephemerals = ephemerals
        self._duty = duty
        self._clock = clock
        self._queue: deque[tuple[float, str, int | None]] = deque()
        self._bytes = 0
        self._news = Event()
        self._taking = self._overflowed = self._restarted = False
        self._sequencer = Sequencer()
        self.publishing = False
        """Whether this worker publishes to Redis now."""
        self.published = 0
        self.reigns = 0
        self.lag = 0.0
        """How long the last wake has waited here, in seconds."""

    # the outlet

    def heard(self, payloads: list[str]) -> None:
        """Take the payloads of notifications."""
        # The steward finds the messages of a wake that only says that something moved.
        self._add((payload, None) for payload in payloads if not payload.startswith('["moved"'))

    def found(self, ids: Sequence[int]) -> None:
        """Take the ids of messages that did not ring, or only with the names of their streams."""
        for n in range(0, len(ids), FETCHED):
            if self._taking and not self._overflowed:
                self._add((wake, id) for id, _, wake in self._messages.wakes(ids[n : n + FETCHED], size=LARGEST))

    def restarted(self) -> None:
        """Begin a new reign, so that the workers look, because messages may have been missed.

        No log may count as complete any more. That includes the messages that wait here, because a missed one may follow them.
        """
        kept = [each for each in self._queue if each[1].startswith(_UNSTORED)]
        self._empty()
        self._queue.extend(kept)
        self._bytes = sum(len(payload) for _, payload, _ in kept)
        self._restarted = True
        self._news.set()

    def _add(self, wakes: Iterable[tuple[str, int | None]]) -> None:
        if not self._taking or self._overflowed:
            return
        now = self._clock()
        for payload, id in wakes:
            self._queue.append((now, payload, id))
            self._bytes += len(payload)
        if len(self._queue) > QUEUE or self._bytes > QUEUE_BYTES:
            self._empty()
            self._overflowed = True
        self._news.set()

    def _empty(self) -> None:
        self._queue.clear()
        self._bytes = 0

    # publishing

    def run(self) -> None:
        """Publish while this worker is the steward, for ever."""
        backoff = Backoff(*_PAUSES)
        trouble = Trouble(logger, "cannot publish to Redis, so workers listen to PostgreSQL; trying again: %s")
        while True:
            # A relay that does not hear would keep the workers from LISTEN, and ephemeral messages would be lost. If one that
            # publishes becomes deaf, the steward gives its lease back after a while.
            if not (self._duty.leads and self._duty.hears):
                gevent.sleep(0.1)
                continue
            publisher = None
            pause = 0.0
            try:
                names = self._names.redis_names()
                # Before the first beacon: workers that hear it ask the database, and what comes after that must be published.
                self._begin()
                publisher = Publisher(self._url, Keys(*names, sharded=self._url.kind == "cluster"))
                self.publishing = True
                self.reigns += 1
                logger.info("relaying to Redis")
                backoff.reset()
                trouble.ends()
                self._publish(publisher, names)
            except RedisRefused as error:
                trouble.begins(error)
                pause = REFUSED * random.uniform(0.5, 1.0)
            except DatabaseError as error:
                trouble.begins(error)
            finally:
                self.publishing = self._taking = False
                if publisher is not None:
                    publisher.close()
            gevent.sleep(pause or backoff.next())

    def _begin(self) -> None:
        self._empty()
        self._overflowed = self._restarted = False
        self._sequencer = Sequencer()
        self._taking = True

    def _publish(self, publisher: Publisher, names: tuple[str, str]) -> None:
        """Publish until this worker is no longer the steward, or something forces a new reign."""
        beaten = checked = self._clock()
        while self._duty.leads:
            due = self._sequencer.next_due()
            wait = beaten + BEACON_INTERVAL - self._clock()
            self._news.wait(max(0.0, min(wait, wait if due is None else due - self._clock())))
            self._news.clear()
            if self._overflowed:
                raise RedisUnavailable(f"more than {QUEUE} wakes, or {QUEUE_BYTES} bytes, wait to be published")
            if self._restarted:
                self._restarted = False
                self._sequencer = Sequencer()
                publisher.renew()
                self.reigns += 1
            before = publisher.published
            publisher.publish(self._outgoing())
            self.published += publisher.published - before
            now = self._clock()
            if now - beaten >= BEACON_INTERVAL:
                publisher.beacon()
                beaten = self._clock()
            if now - checked >= CHECK_INTERVAL:
                if self._names.redis_names() != names:
                    raise RedisUnavailable(CHANGED)
                checked = now

    def _outgoing(self) -> Iterator[Outgoing]:
        for _ in range(ROUND):
            # While a batch is published, the queue may be emptied.
            if not self._queue or self._restarted:
                break
            came, payload, id = self._queue.popleft()
            self._bytes -= len(payload)
            now = self._clock()
            self.lag = now - came
            wake = parse(payload)
            if isinstance(wake, NewMessage):
                yield from self._sequencer.add(Outgoing(wake.stream, payload, wake.id), wake.prev_id, now)
            elif isinstance(wake, Ephemeral):
                yield Outgoing(wake.stream, payload if wake.data is not None else self._large(wake, payload))
            elif isinstance(wake, Control) or wake.streams is None:
                yield Outgoing(None, CONTROL if isinstance(wake, Control) else MOVED)
            elif id is not None:  # a message that is too large for Redis
                yield from self._sequencer.add(Outgoing(wake.streams[0], payload, id), None, now)
        if not self._restarted:
            yield from self._sequencer.due(self._clock())
        if self._queue:
            self._news.set()

    def _large(self, wake: Ephemeral, payload: str) -> str:
        """Return a wake with the content of a large ephemeral message, so that not every worker has to fetch it."""
        row = self._ephemerals.ephemerals([wake.number]).get(wake.number)
        if row is None or row.stream != wake.stream or len(row.data) > LARGEST // 4:
            return payload
        return json.dumps(["ephemeral", row.stream, wake.number, row.event, row.data, row.visible_to, row.exclude])
