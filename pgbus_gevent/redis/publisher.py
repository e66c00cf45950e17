"""What a relay writes to Redis: wakes, the logs of streams, and beacons."""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from time import monotonic, time
from typing import Any, NamedTuple

from ..errors import RedisUnavailable
from .keys import SHARDS, Keys
from .links import Command, Pipes, of_another_type
from .refusals import failure
from .urls import RedisURL

logger = logging.getLogger("pgbus_gevent.redis")

BEACON = '["beacon","%s",%d]'
"""The payload of a beacon: the generation, and 1 if the logs can be used, otherwise 0."""

BATCH = 200
"""The most wakes that are sent before their answers are read."""

BATCH_SIZE = 4 * 1024 * 1024
"""The size of wakes, in characters, after which a batch ends."""

REIGN_LASTS = 3600
"""Seconds after which the key of a reign expires, if no beacon renews it. Longer than a log lasts, because a full Redis with the
policy ``volatile-ttl`` evicts the keys first that expire first, and each time the key of a reign is gone, all workers look."""

LARGEST_ENTRY = 8000
"""The most bytes of a message in a log. Of a larger one, the log only has the id."""

TRY_LOGS = 10.0, 600.0
"""Seconds until the logs are tried again after Redis was full, at first and at most. Each try has all workers look twice."""

ROOM = 0.75
"""The share of the limit to which the logs must have shrunk before messages are appended again."""

_NODE = 100  # XADD with MAXLEN ~ trims only whole nodes, and so many entries are in one


class Outgoing(NamedTuple):
    """A wake to publish. ``stream`` is None for one that everybody hears. ``id`` is set if ``payload`` has a whole message."""

    stream: str | None
    payload: str
    id: int | None = None


class LogBudget:
    """About how many bytes the logs of all streams hold together. ``keep`` is how many messages are kept of each.

    A log's key expires ``ttl`` seconds after its last message.
    """

    def __init__(self, limit: int, ttl: float, keep: int) -> None:
        self._limit = limit
        self._ttl = ttl
        self._keep = keep + _NODE
        self._logs: dict[str, tuple[float, int, float]] = {}  # in the order of their last message
        self._sum = 0.0

    def add(self, key: str, size: int, now: float) -> None:
        """Count ``size`` bytes, added to a log at ``now``."""
        _, count, mean = self._logs.pop(key, (now, 0, 0.0))
        self._sum -= count * mean
        count = min(count + 1, self._keep)
        mean += (size - mean) / count  # of a full log, the oldest messages go, which are taken to be of the mean size
        self._sum += count * mean
        self._logs[key] = now, count, mean

    def used(self, now: float) -> float:
        """Return the share of the limit that the logs use."""
        while self._logs:
            key, (at, count, mean) = next(iter(self._logs.items()))
            if now - at <= self._ttl:
                break
            del self._logs[key]
            self._sum -= count * mean
        return self._sum / self._limit


