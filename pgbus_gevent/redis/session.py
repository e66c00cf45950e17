"""A session that hears wakes through Redis."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent.event import Event

from ..errors import RedisUnavailable
from .keys import CHANGED, Keys, Sealed
from .links import TIMEOUT, Command, Link, find
from .refusals import failure
from .urls import Address, RedisURL

BACKLOG = 10_000
"""The most wakes that are held. When more come, the oldest are dropped, and :meth:`RedisSession.receive` says so."""

BACKLOG_BYTES = 64 * 1024 * 1024
"""The most bytes of them, because a wake through Redis may be large."""

TURN = 100
"""The most texts that are read before other greenlets run. In a flood there is always one more, and reading it never waits."""

SILENCE = 3.5
"""Seconds without a beacon after which a connection, or the relay, counts as dead. A beacon comes every second."""

RESYNC_SPREAD = 1.0
"""Seconds over which workers ask the database again after a new reign has begun; in a large fleet, over more."""

NAMES_AT_ONCE = 500
"""The most channels in one command."""

_KNOWN_REIGNS = 4
_POLL = 1.0


class Hearing:
    """What was heard on one channel: for each reign, the number of its last text."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}

    def hear(self, sealed: Sealed, *, beacon: bool) -> bool:
        """Note a text. Return whether one before it was lost."""
        last = self._last.get(sealed.reign)
        if last is None and not self._last:
            last = sealed.number - (not beacon)  # what was published before the subscription does not count
        if len(self._last) >= _KNOWN_REIGNS and sealed.reign not in self._last:
            del self._last[next(iter(self._last))]
        self._last[sealed.reign] = sealed.number
        return sealed.number != (last or 0) + (not beacon)


