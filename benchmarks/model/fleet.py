"""The model: costs by arithmetic, delays by a simulation of events.

The simulation has a database with some cores, wakes that it sends to the workers, and workers with one core each. Workers are
alike, so only a sample of them is simulated; the database and Redis do the work for all. All times are seconds.
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import exp, fsum
from pathlib import Path
from typing import Any, NamedTuple

from pgbus_gevent.core.relay_signs import until_next
from pgbus_gevent.streamer.listener import _PINGS, PING_INTERVAL, PING_INTERVAL_MOST
from pgbus_gevent.streamer.pulse import RELAYED_INTERVAL
from pgbus_gevent.streamer.roll_call import _PER_WORKER, INTERVAL, INTERVAL_MOST
from pgbus_gevent.streamer.steward import _ASK_PER_WORKER, ASK

CONSTANTS = Path(__file__).with_name("constants.json")

SAMPLE = 40
"""The most workers that are simulated."""

MOST_PACE, PACE = 0.025, 0.00025
"""The least time between two wakes of all workers: the second number for each worker, up to the first (``pgbus._pace_rings``)."""

RELAYS = 2
"""The workers that hear PostgreSQL if the others hear Redis."""

MOST_MESSAGES = 4000
"""The most messages of a simulation."""

CATCH_UP = 5.0
"""The setting ``catch_up_interval``, as it is by default."""

LOOK = 64
"""The most streams in one statement of a reader."""


class Constants:
    """The measured costs, as attributes."""

    def __init__(self, path: Path = CONSTANTS) -> None:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.machine = values.pop("machine")
        self.sources = {name: (one["value"], one["unit"], one["source"]) for name, one in values.items()}
        self._values = {name: float(one["value"]) for name, one in values.items()}

    def __getattr__(self, name: str) -> float:
        return max(0.0, self._values[name])


@dataclass(frozen=True)
class Plan:
    """A fleet and its load. ``rate`` is messages per second over all streams; ``payload`` their size in bytes."""

    connections: int
    workers: int
    streams: int
    rate: float
    payload: int = 200
    redis: bool = False
    shards: int = 1
    database_cores: int = 16
    spread: bool = False  # the clients of a stream are at different workers, and not at random ones

    @property
    def clients_of_a_stream(self) -> float:
        return self.connections / self.streams

    @property
    def hearing(self) -> float:
        """How many workers have clients of a stream."""
        if self.spread:
            return min(self.workers, self.clients_of_a_stream)
        return self.workers * (1 - exp(-self.clients_of_a_stream / self.workers)) if self.workers > 1 else 1.0

    @property
    def listeners(self) -> int:
        """How many workers PostgreSQL wakes."""
        return min(RELAYS, self.workers) if self.redis else self.workers

    @property
    def pace(self) -> float:
        return min(MOST_PACE, PACE * self.workers)


def questions(workers: int, *, redis: bool) -> float:
    """Return how many questions a second an idle worker asks the database. In a large fleet, each worker asks less."""
    probes = 1 / until_next(CATCH_UP, workers=workers, listening=True, relayed=redis)
    if redis:
        return (
            probes + 1 / RELAYED_INTERVAL
        )  # the roll, the election and the listener's pings do not go through PostgreSQL
    asks = 1 / max(ASK[0], min(_ASK_PER_WORKER * workers, ASK[1]))
    pings = 1 / max(PING_INTERVAL, min(workers / _PINGS, PING_INTERVAL_MOST))
    reports = 1 / max(INTERVAL, min(_PER_WORKER * workers, INTERVAL_MOST))
    return probes + asks + pings + reports


def askers(workers: int, *, redis: bool = False) -> float:
    """Return how many workers of a small fleet that LISTENs ask as much as these."""
    return workers * questions(workers, redis=redis) / questions(1, redis=False)


class Costs(NamedTuple):
    """What a fleet uses. CPU is in cores; a worker has one core, and so has a shard of Redis."""

    statements: float
    wakes: float
    database: float
    worker: float
    shard: float
    bytes_per_worker: float
    memory_per_worker: float
    sessions: int


def costs(plan: Plan, c: Constants) -> Costs:
    """Return what the fleet uses in each second."""
    rings = min(plan.rate, 1 / plan.pace)
    heard = min(plan.hearing, plan.listeners)
    wakes = rings * plan.listeners
    asking = askers(plan.workers, redis=plan.redis)
    fleet = c.relay_cpu + plan.workers * c.report_cpu if plan.redis else c.fleet_cpu
    database = fleet + asking * c.idle_database_cpu + plan.rate * c.append_cpu
    database += rings * c.ring_cpu + rings * (heard * c.wake_cpu + (plan.listeners - heard) * c.wake_other_cpu)
    statements = (c.relay_statements if plan.redis else c.fleet_statements) + asking * c.idle_statements
    statements += rings * c.steward_statements + plan.rate * heard * c.statements_hearing
    deliveries = plan.rate * plan.clients_of_a_stream / plan.workers
    messages = plan.rate * plan.hearing / plan.workers
    here = plan.connections / plan.workers
    woken = min(min(messages, 1 / plan.pace) * c.woken_cpu, c.busy_cpu)
    worker = woken + messages * c.message_cpu + deliveries * c.delivery_cpu + here * c.idle_connection_cpu
    shard = (
        plan.rate / plan.shards * (c.redis_publish_cpu + plan.hearing * c.redis_subscriber_cpu) if plan.redis else 0.0
    )
    size = plan.payload + c.frame_bytes + c.packet_bytes
    rings_memory = min(64 * 2**20, plan.streams * plan.hearing / plan.workers * 100 * (plan.payload + c.ring_bytes))
    return Costs(
        statements=statements,
        wakes=wakes,
        database=database,
        worker=worker,
        shard=shard,
        bytes_per_worker=deliveries * size,
        memory_per_worker=c.worker_memory + here * c.connection_memory + rings_memory,
        sessions=2 * plan.workers,
    )


class Delays(NamedTuple):
    """From the start of the publisher's statement until a client is sent the message."""

    p50: float
    p99: float


