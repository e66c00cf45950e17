"""A small, quick model of the PostgreSQL of a simulation: streams, ids, locks, horizons, epochs, bells and sessions.

A read sees what has been committed, at the moment at which the server answers it. The transactions of publishers take time:
they wait for the locks of their streams, draw ids, and commit in two steps, as PostgreSQL does.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import gevent
from gevent.lock import Semaphore

from .loop import CLOCK

CHANNEL = "bell"
CONTROL_CHANNEL = "control"
LOCKS = 64


class Message:
    """A stored message. ``seen_at`` is when it became visible, in monotonic seconds."""

    __slots__ = ("created_at", "data", "event", "exclude", "gone", "id", "prev_id", "seen_at", "stream", "visible_to")

    def __init__(self, stream: str, data: str, event: str | None, visible_to: str | None, exclude: str | None) -> None:
        self.stream, self.data, self.event = stream, data, event
        self.visible_to, self.exclude = visible_to, exclude
        self.id = 0
        self.prev_id: int | None = 0
        self.created_at = self.seen_at = 0.0
        self.gone = False  # pruned

    @property
    def payload(self) -> str:
        """The notification about it."""
        return json.dumps(
            [
                "message", self.stream, self.id, self.prev_id, self.created_at, self.event, self.data, self.visible_to,
                self.exclude,
            ],
            separators=(",", ":"),
        )  # fmt: skip


class Stream:
    """The committed messages of a stream, and the ids of all that were ever committed on this timeline."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.rows: list[Message] = []
        self.horizon = 0
        self.history: list[Message] = []  # with the pruned ones
        self.highest_horizon = 0

    @property
    def head(self) -> int:
        """The newest id, or the horizon."""
        return self.ids[-1] if self.ids else self.horizon

    def above(self, cursor: int) -> int:
        """Return the index of the first row above a cursor."""
        return bisect_right(self.ids, cursor)

    def add(self, row: Message) -> None:
        """Append a row."""
        self.ids.append(row.id)
        self.rows.append(row)
        self.history.append(row)

    def prune(self, count: int) -> list[Message]:
        """Remove the oldest rows, and remember the horizon."""
        gone = self.rows[:count]
        if gone:
            del self.rows[:count], self.ids[:count]
            self.horizon = gone[-1].id
            self.highest_horizon = max(self.highest_horizon, self.horizon)
            for row in gone:
                row.gone = True
        return gone


class Listener:
    """What the server knows of a session that listens. ``deliver`` is called with each notification, in the order of commits."""

    def __init__(self, deliver: Callable[[str, str], None]) -> None:
        self.channels: set[str] = set()
        self.deliver = deliver


class Server:
    """The database, as it is now."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.streams: dict[str, Stream] = {}
        self.sequence = int(CLOCK.time() * 1e6)
        self.floor = self.sequence
        self.epoch = self.jumped = 1
        self.forgotten = 0
        self.listeners: list[Listener] = []
        self.locks = [Semaphore() for _ in range(LOCKS)]
        self.bells = 2
        self.can_notify = True
        self.xids: dict[int, None] = {}
        self.next_xid = 1000
        self.home = 1
        self.steward = (0, 0.0, False, False)  # number, time of the last sign, rings, hears
        self.company_at = -100.0
        self.workers: dict[str, float] = {}
        self.ephemerals: dict[int, tuple[str, str | None, str, str | None, str | None]] = {}
        self.next_ephemeral = 1
        self.revocations: list[tuple[int, int, str, float]] = []  # id, xid, owner, at
        self.on_commit: Callable[[list[Message]], None] = lambda messages: None
        self.on_notify: Callable[[str, str], None] = self.broadcast
        self.rings = self.commits = 0
        self.channel = 1  # changes if the names of the channels are replaced

    def stream(self, name: str) -> Stream:
        """Return a stream."""
        found = self.streams.get(name)
        if found is None:
            found = self.streams[name] = Stream()
        return found

    def lock(self, name: str) -> Semaphore:
        """Return the lock of a stream; several share one."""
        return self.locks[sum(name.encode()) % LOCKS]

    # ids

    def draw(self, name: str, above: int) -> int:
        """Return the next id for a stream that is locked; the stream's newest id is ``above``."""
        self.sequence += 1
        if self.sequence <= above or not self.good(self.sequence):
            highest = max(above, self.floor)
            if self.sequence <= highest or not self.good(self.sequence):
                self.sequence = max(int(CLOCK.time() * 1e6), self.sequence + 100_000, highest + 100_000)
                self.floor = self.sequence
                self.jumped = self.epoch
            self.sequence += 1
        return self.sequence

    def good(self, id: int) -> bool:
        """Whether an id of the sequence is of this epoch."""
        return self.jumped == self.epoch and self.floor < id

    def begin_xid(self) -> int:
        """Give a transaction a number, at its first write."""
        self.next_xid += 1
        self.xids[self.next_xid] = None
        return self.next_xid

    @property
    def ended_below(self) -> int:
        """The transaction id below which all have ended."""
        return next(iter(self.xids), self.next_xid + 1)

    # notifications

    def broadcast(self, channel: str, payload: str) -> None:
        """Give a notification to all sessions that listen on its channel."""
        for listener in list(self.listeners):
            if channel in listener.channels:
                listener.deliver(channel, payload)

    def doorbell(self, stream: str) -> str:
        """Return the channel of a stream."""
        from pgbus_gevent.core.buckets import bucket_of, channel

        return channel(self.doorbell_name, bucket_of(stream))

    @property
    def doorbell_name(self) -> str:
        """The name from which the channels of the buckets are made."""
        return f"{CHANNEL}{self.channel}"

    @property
    def control_name(self) -> str:
        """The name of the control channel."""
        return f"{CONTROL_CHANNEL}{self.channel}"

    def ring(self, messages: list[Message]) -> None:
        """Ring for the messages of one transaction."""
        self.rings += 1
        if len(messages) == 1:
            self.on_notify(self.doorbell(messages[0].stream), messages[0].payload)
            return
        by_channel: dict[str, list[str]] = {}
        for name in dict.fromkeys(message.stream for message in messages):
            by_channel.setdefault(self.doorbell(name), []).append(name)
        for channel, names in by_channel.items():
            self.on_notify(channel, json.dumps(["moved", *names]))

    # commits

    def commit(self, messages: list[Message], *, rings: bool) -> None:
        """Make the messages of a transaction visible, all at once, and ring for them."""
        now = CLOCK.now
        for message in messages:
            message.seen_at = now
            self.stream(message.stream).add(message)
        self.commits += 1
        self.on_commit(messages)
        if rings and messages:
            self.ring(messages)

    # losses

    def crash(self) -> None:
        """End all sessions, as a restart after a crash does. A new epoch begins."""
        self.epoch += 1
        self.home += 1
        self.steward = (0, 0.0, False, False)
        self.workers.clear()
        self.ephemerals.clear()
        self.xids.clear()

    def go_back(self, since: float) -> list[Message]:
        """Lose what was committed since a moment, as a promoted standby or a restored backup. Returns the lost messages."""
        lost: list[Message] = []
        for stream in self.streams.values():
            keep = bisect_left([row.seen_at for row in stream.history], since)
            gone = stream.history[keep:]
            if not gone:
                continue
            lost += gone
            del stream.history[keep:]
            first = gone[0].id
            cut = bisect_left(stream.ids, first)
            del stream.ids[cut:], stream.rows[cut:]
            if stream.horizon >= first:
                # The pruning of what never was is undone too; what it removed before stays removed.
                stream.horizon = max((row.id for row in stream.history if row.gone), default=0)
        self.sequence -= self.random.randint(0, 40)
        self.crash()
        return lost

    # reading

    def newest(self) -> int:
        """Return the highest id of all streams."""
        return max((stream.ids[-1] for stream in self.streams.values() if stream.ids), default=0)

    def between(self, low: int, high: int) -> Iterable[Message]:
        """Return the messages with ids from ``low`` to ``high``, of all streams, by rising id."""
        found: list[Message] = []
        for stream in self.streams.values():
            if stream.ids and stream.ids[-1] >= low:
                found += stream.rows[bisect_left(stream.ids, low) : bisect_right(stream.ids, high)]
        found.sort(key=_id)
        return found