class RedisSession:
    """Hears the wakes of the streams that it follows. One greenlet uses it; it has a greenlet of its own for each connection.

    ``keys`` have the names for the database. Raises :class:`RedisUnavailable` if it cannot connect, and later from every method
    when a connection is lost, a subscription is taken away, the generation changes, or no beacon comes.
    """

    def __init__(self, url: RedisURL, keys: Keys, *, clock: Callable[[], float] = monotonic) -> None:
        self._url = url
        self.keys = keys
        self._clock = clock
        self._layout = find(url)
        self._links: dict[Address, Link] = {}
        self._readers: dict[Address, gevent.Greenlet[..., None]] = {}
        self._heard_at: dict[Address, float] = {}
        self._wanted: set[str] = set()
        self._subscribed: set[str] = set()
        self._everything = False
        self._hearing: dict[str, Hearing] = {}
        self._payloads: deque[str] = deque()
        self._size = 0
        self._lost = False
        self._resync_at: float | None = None
        self._error: Exception | None = None
        self._news = Event()
        self._acknowledged = Event()
        self.spread = RESYNC_SPREAD
        """Over how many seconds the workers of this fleet ask the database again."""
        self.changed = False
        """Whether the session has ended because the names have changed."""
        self.reign = ""
        """The reign of the last beacon."""
        self.logs = False
        """Whether that reign keeps logs."""
        self.beacon_at: float | None = None
        """When the last beacon came that all channels share, in monotonic seconds."""
        self.forged = 0
        """How many texts were ignored because no relay of this database had sealed them."""
        try:
            self._subscribe({keys.control})
        except BaseException:
            self.close()
            raise

    @property
    def cause(self) -> str:
        """The likely reason if nothing is heard."""
        return "no relay publishes to Redis"

    # following

    def follow(self, streams: Collection[str] | None) -> None:
        """Hear, from the return of this call on, also the wakes of these streams. None: of all streams."""
        if streams is not None:
            self._subscribe(set(map(self.keys.channel, streams)) - self._wanted)
        elif self.keys.sharded:
            self._subscribe(set(self.keys.all_channels()) - self._wanted)
        elif not self._everything:
            self._send({self.keys.control: [("PSUBSCRIBE", self.keys.pattern())]})
            self._until(lambda: self._everything)

    def narrow(self, streams: Collection[str]) -> None:
        """Stop hearing other streams than these. All of these must be followed already."""
        wanted = {self.keys.control, *map(self.keys.channel, streams)}
        # First, so that a stream is heard as one of all until it is heard by itself.
        self._subscribe(wanted - self._wanted)
        surplus, self._wanted = self._wanted - wanted, wanted
        self._unsubscribe(surplus)
        if self._everything:
            self._send({self.keys.control: [("PUNSUBSCRIBE", self.keys.pattern())]})
            self._until(lambda: not self._everything)

    def _subscribe(self, channels: set[str]) -> None:
        self._wanted |= channels
        self._send(self._commands("SUBSCRIBE", channels))
        self._until(lambda: channels <= self._subscribed)

    def _unsubscribe(self, channels: set[str]) -> None:
        self._send(self._commands("UNSUBSCRIBE", channels))
        # An answer that came after the channel is subscribed to again would be taken for a slot that moves.
        self._until(lambda: not channels & self._subscribed)
        needed = {self._layout.of(channel) for channel in self._wanted}
        for address in self._links.keys() - needed:  # no beacon would come there
            self._readers.pop(address).kill(block=False)
            self._links.pop(address).close()
            del self._heard_at[address]

    def _commands(self, verb: str, channels: Iterable[str]) -> dict[str, list[Command]]:
        """Return the commands for channels, by a channel that says where they must be sent."""
        if self.keys.sharded:
            # One channel each, because a command may only name channels of one slot.
            return {channel: [("S" + verb, channel)] for channel in channels}
        names = list(channels)
        parts = [names[n : n + NAMES_AT_ONCE] for n in range(0, len(names), NAMES_AT_ONCE)]
        return {self.keys.control: [(verb, *part) for part in parts]} if parts else {}

    def _send(self, commands: dict[str, list[Command]]) -> None:
        by_node: dict[Address, list[Command]] = {}
        for channel, some in commands.items():
            by_node.setdefault(self._layout.of(channel), []).extend(some)
        for address, some in by_node.items():
            self._check()
            if address not in self._links:
                link = self._links[address] = Link(self._url, address)
                self._heard_at[address] = self._clock()
                self._readers[address] = gevent.spawn(self._read, link)
            self._links[address].send(some)

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = self._clock() + TIMEOUT
        while not condition():
            self._check()
            self._acknowledged.clear()
            if not self._acknowledged.wait(max(0.0, deadline - self._clock())) and self._clock() >= deadline:
                raise RedisUnavailable(f"Redis did not answer a subscription within {TIMEOUT:g} s")

    # hearing

    def _read(self, link: Link) -> None:
        """Read one connection, until it fails."""
        try:
            while True:
                for _ in range(TURN):
                    if link.wait(_POLL):
                        self._take(link, link.read())
                gevent.sleep(0)
        except Exception as error:  # the greenlet that uses the session raises it
            if self._links.get(link.address) is link:
                self._fail(error)

    def _take(self, link: Link, answer: Any) -> None:
        if isinstance(answer, Exception):
            raise failure(f"Redis at {link.where}", answer, "refuses a subscription")
        kind = answer[0].decode()
        channel = answer[1].decode() if answer[1] is not None else ""
        if kind in {"message", "smessage"}:
            self._hear(link, channel, answer[2])
        elif kind == "pmessage":
            channel = answer[2].decode()
            if channel not in self._subscribed:  # otherwise it comes a second time
                self._hear(link, channel, answer[3])
        elif kind in {"subscribe", "ssubscribe"}:
            self._subscribed.add(channel)
        elif kind in {"unsubscribe", "sunsubscribe"}:
            self._subscribed.discard(channel)
            self._hearing.pop(channel, None)
            if channel in self._wanted:
                raise RedisUnavailable(
                    f"Redis at {link.where} has ended a subscription, because a slot moves to another node"
                )
        elif kind in {"psubscribe", "punsubscribe"}:
            self._everything = kind == "psubscribe"
        self._acknowledged.set()

    def _hear(self, link: Link, channel: str, data: bytes) -> None:
        sealed = self.keys.open(data)
        if sealed is None:
            self.forged += 1
            return
        # Also a message, because in a flood a beacon waits behind many.
        self._heard_at[link.address] = self._clock()
        is_beacon = sealed.payload.startswith('["beacon"')
        if self.keys.sharded or channel == self.keys.control:
            hearing = self._hearing.get(channel)
            if hearing is None:
                hearing = self._hearing[channel] = Hearing()
            if hearing.hear(sealed, beacon=is_beacon):
                self._lost = True
                self._news.set()
        if is_beacon:
            if channel == self.keys.control:
                self._note_beacon(sealed)
            return
        self._payloads.append(sealed.payload)
        self._size += len(sealed.payload)
        while len(self._payloads) > BACKLOG or self._size > BACKLOG_BYTES:
            self._size -= len(self._payloads.popleft())
            self._lost = True
        self._news.set()

    def _note_beacon(self, sealed: Sealed) -> None:
        _, generation, logs = json.loads(sealed.payload)
        if generation != self.keys.generation:
            self.changed = True
            raise RedisUnavailable(CHANGED)
        if self.reign not in {"", sealed.reign}:
            # Redis may have lost logs, or the relay wakes. Not all workers should ask the database about it at once.
            self._resync_at = self._clock() + random.uniform(0, self.spread)
        self.reign, self.logs, self.beacon_at = sealed.reign, bool(logs), self._clock()
        self._news.set()

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._news.set()
        self._acknowledged.set()

    def _check(self) -> None:
        if self._error is not None:
            if isinstance(self._error, RedisUnavailable):
                raise self._error
            raise RedisUnavailable(f"a connection to Redis failed: {self._error!r}") from self._error
        now = self._clock()
        for address, at in self._heard_at.items():
            if now - at > SILENCE:
                raise RedisUnavailable(f"no beacon came from Redis at {address[0]}:{address[1]} for {now - at:.1f} s")

    def receive(self, timeout: float) -> tuple[list[str], bool]:
        """Wait up to ``timeout`` seconds. Return the payloads that came, and whether any were lost."""
        if self._resync_at is not None:
            timeout = max(0.0, min(timeout, self._resync_at - self._clock()))
        if not self._payloads and not self._lost:
            self._news.wait(timeout)
        self._news.clear()
        self._check()
        if self._resync_at is not None and self._clock() >= self._resync_at:
            self._resync_at, self._lost = None, True
        payloads, lost = list(self._payloads), self._lost
        self._payloads.clear()
        self._size = 0
        self._lost = False
        return payloads, lost

    def interrupt(self) -> None:
        """Let :meth:`receive` return at once. Never yields."""
        self._news.set()

    @property
    def fresh(self) -> bool:
        """Whether a relay is known to publish now."""
        return bool(self.reign) and self._error is None

    def hears(self, timeout: float = SILENCE) -> bool:
        """Whether a beacon comes within ``timeout`` seconds."""
        deadline = self._clock() + timeout
        while not self.reign and self._clock() < deadline:
            self._news.clear()
            self._news.wait(max(0.01, deadline - self._clock()))
            if self._error is not None:
                self._check()
        return bool(self.reign)

    def ping(self) -> None:
        """Raise :class:`RedisUnavailable` if the connections are lost or silent. Beacons come by themselves, so nothing is sent."""
        self._check()

    def close(self) -> None:
        """End the session. Idempotent."""
        for reader in self._readers.values():
            reader.kill(block=False)
        for link in self._links.values():
            link.close()


class Wakes(Protocol):
    """Where the parts of a worker find its current session with Redis; None while there is none."""

    @property
    def session(self) -> RedisSession | None: ...
