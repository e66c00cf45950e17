"""A target in which another program writes anything to Redis: any bytes, of any type, under any of our names, on any channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from redis_parts import KEYS, fresh_session, redis_server
from streamer_parts import FakeClient, added, make_board

from fuzzing.engine import Check, Target
from fuzzing.inputs import Taker
from pgbus_gevent.core.fleet_counts import Report, Sum
from pgbus_gevent.core.rows import OpenQuestion, PageRows
from pgbus_gevent.errors import DatabaseUnavailable, RedisUnavailable
from pgbus_gevent.redis.caps import RedisCaps
from pgbus_gevent.redis.leases import RedisLeases
from pgbus_gevent.redis.publisher import Publisher
from pgbus_gevent.redis.reads import RedisReads
from pgbus_gevent.redis.roll import RedisRoll
from pgbus_gevent.redis.session import RedisSession
from pgbus_gevent.redis.urls import parse


class _Database:
    """The statements to which a worker turns when Redis is of no use."""

    def report(self, worker: str, report: Report, *, pause: float) -> Sum:
        return Sum(1.0, 1.0, {}, {})

    def leave(self, id: str) -> None:
        pass

    def others(self, workers: Iterable[str]) -> bool:
        return False

    def beat(self, *_: Any) -> tuple[float, float, int]:
        return 1000.0, 0.0, 1

    def beat_many(self, beats: Mapping[str, Any]) -> tuple[set[str], float, int]:
        return set(beats), 0.25, len(beats)

    def touch_many(self, places: Sequence[Any], *, ttl: float) -> list[int]:
        return []

    def openings(self, questions: Sequence[OpenQuestion], **_: Any) -> Any:
        raise DatabaseUnavailable("away")

    def pages(self, after: Sequence[Any], **_: Any) -> list[PageRows]:
        raise DatabaseUnavailable("away")


NAMES = (
    KEYS.roll, KEYS.answers, KEYS.cap_reports, KEYS.cap_sum, KEYS.cap_turn, KEYS.leases, KEYS.log("orders"),
    KEYS.lease_answer("w"),
    KEYS.reign(0, "r"),
)  # fmt: skip
WAKE = '["message", "orders", 11, 10, 0, null, "x", null, null]'
SEALED = KEYS.seal("r", 1, WAKE)
PLACED = (
    KEYS.seal("r", 1, '["w", {}]', place=KEYS.roll),
    KEYS.seal("r", 1, '["w", 0.25, 3]', place=KEYS.answers),
    KEYS.seal("r", 1, "[0]", place=KEYS.lease_answer("w")),
)
"""What a program can repeat that has seen it: texts that workers have sealed, each for its place."""


def _write(client: Any, take: Taker) -> None:
    """Write a value of any type under one of our names."""
    name, kind = take.pick(NAMES), take.byte() % 6
    values = [take.pick((b"", SEALED, *PLACED)) + take.bytes() for _ in range(1 + take.byte() % 5)]
    client.unlink(name)
    if kind == 0:
        client.set(name, values[0])
    elif kind == 1:
        client.hset(name, mapping={(b"w" if n == 0 else value): value for n, value in enumerate(values)})
    elif kind == 2:
        client.rpush(name, *values)
    elif kind == 3:
        client.sadd(name, *values)
    elif kind == 4:
        client.zadd(name, {value: n for n, value in enumerate(values)})
    else:
        for n, value in enumerate(values):
            client.xadd(
                name, {(b"m" if n % 2 else value): value, **({"z": b""} if len(value) % 2 else {})}, id=f"{11 + n}-0"
            )


@contextmanager
def redis() -> Iterator[Check]:
    """Whatever Redis has, a worker gets what the database has, or learns that Redis is of no use now."""
    with redis_server() as server, server.client as client:
        url, database, wakes = parse(server.url), _Database(), SimpleNamespace(session=fresh_session())
        wakes.session.logs = True
        board = make_board()
        log = added(board, FakeClient("a", "orders")).log
        log.open(head=10, horizon=0, oldest=10, floor=10, rows=[])
        publisher = Publisher(url, KEYS)

        def attempt(part: Callable[[], object]) -> None:
            try:
                part()
            except (RedisUnavailable, DatabaseUnavailable):
                pass

        def work() -> None:
            """Do once what the parts of a worker do with Redis, each with no memory of the last time."""
            roll, leases = RedisRoll(url, database, wakes), RedisLeases(url, database, wakes)
            leases._worker = "w"
            caps, reads = RedisCaps(url, database, wakes), RedisReads(url, database, wakes, board)
            attempt(lambda: roll.beat("w", "h", 1, 0.0, {}))
            attempt(roll.collect)
            attempt(lambda: leases.touch_many([("room", "ada", "1")], ttl=45.0))
            attempt(leases.collect)
            attempt(lambda: caps.report("w", Report([1], [1], [4], True), pause=0.0))
            log.announced = 12
            attempt(lambda: reads.pages([("orders", 10)], limit=10, size=1000))
            attempt(lambda: reads.openings([OpenQuestion("orders", 5, None)], limit=10, size=1000))
            caps.close()
            reads.discard_idle()

        def check(data: bytes) -> None:
            take = Taker(data)
            if take.byte() % 3:
                _write(client, take)
                work()
                return
            channel = take.pick((KEYS.control, KEYS.channel("orders")))
            text = take.rest()
            session = RedisSession(url, KEYS)
            try:
                session.follow(["orders"])
                client.publish(channel, text)
                publisher.beacon()
                assert session.hears(), "the beacon behind it"
                heard, _ = session.receive(0.0)
                assert heard == ([WAKE] if text == SEALED else [])
            finally:
                session.close()

        try:
            yield check
        finally:
            publisher.close()


REDIS = Target(
    "redis", redis,
    (*(bytes([1, name, kind]) for name in range(len(NAMES)) for kind in range(6)), b"\0\0", b"\0\1", SEALED, SEALED[:30],
     PLACED[0], b"\n", b"w",
     b"\1", b"\4", b"\xff\xfe", b"\0", b"[", b'["beacon", "g", true]', b"0" * 23, b"r 1 {}", b"x" * 3000),
    most=60_000, needs="redis",
    about="what other programs may write to Redis: reports, logs, leases, sums, texts on channels",
)  # fmt: skip

TARGETS = (REDIS,)