def _id(message: Message) -> int:
    return message.id


class Publisher:
    """A transaction of an application, which runs in a greenlet of its own. ``chance`` decides how long its steps take."""

    def __init__(self, server: Server, chance: Random, *, slow: float = 1.0) -> None:
        self._server = server
        self._chance = chance
        self._slow = slow

    def pause(self, mean: float) -> None:
        """Wait for about ``mean`` seconds."""
        gevent.sleep(self._chance.expovariate(1 / (mean * self._slow)))

    def run(self, messages: list[Message], *, kind: str, holds: float, fails: bool) -> None:
        """Publish messages in one transaction.

        ``kind`` is ``now``, ``commit`` or ``repeatable``. ``holds`` is how long the transaction stays open between its last append
        and its commit. If it ``fails``, it is rolled back then.
        """
        server = self._server
        epoch, home = server.epoch, server.home
        held: list[Semaphore] = []
        xid: int | None = None
        bell = False
        try:
            if kind == "commit":
                gevent.sleep(holds)
                if fails:
                    return
            xid = self._append(messages, held, kind)
            if kind != "commit":
                gevent.sleep(holds)
            if fails or server.home != home:
                return
            rings = server.can_notify
            if rings and server.bells > 0:
                server.bells -= 1
                bell = True
            self.pause(0.0008)  # until the commit is on the disk
            if server.home != home or server.epoch != epoch:
                return  # the server was restarted, and has forgotten the transaction
            server.xids.pop(xid or 0, None)
            server.commit(messages, rings=bell)
        finally:
            server.xids.pop(xid or 0, None)
            server.bells += bell
            for lock in held:
                lock.release()

    def _append(self, messages: list[Message], held: list[Semaphore], kind: str) -> int:
        """Lock the streams, and draw the ids. Return the number of the transaction."""
        server = self._server
        newest: dict[str, int] = {}
        xid = 0
        for lock in sorted({server.locks.index(server.lock(message.stream)) for message in messages}):
            server.locks[lock].acquire()
            held.append(server.locks[lock])
        for message in messages:
            above = newest.get(message.stream, server.stream(message.stream).head)
            first = message.stream not in newest
            message.id = server.draw(message.stream, above)
            if not xid:
                if self._chance.random() < 0.1:
                    self.pause(0.001)  # an id was drawn, and the transaction has no number yet
                xid = server.begin_xid()
            message.prev_id = None if kind == "repeatable" and first else above
            message.created_at = CLOCK.time()
            newest[message.stream] = message.id
        return xid


def ephemeral(server: Server, message: Message, *, large: bool) -> int:
    """Publish an ephemeral message in a transaction of its own. Returns its number."""
    number = server.next_ephemeral
    server.next_ephemeral += 1
    if not server.can_notify:
        return number
    if large:
        server.ephemerals[number] = (
            message.stream, message.event, message.data, message.visible_to, message.exclude,
        )  # fmt: skip
        payload: list[Any] = ["large", message.stream, number]
    else:
        payload = [
            "ephemeral", message.stream, number, message.event, message.data, message.visible_to, message.exclude,
        ]  # fmt: skip
    server.on_notify(server.doorbell(message.stream), json.dumps(payload))
    return number