def simulate(
    plan: Plan,
    c: Constants,
    *,
    seconds: float = 20.0,
    delivery: float | None = None,
    regular: bool = False,
    seed: int = 13,
) -> Delays:
    """Return the delays of messages over ``seconds``. ``delivery`` is the time for one client, by default its CPU.

    With ``regular``, messages come at equal distances instead of at random.
    """
    return _Simulation(plan, c, delivery, random.Random(seed)).run(seconds, regular)


class _Simulation:
    def __init__(self, plan: Plan, c: Constants, delivery: float | None, chance: random.Random) -> None:
        self._plan, self._c, self._chance = plan, c, chance
        self._delivery = c.delivery_cpu if delivery is None else delivery
        self._events: list[tuple[float, int, str, Any]] = []
        self._numbers = 0
        self._cores = [0.0] * plan.database_cores  # when each is free
        self._shards = [0.0] * plan.shards
        self._workers = [0.0] * min(plan.workers, SAMPLE)
        self._committed: list[float] = []  # messages that wait for the next wake, by when they were published
        self._next_ring = 0.0
        self._ring_due = False
        self._delays: list[tuple[float, float]] = []

    def run(self, seconds: float, regular: bool) -> Delays:
        for at in self._arrivals(seconds, regular):
            self._add(at, "published", at)
        while self._events:
            at, _, kind, what = heapq.heappop(self._events)
            getattr(self, f"_{kind}")(at, what)
        return self._percentiles()

    def _add(self, at: float, kind: str, what: Any) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (at, self._numbers, kind, what))

    def _arrivals(self, seconds: float, regular: bool) -> Iterator[float]:
        at = 0.0
        # Under a high rate, the simulated time is shortened.
        for _ in range(min(MOST_MESSAGES, int(self._plan.rate * seconds) or 1)):
            at += 1 / self._plan.rate if regular else self._chance.expovariate(self._plan.rate)
            yield at

    def _published(self, now: float, published: float) -> None:
        start = max(now, heapq.heappop(self._cores))
        heapq.heappush(self._cores, start + self._c.append_cpu)
        self._add(start + self._c.append_cpu, "done", published)

    def _done(self, now: float, published: float) -> None:
        self._committed.append(published)
        if not self._ring_due:
            self._ring_due = True
            self._add(max(now, self._next_ring), "ring", None)

    def _ring(self, now: float, _: None) -> None:
        """Wake every listener. The database's cores share the work, and publishers wait behind it."""
        plan, c = self._plan, self._c
        self._ring_due, self._next_ring = False, now + plan.pace
        messages, self._committed = self._committed, []
        heard = min(plan.hearing, plan.listeners)
        work = c.ring_cpu + heard * c.wake_cpu + (plan.listeners - heard) * c.wake_other_cpu
        each = work / plan.database_cores
        starts = [max(now, free) for free in self._cores]
        self._cores = [start + each for start in starts]
        heapq.heapify(self._cores)
        if plan.redis:
            self._add(max(starts) + each * self._chance.random() + c.wake_delay, "relayed", messages)
            return
        for worker in range(len(self._workers)):
            rank = self._chance.random()
            self._add(self._chance.choice(starts) + each * rank + c.wake_delay, "heard", (worker, messages))

    def _relayed(self, now: float, messages: list[float]) -> None:
        plan, c = self._plan, self._c
        work = c.redis_publish_cpu + plan.hearing * c.redis_subscriber_cpu
        for published in messages:
            shard = self._chance.randrange(plan.shards)
            start = max(now, self._shards[shard])
            self._shards[shard] = start + work
            for worker in range(len(self._workers)):
                self._add(start + work * self._chance.random() + c.redis_hop, "heard", (worker, [published]))

    def _heard(self, now: float, what: tuple[int, list[float]]) -> None:
        worker, messages = what
        here = self._plan.clients_of_a_stream / self._plan.workers
        # In a large fleet, the sample may have no client of a stream. Then one is watched that costs the worker nothing.
        watched = self._chance.random() * len(self._workers) < 1
        for published in messages:
            clients = _poisson(here, self._chance) if self._plan.workers > 1 else round(here)
            if not clients and not watched:
                continue
            start = max(now, self._workers[worker]) + self._c.message_cpu
            if clients:
                self._workers[worker] = start + clients * self._delivery
            count = max(1, clients)
            for _ in range(min(3, count)):
                at = start + self._chance.uniform(0, count) * self._delivery
                self._delays.append((at - published, count / min(3, count)))

    def _percentiles(self) -> Delays:
        ordered = sorted(self._delays)
        whole, so_far, found = fsum(weight for _, weight in ordered), 0.0, []
        for share in (0.5, 0.99):
            so_far = 0.0
            for delay, weight in ordered:
                so_far += weight
                if so_far >= share * whole:
                    found.append(delay)
                    break
        return Delays(*found) if len(found) == 2 else Delays(0.0, 0.0)