class Publisher:
    """Publishes under a *reign*: a name that it makes anew when Redis may have lost something that it wrote.

    Each wake is published on the channel of its stream. A message is first appended to the log of its stream, under its own id, so
    that the log is in order even if two relays publish; a log that would get a hole is removed. Raises :class:`RedisUnavailable`
    if Redis does not take it all; then the publisher is of no more use. One greenlet uses it.

    ``keep`` is about how many messages of a stream are kept, ``ttl`` for how many seconds after the last one, ``budget`` the
    bytes of all logs together.
    """

    def __init__(
        self,
        url: RedisURL,
        keys: Keys,
        *,
        keep: int = 1000,
        ttl: int = 600,
        budget: int = 256 * 1024 * 1024,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.keys = keys
        self._keep = keep
        self._ttl = ttl
        self._clock = clock
        self._budget = LogBudget(budget, ttl, keep)
        self._counts: Counter[str] = Counter()
        self.logs = False
        """Whether whole messages are appended to logs."""
        self._logs_tried = 0.0
        self._try_after = TRY_LOGS[0] / 2
        self.reign = ""
        self.published = 0
        self._pipes = Pipes(url)
        try:
            self._check_rights()
            self._begin()
        except BaseException:
            self.close()
            raise

    def _check_rights(self) -> None:
        """Have Redis refuse now what it would refuse with the first message.

        Otherwise workers would rely on a reign that ends at once, again and again. The commands change nothing.
        """
        commands: list[tuple[str, Command]] = []
        for shard in self._shards():
            name = self.keys.reign(shard, "none")  # there is no such key
            commands += [
                (name, ("XADD", name, "NOMKSTREAM", "MAXLEN", "~", self._keep, "1-0", "m", "")),
                (name, ("EXPIRE", name, self._ttl)),
                (name, ("UNLINK", name)),
            ]
        self._run(commands)

    # the reign

    def _begin(self, *, logs: bool = True) -> None:
        """Begin a new reign, with a beacon for everybody."""
        former, self.reign = self.reign, f"{int(time() * 1000):x}.{secrets.token_hex(4)}"
        self._counts.clear()
        now = self._clock()
        if self.logs and not logs:
            self._try_later(lasted=now - self._logs_tried)
        self.logs = False
        self._logs_tried = now
        if former:
            names = [self.keys.reign(shard, former) for shard in self._shards()]
            self._run([(name, ("UNLINK", name)) for name in names])
        self.logs = logs and self._budget.used(now) < 1.0 and self._has_room()
        self._run(self._beacons())

    def _has_room(self) -> bool:
        """Write the keys of the reign. Return whether Redis had room for them."""
        names = [self.keys.reign(shard, self.reign) for shard in self._shards()]
        answers = self._run([(name, ("SET", name, 1, "EX", REIGN_LASTS)) for name in names])
        return not any(_is_full(answer) for answer in answers)

    def _try_later(self, *, lasted: float = 0.0) -> None:
        """Choose when to try the logs again, which have ``lasted`` so many seconds. Later each time, if they never last."""
        self._try_after = TRY_LOGS[0] if lasted > 2 * self._try_after else min(2 * self._try_after, TRY_LOGS[1])

    def _shards(self) -> Iterable[int]:
        return range(SHARDS) if self.keys.sharded else range(1)

    def _beacons(self) -> list[tuple[str, Command]]:
        payload = BEACON % (self.keys.generation, self.logs)
        channels = [self.keys.control]
        if self.keys.sharded:
            channels += self.keys.all_channels()
        return [self._say(channel, payload) for channel in channels]

    def renew(self) -> None:
        """Begin a new reign, because the relay may have missed messages: no log of the last one counts as complete any more."""
        self._begin(logs=self.logs)

    def beacon(self) -> None:
        """Tell everybody that the relay is at work, and check that Redis has kept what was written. Call it every second."""
        if not self._pipes.current:
            raise RedisUnavailable("the master has changed, or slots have moved to other nodes")
        now = self._clock()
        if not self.logs:
            if now - self._logs_tried >= self._try_after and self._budget.used(now) < ROOM:
                if self._has_room():
                    self._begin()
                    return
                self._logs_tried = now
                self._try_later()
        elif self._budget.used(now) >= 1.0:
            logger.warning("the logs in Redis have reached their limit: publishing without logs for a while")
            self._begin(logs=False)
            return
        else:
            names = [self.keys.reign(shard, self.reign) for shard in self._shards()]
            if not all(self._run([(name, ("EXPIRE", name, REIGN_LASTS)) for name in names])):
                logger.warning("Redis was flushed or has evicted keys: beginning a new reign")
                self._begin()
                return
        self._run(self._beacons())

    # publishing

    def publish(self, wakes: Iterable[Outgoing]) -> None:
        """Publish wakes in this order; those of one stream arrive in it."""
        batch: list[Outgoing] = []
        size = 0
        for wake in wakes:
            batch.append(wake)
            size += len(wake.payload)
            if len(batch) >= BATCH or size >= BATCH_SIZE:
                self._publish(batch)
                batch, size = [], 0
        if batch:
            self._publish(batch)

    def _publish(self, batch: Sequence[Outgoing]) -> None:
        commands: list[tuple[str, Command]] = []
        appended: dict[int, str] = {}
        for stream, payload, id in batch:
            channel = self.keys.control if stream is None else self.keys.channel(stream)
            if self._is_counted(channel):
                self._counts[channel] += 1
            sealed = self.keys.seal(self.reign, self._counts.get(channel, 0), payload)
            if self.logs and stream is not None and id is not None:
                key = self.keys.log(stream)
                appended[len(commands)] = key
                commands += [(key, command) for command in self._append(key, id, sealed)]
            commands.append((channel, (self._verb, channel, sealed)))
        answers = self._run(commands)
        self.published += len(batch)
        if any(_is_full(answers[n]) for n in appended):
            logger.warning("Redis is full (maxmemory, or its disk): publishing without logs, and trying again later")
            self._begin(logs=False)
            return
        # A log that has a newer entry already would lack this message: it came late, or the newer one does not exist. A key
        # with a value of another type is no log.
        spoilt = {key for n, key in appended.items() if isinstance(answers[n], Exception)}
        self._run([(key, ("UNLINK", key)) for key in spoilt])

    def _append(self, key: str, id: int, sealed: bytes) -> list[Command]:
        entry = sealed if len(sealed) <= LARGEST_ENTRY else b""
        self._budget.add(key, len(entry) + 64, self._clock())
        return [("XADD", key, "MAXLEN", "~", self._keep, f"{id}-0", "m", entry), ("EXPIRE", key, self._ttl)]

    @property
    def _verb(self) -> str:
        return "SPUBLISH" if self.keys.sharded else "PUBLISH"

    def _is_counted(self, channel: str) -> bool:
        # Without shards, a worker does not hear all channels, and there may be any number of them.
        return self.keys.sharded or channel == self.keys.control

    def _say(self, channel: str, payload: str) -> tuple[str, Command]:
        return channel, (self._verb, channel, self.keys.seal(self.reign, self._counts[channel], payload))

    def _run(self, commands: Sequence[tuple[str, Command]]) -> list[Any]:
        """Return the answers to commands; errors that are no failure are among them."""
        answers = self._pipes.run(commands)
        for answer, (_, command) in zip(answers, commands, strict=True):
            if isinstance(answer, Exception) and not (_is_full(answer) or _is_known(answer) or of_another_type(answer)):
                raise failure("Redis", answer, f"refuses {command[0]!r}")
        return answers

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._pipes.close()


def _is_full(answer: object) -> bool:
    # MISCONF: it cannot write to its disk. NOREPLICAS: too few replicas. PUBLISH works all the same.
    refusals = "OOM", "command not allowed when used memory", "MISCONF", "NOREPLICAS"
    return isinstance(answer, Exception) and str(answer).startswith(refusals)


def _is_known(answer: Exception) -> bool:
    """Whether the log has this message, or a newer one, from another relay."""
    return "equal or smaller than the target stream top item" in str(answer)