def _poisson(mean: float, chance: random.Random) -> int:
    if mean > 50:
        return max(0, round(chance.gauss(mean, mean**0.5)))
    limit, product, count = exp(-mean), chance.random(), 0
    while product > limit:
        product *= chance.random()
        count += 1
    return count


class Storm(NamedTuple):
    """What follows the loss of workers: clients that come to each other one, seconds until a client is greeted, and statements."""

    clients_per_worker: float
    p50: float
    p99: float
    statements: float


def storm(plan: Plan, c: Constants, lost: int, *, window: float = 1.0, seed: int = 13) -> Storm:
    """Simulate that ``lost`` workers end and their clients come back to the others, all within ``window`` seconds."""
    chance = random.Random(seed)
    left = plan.workers - lost
    each = plan.connections * lost / plan.workers / left
    free, delays = 0.0, []
    usual = costs(replace(plan), c).worker
    speed = max(0.05, 1 - usual)  # the rest of the core
    for at in sorted(chance.uniform(0, window) for _ in range(min(200_000, round(each)))):
        free = max(free, at) + c.open_cpu / speed
        delays.append(free - at)
    delays = delays or [0.0]
    delays.sort()
    # A stream that is new to a worker costs it a look.
    new = min(each, plan.streams) * exp(-plan.clients_of_a_stream / plan.workers) * left
    return Storm(each, delays[len(delays) // 2], delays[int(len(delays) * 0.99)], new / LOOK)
