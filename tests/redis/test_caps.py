"""Caps over all workers through Redis: the reports, their sum, and PostgreSQL when Redis is of no use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from time import monotonic
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from redis_parts import KEYS, RedisServer, fresh_session, needs_redis, redis_cluster
from support import Serving, run, serving, session, until

from pgbus_gevent.core.cap_sums import COUNTED
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.fleet_counts import Report, Sum
from pgbus_gevent.errors import DatabaseUnavailable
from pgbus_gevent.redis import caps, hashes, wakes
from pgbus_gevent.redis.caps import RedisCaps, RedisSum
from pgbus_gevent.redis.keys import Keys
from pgbus_gevent.redis.links import Pipes
from pgbus_gevent.redis.urls import parse
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.web.stream_app import StreamApp

pytestmark = [needs_redis, pytest.mark.program]

ALWAYS, NEVER = 0.0, 1e9  # seconds between two sums
DATABASE = Sum(1.0, 1.0, {1: 99}, {})
AFTER_REDIS = DATABASE._replace(partial=True)


class Database:
    """The statements. ``reports`` are the workers that used it; ``elsewhere`` are those that report here only."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self.left: list[str] = []
        self.elsewhere: set[str] = set()
        self.asked = 0
        self.away = False

    def report(self, worker: str, report: Report, *, pause: float) -> Sum:
        if self.away:
            raise DatabaseUnavailable("away")
        self.reports.append(worker)
        return DATABASE

    def leave(self, worker: str) -> None:
        self.left.append(worker)

    def others(self, workers: Iterable[str]) -> bool:
        if self.away:
            raise DatabaseUnavailable("away")
        self.asked += 1
        return bool(self.elsewhere - set(workers))


class RedisClock:
    """Stands in for the clock of Redis, which stands still but for a microsecond at each look."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self, time: Sequence[bytes]) -> float:
        assert int(time[0]) > 0 and 0 <= int(time[1]) < 10**6, "it is Redis that was asked"
        self.now += 1e-6
        return self.now


class Fleet:
    """Workers with one Redis and one database. ``clock`` is that of Redis, and ``now`` the time of the workers."""

    def __init__(self, url: str, clock: RedisClock, *, sharded: bool = False) -> None:
        self.url = url
        self.clock = clock
        self.keys = Keys("secret", "g", sharded=sharded)
        self.database = Database()
        self.now = 0.0
        self.workers: dict[str, RedisCaps] = {}

    def __getitem__(self, name: str) -> RedisCaps:
        if name not in self.workers:
            found: Any = SimpleNamespace(session=fresh_session(self.keys))
            self.workers[name] = RedisCaps(parse(self.url), self.database, found, clock=lambda: self.now)
        return self.workers[name]

    def report(
        self, name: str, cap: int, counts: dict[int, int], pause: float = ALWAYS, *, grew: bool = False
    ) -> tuple[Any, Any]:
        """Return the totals and what this worker may keep."""
        found = self[name].report(name, report(cap, counts, grew=grew), pause=pause)
        return found.totals, found.kept

    def close(self) -> None:
        for one in self.workers.values():
            one.close()


def report(cap: int, counts: dict[int, int], *, grew: bool = False) -> Report:
    return Report([*counts], [*counts.values()], [cap] * len(counts), grew)


@pytest.fixture
def clock(patient: None, monkeypatch: pytest.MonkeyPatch) -> RedisClock:
    found = RedisClock()
    monkeypatch.setattr(caps, "_seconds", found)
    return found


@pytest.fixture
def fleet(server: RedisServer, clock: RedisClock) -> Iterator[Fleet]:
    with closing(Fleet(server.url, clock)) as found:
        yield found


def plant(fleet: Fleet, server: RedisServer, name: str, counts: dict[int, int], *, age: float, cap: int = 4) -> None:
    """Write a report of a worker as it was ``age`` seconds ago."""
    at = fleet.clock.now - age
    text = json.dumps([at, at, [*counts], [*counts.values()], [cap] * len(counts)])
    place = f"{KEYS.cap_reports} {name}"
    server.client.hset(KEYS.cap_reports, name, KEYS.seal("r", 1, text, place=place))


# sums


def test_many_workers_report_without_a_statement_for_each(fleet: Fleet) -> None:
    for n in range(20):
        fleet.report(f"w{n}", 100, {1: 3, n + 2: 60}, NEVER)
    assert fleet.report("w0", 100, {1: 3, -7: 50}) == ({1: 60, -7: 50, **{n + 2: 60 for n in range(1, 20)}}, {})
    assert fleet.database.reports == [] and fleet.database.asked == 2  # once for each sum


def test_a_sum_is_made_once_in_its_pause(fleet: Fleet) -> None:
    fleet.report("a", 10, {1: 5})
    assert fleet.report("b", 10, {1: 5}, NEVER) == ({1: 5}, {})
    assert fleet.report("c", 10, {}) == ({1: 10}, {})
    assert fleet.database.asked == 2


def test_a_sum_has_the_report_that_it_came_with(fleet: Fleet) -> None:
    first = fleet["a"].report("a", report(10, {1: 5}), pause=ALWAYS)
    last = fleet["a"].report("a", report(10, {1: 6}), pause=NEVER)
    assert first.instant < first.summed_at == last.summed_at < last.instant


def test_above_a_cap_those_that_have_grown_last_end_some(fleet: Fleet) -> None:
    for worker in ("c", "b", "a"):
        fleet.report(worker, 4, {1: 2})
    assert [fleet.report(worker, 4, {1: 2})[1] for worker in ("a", "b", "c")] == [{1: 0}, {}, {}]
    assert fleet.report("c", 4, {1: 3}, grew=True)[1] == {1: 0}
    assert [fleet.report(worker, 4, {1: 2})[1] for worker in ("a", "b")] == [{}, {}]


def test_a_worker_grew_although_the_report_that_said_so_went_to_the_database(fleet: Fleet) -> None:
    for worker in ("a", "b"):
        fleet.report(worker, 4, {1: 2})
    wakes: Any = fleet["a"]._wakes
    wakes.session.fresh = False
    fleet.report("a", 4, {1: 3}, grew=True)
    wakes.session.fresh = True
    assert fleet.report("a", 4, {1: 3})[1] == {1: 2}  # what b has left


def test_a_worker_that_leaves_does_not_count(fleet: Fleet, server: RedisServer) -> None:
    fleet.report("a", 4, {1: 3})
    fleet.report("b", 4, {1: 2})
    wakes: Any = fleet["a"]._wakes
    wakes.session = None  # the listener has ended before
    fleet["a"].leave("a")
    assert fleet.report("b", 4, {1: 2}) == ({1: 2}, {})
    assert server.client.hkeys(KEYS.cap_reports) == [b"b"] and fleet.database.left == []


def test_a_silent_worker_counts_for_refusals_first_and_then_not_at_all(fleet: Fleet, server: RedisServer) -> None:
    fleet.report("b", 4, {1: 2})
    plant(fleet, server, "a", {1: 3}, age=1)
    assert fleet.report("b", 4, {1: 2}) == ({1: 5}, {1: 1})
    plant(fleet, server, "a", {1: 3}, age=8)
    assert fleet.report("b", 4, {1: 2}) == ({1: 5}, {})
    plant(fleet, server, "a", {1: 3}, age=13)
    assert fleet.report("b", 4, {1: 2}) == ({1: 2}, {})
    assert server.client.hexists(KEYS.cap_reports, "a")
    plant(fleet, server, "a", {1: 3}, age=caps.KEPT + 1)
    fleet.report("b", 4, {1: 2})
    assert not server.client.hexists(KEYS.cap_reports, "a")


def test_what_is_kept_in_redis_expires(fleet: Fleet, server: RedisServer) -> None:
    fleet.report("a", 4, {1: 3})
    names = server.client.keys("*")
    assert sorted(names) == sorted([KEYS.cap_reports.encode(), KEYS.cap_sum.encode()])
    assert all(0 < server.client.ttl(name) <= caps.KEPT for name in names)


def test_a_report_of_a_thousand_keys_fits(fleet: Fleet) -> None:
    counts = dict.fromkeys(range(-500, 500), 2)
    fleet.report("a", 2, counts)
    assert fleet.report("b", 2, counts) == (dict.fromkeys(counts, 4), dict.fromkeys(counts, 0))


def test_other_greenlets_run_while_many_reports_are_read(fleet: Fleet, server: RedisServer) -> None:
    for n in range(6):
        fleet.report(f"w{n}", 6, dict.fromkeys(range(1000), 2), NEVER)
    found = [part for pair in server.client.hgetall(KEYS.cap_reports).items() for part in pair]
    turns = []

    def count() -> None:
        while True:
            turns.append(1)
            gevent.sleep(0)

    job = gevent.spawn(count)
    try:
        now = fleet.clock.now
        turns.clear()
        assert len(list(caps._reports(KEYS, found, now, [], []))) == 6
        read = len(turns)
    finally:
        job.kill()
    assert read >= 3


def test_workers_that_report_at_once_do_not_all_sum(fleet: Fleet, server: RedisServer) -> None:
    fleet.report("a", 4, {1: 3})
    server.client.set(KEYS.cap_turn, "x", px=60_000)  # stands for one that is just summing
    assert fleet.report("b", 4, {1: 3}) == ({1: 3}, {})  # the last sum
    server.client.delete(KEYS.cap_turn)
    assert fleet.report("b", 4, {1: 3})[0] == {1: 6}
    assert not server.client.exists(KEYS.cap_turn)


def test_the_time_is_that_of_redis(server: RedisServer) -> None:
    def now() -> float:
        seconds, microseconds = server.client.time()
        return float(seconds + microseconds / 1e6)

    before = now()
    with closing(Pipes(parse(server.url))) as pipes:
        assert before <= caps._seconds(pipes.ask("any", ("TIME",))[0]) <= now()


def test_a_cluster_keeps_the_reports_on_one_node(clock: RedisClock) -> None:
    with redis_cluster() as cluster, closing(Fleet(cluster.url, clock, sharded=True)) as fleet:
        fleet.report("a", 4, {1: 3})
        assert fleet.report("b", 4, {1: 2}) == ({1: 5}, {1: 1})
        fleet["a"].leave("a")
        assert fleet.report("b", 4, {1: 2}) == ({1: 2}, {})
        assert fleet.database.reports == []


def test_connections_are_used_again_in_one_session_and_closed_with_it(fleet: Fleet, server: RedisServer) -> None:
    client = server.client
    before = client.info("clients")["connected_clients"]

    def connections() -> int:
        return int(client.info("clients")["connected_clients"]) - before

    fleet.report("a", 4, {1: 3})
    made = client.info("stats")["total_connections_received"]
    for _ in range(3):
        fleet.report("a", 4, {1: 3})
    assert connections() == 1 and client.info("stats")["total_connections_received"] == made
    found: Any = fleet["a"]._wakes
    found.session = fresh_session()
    fleet.report("a", 4, {1: 3})
    assert client.info("stats")["total_connections_received"] == made + 1
    until(lambda: connections() == 1, "the former connection is closed")
    fleet.close()
    until(lambda: connections() == 0, "all are closed")


# somebody else writes to this Redis


def test_reports_that_no_worker_has_made_for_their_place_do_not_count(fleet: Fleet, server: RedisServer) -> None:
    fleet.report("a", 4, {1: 2})
    client, name = server.client, KEYS.cap_reports
    now = fleet.clock.now
    text = json.dumps([now, now, [1], [50], [4]])
    client.hset(name, "w", b"forged")
    client.hset(name, "x", Keys("another secret", "g", sharded=False).seal("r", 1, text, place=f"{name} x"))
    client.hset(name, "y", KEYS.seal("r", 1, text))  # published, and so known to everybody
    client.hset(name, "z", client.hget(name, "a"))  # the report of another worker
    client.hset(name, b"\xff\xfe", b"")
    assert fleet.report("a", 4, {1: 2}) == ({1: 2}, {})
    assert client.hkeys(name) == [b"a"]


def test_what_is_too_large_for_reports_is_removed_and_the_database_used_meanwhile(
    fleet: Fleet, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "FIELDS", 100)
    fleet.report("a", 4, {1: 2})
    server.client.hset(KEYS.cap_reports, mapping={f"x{n}": "x" for n in range(200)})
    assert fleet["a"].report("a", report(4, {1: 2}), pause=ALWAYS) == AFTER_REDIS
    fleet.now += caps.REST
    assert fleet.report("a", 4, {1: 2}) == ({1: 2}, {})
    assert server.client.hkeys(KEYS.cap_reports) == [b"a"]


def test_no_more_is_read_of_a_sum_than_workers_write(fleet: Fleet, server: RedisServer) -> None:
    fleet.report("a", 4, {1: 2})
    server.client.set(KEYS.cap_sum, b"x" * 20 * caps.SIZE)
    before = server.client.info("stats")["total_net_output_bytes"]
    assert fleet.report("a", 4, {1: 2}, NEVER) == ({1: 2}, {})
    assert server.client.info("stats")["total_net_output_bytes"] - before < 2 * caps.SIZE
    assert server.client.strlen(KEYS.cap_sum) < 1000


def test_a_sum_of_as_many_keys_as_there_can_be_is_not_too_long() -> None:
    keys = range(-(2**63), -(2**63) + 1000)
    most = dict.fromkeys(keys, 10**9)
    kept = {f"{key:016x}": {key: 10**9} for key in range(2**63 - 1000, 2**63)}
    assert len(KEYS.seal("r" * 32, 10**9, RedisSum(2e9 + 1 / 3, most, kept, True).text())) < caps.SIZE / 4


@pytest.mark.parametrize("loss", ["flushed", "evicted"])
def test_if_redis_loses_reports_the_database_is_used_until_all_have_reported_again(
    loss: str, fleet: Fleet, server: RedisServer
) -> None:
    for worker in ("a", "b"):
        fleet.report(worker, 10, {1: 3})
    if loss == "flushed":
        server.client.flushall()
    else:
        server.client.delete(KEYS.cap_reports)
    found = fleet["b"].report("b", report(10, {1: 3}), pause=NEVER)
    assert found == AFTER_REDIS
    fleet.now += caps.REST
    fleet.database.elsewhere = {"b"}  # it has reported there lately, and has not reported in Redis again
    server.client.delete(KEYS.cap_reports)
    assert fleet["a"].report("a", report(10, {1: 3}), pause=ALWAYS) == AFTER_REDIS
    for worker in ("b", "a"):
        found = fleet[worker].report(worker, report(10, {1: 3}), pause=ALWAYS)
    fleet.now += caps.REST
    found = fleet["a"].report("a", report(10, {1: 3}), pause=ALWAYS)
    assert found.totals == {1: 6}


def test_a_sum_is_not_made_of_reports_that_were_lost_after_the_worker_has_reported(
    fleet: Fleet, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for worker in ("a", "b"):
        fleet.report(worker, 10, {1: 3})
    read = hashes.read

    def late(pipes: Pipes, name: str, *commands: Any) -> Any:
        server.client.delete(name)
        return read(pipes, name, *commands)

    monkeypatch.setattr(hashes, "read", late)
    assert fleet["a"].report("a", report(10, {1: 3}), pause=ALWAYS) == AFTER_REDIS


def test_after_a_loss_a_report_has_to_last_before_a_sum_is_believed(fleet: Fleet, server: RedisServer) -> None:
    """Otherwise a worker would believe for seconds in a sum without the others, whose reports go on getting lost."""
    for worker in ("a", "b"):
        fleet.report(worker, 10, {1: 3})
    for _ in range(4):
        server.client.delete(KEYS.cap_reports)
        assert fleet["a"].report("a", report(10, {1: 3}), pause=ALWAYS)[:4] == DATABASE[:4], "it notices the loss"
        server.client.delete(KEYS.cap_reports)
        fleet.now += caps.LONGEST_REST
        assert fleet["a"].report("a", report(10, {1: 3}), pause=ALWAYS)[:4] == DATABASE[:4], "it is the first"
    fleet.report("b", 10, {1: 3})
    fleet.report("b", 10, {1: 3})
    assert fleet.report("a", 10, {1: 3}) == ({1: 6}, {})


def test_if_reports_never_last_the_database_is_used_for_longer(fleet: Fleet, server: RedisServer) -> None:
    def rest() -> float:
        """Lose a report, and return after how many seconds Redis is used again."""
        fleet.report("a", 10, {1: 3})
        server.client.delete(KEYS.cap_reports)
        began = fleet.now
        for _ in range(1000):
            if fleet["a"].report("a", report(10, {1: 3}), pause=ALWAYS)[:4] != DATABASE[:4]:
                return fleet.now - began
            fleet.now += 0.5
        raise AssertionError("it is never used again")

    rests = [rest() for _ in range(8)]
    for n, least in enumerate((2.5, 5.0, 10.0, 20.0, 30.0, 30.0, 30.0, 30.0)):
        assert least <= rests[n] <= 2 * least + 1.0
    fleet.now += caps.LASTING
    fleet.report("a", 10, {1: 3})
    assert rest() <= caps.REST + 1.0


def test_a_worker_whose_reports_expired_while_it_was_suspended_reports_anew(fleet: Fleet, server: RedisServer) -> None:
    fleet.report("a", 10, {1: 5})
    fleet.now += caps.KEPT
    server.client.delete(KEYS.cap_reports)
    assert fleet.report("a", 10, {1: 5}) == ({1: 5}, {})


def test_after_a_change_to_the_database_its_sums_may_not_have_all_workers_for_some_seconds(
    fleet: Fleet, server: RedisServer
) -> None:
    def partial() -> bool:
        return fleet["a"].report("a", report(10, {1: 5}), pause=ALWAYS).partial

    found: Any = fleet["a"]._wakes
    found.session.fresh = False
    assert not partial()  # it has had no sum from Redis
    found.session.fresh = True
    assert not partial()
    found.session.fresh = False
    assert partial()
    found.session.fresh = True
    fleet.now += COUNTED / 2
    assert partial()  # others may not have reported there again
    found.session.fresh = False
    assert partial()
    fleet.now += COUNTED / 2
    # Not longer, or an owner might be refused for ever because of connections that are gone.
    assert not partial()
    found.session.fresh = True
    assert not partial()
    found.session.fresh = False
    assert partial()


def test_a_report_that_is_repeated_later_counts_no_longer_than_it_would_have(fleet: Fleet, server: RedisServer) -> None:
    plant(fleet, server, "a", {1: 3}, age=8)
    repeated = server.client.hget(KEYS.cap_reports, "a")
    fleet.report("a", 4, {})
    fleet["a"].leave("a")

    def total() -> int:
        assert repeated is not None
        server.client.hset(KEYS.cap_reports, "a", repeated)
        totals, kept = fleet.report("b", 4, {})
        assert kept == {}
        return int(totals.get(1, 0))

    assert total() == 3
    fleet.clock.now += 3.9
    assert total() == 3
    fleet.clock.now += 0.1
    assert total() == 0


def test_a_report_from_the_future_does_not_count(fleet: Fleet, server: RedisServer) -> None:
    plant(fleet, server, "a", {1: 3}, age=-30)  # the clock of Redis was set back
    assert fleet.report("b", 4, {1: 2}) == ({1: 2}, {})


def test_a_sum_that_no_worker_has_made_is_not_believed(fleet: Fleet, server: RedisServer) -> None:
    fleet.report("a", 4, {1: 2})
    text = RedisSum(fleet.clock.now, {1: 50}, {"a": {1: 0}}, False).text()
    other = Keys("another secret", "g", sharded=False)
    for forged in (b"forged", KEYS.seal("r", 1, text), other.seal("r", 1, text, place=KEYS.cap_sum)):
        server.client.set(KEYS.cap_sum, forged)
        assert fleet.report("a", 4, {1: 2}, NEVER) == ({1: 2}, {})


def test_a_sum_that_is_repeated_is_not_taken_for_the_last_one(fleet: Fleet, server: RedisServer) -> None:
    fleet.report("a", 4, {1: 4})
    repeated = server.client.get(KEYS.cap_sum)
    fleet.report("a", 4, {1: 2})
    server.client.set(KEYS.cap_sum, repeated)
    assert fleet.report("a", 4, {1: 2}, NEVER) == ({1: 2}, {})


def test_an_old_sum_is_not_used_although_another_worker_seems_to_be_summing(fleet: Fleet, server: RedisServer) -> None:
    sealed = KEYS.seal("r", 1, RedisSum(fleet.clock.now - 7, {1: 50}, {}, False).text(), place=KEYS.cap_sum)
    server.client.set(KEYS.cap_sum, sealed)
    server.client.set(KEYS.cap_turn, "x")
    assert fleet.report("a", 4, {1: 2}) == ({1: 2}, {})


def test_sums_go_on_after_the_clock_was_set_back(fleet: Fleet, server: RedisServer) -> None:
    fleet.report("a", 4, {1: 2})
    fleet["a"]._newest += 1000
    found = [fleet["a"].report("a", report(4, {1: 2}), pause=NEVER).summed_at for _ in range(3)]
    assert found[1] == found[2]  # the first was a new one


# PostgreSQL


def test_without_a_session_the_database_is_used(fleet: Fleet) -> None:
    found: Any = fleet["a"]._wakes
    for gone in (None, SimpleNamespace(fresh=False, keys=KEYS, reign="r")):
        found.session = gone
        assert fleet["a"].report("a", report(4, {1: 2}), pause=ALWAYS) == DATABASE
    fleet["a"].leave("a")
    assert fleet.database.left == ["a"]


def test_a_redis_that_fails_rests_and_is_used_again(
    fleet: Fleet, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.report("a", 4, {1: 2})
    server.kill()
    assert fleet["a"].report("a", report(4, {1: 2}), pause=ALWAYS) == AFTER_REDIS
    assert fleet["a"].report("a", report(4, {1: 2}), pause=ALWAYS) == AFTER_REDIS
    server.start()
    fleet["a"].report("a", report(4, {1: 2}), pause=ALWAYS)
    assert fleet.database.reports == ["a"] * 3  # it rests
    fleet.now += caps.REST
    assert fleet.report("a", 4, {1: 2}) == ({1: 2}, {})
    assert len(fleet.database.reports) == 3
    assert caplog.text.count("the counts for caps go to PostgreSQL") == 1


@pytest.mark.parametrize("fault", ["full", "wrong type of the reports", "wrong type of the sum", "hangs"])
def test_whatever_is_wrong_with_redis_the_database_is_used(
    fault: str, fleet: Fleet, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "full":
        server.client.config_set("maxmemory", 1)
    elif fault == "wrong type of the reports":
        server.client.set(KEYS.cap_reports, "x")
    elif fault == "wrong type of the sum":
        server.client.lpush(KEYS.cap_sum, "x")
    else:
        fleet.report("a", 4, {1: 2})
        server.client.execute_command("CLIENT", "PAUSE", 60_000)
        pipes = fleet["a"]._idle
        assert pipes is not None
        [link] = pipes[1]._links.values()
        link._connection._sock.settimeout(1.0)
    assert fleet["a"].report("a", report(4, {1: 2}), pause=ALWAYS)[:-1] == DATABASE[:-1]
    assert fleet.database.reports == ["a"]
    if fault.startswith("wrong type"):  # what another program has written does not stay
        fleet.now += caps.REST
        assert fleet.report("a", 4, {1: 2}) == ({1: 2}, {})


def test_an_error_of_the_database_is_raised_and_the_next_report_works(fleet: Fleet) -> None:
    fleet.database.away = True
    with pytest.raises(DatabaseUnavailable):
        fleet.report("a", 4, {1: 2})
    fleet.database.away = False
    fleet.now += 0.1
    assert fleet.report("a", 4, {1: 2}, NEVER) == ({1: 2}, {})


def test_while_others_report_to_the_database_only_all_report_there_too(fleet: Fleet, server: RedisServer) -> None:
    fleet.database.elsewhere = {"p"}
    assert fleet.report("a", 4, {1: 2}) == fleet.report("b", 4, {1: 2}, NEVER) == ({1: 99}, {})
    assert fleet.database.reports == ["a", "b"] and fleet.database.asked == 1
    assert set(server.client.hkeys(KEYS.cap_reports)) == {b"a", b"b"}
    fleet.database.elsewhere = {"a"}  # it reports through Redis, too
    assert fleet.report("a", 4, {1: 2}) == fleet.report("b", 4, {1: 2}, NEVER) == ({1: 4}, {})
    assert fleet.database.reports == ["a", "b"]
    fleet["a"].leave("a")
    fleet.now += 12
    fleet["b"].leave("b")
    assert fleet.database.left == ["a"]


def test_a_worker_that_reports_in_redis_no_more_is_one_of_the_others(fleet: Fleet, server: RedisServer) -> None:
    fleet.database.elsewhere = {"p"}
    plant(fleet, server, "p", {1: 3}, age=1)
    assert fleet.report("a", 4, {1: 2}) == ({1: 5}, {1: 1})
    plant(fleet, server, "p", {1: 3}, age=7)
    assert fleet.report("a", 4, {1: 2}) == ({1: 99}, {})


# whole workers


def app(instance: Instance) -> StreamApp:
    """Return an application whose authorize hook believes the headers of a request."""
    instance.fleet_caps.interval = 0.1
    instance.fleet_caps.pause = 0.1
    return StreamApp(instance, authorize=lambda environ, stream: Subscriber(owner=environ.get("HTTP_X_OWNER")))


Serve = Callable[..., Serving]


@pytest.fixture
def serve(
    pgbus_settings: Settings, server: RedisServer, patient: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Serve]:
    """Starts workers that share a database and, by default, a Redis."""
    monkeypatch.setattr(wakes, "RETURN", 1.0)
    monkeypatch.setattr(caps, "REST", 0.5)
    with ExitStack() as stack:

        def one(**changes: Any) -> Serving:
            options = {"wake": server.url, "max_per_owner": 4, **changes}
            return stack.enter_context(serving(pgbus_settings, app=app, **options))

        yield one


def come(worker: Serving) -> StreamClient:
    return worker.live("orders", headers={"X-Owner": "ada"})


def is_refused(worker: Serving) -> bool:
    client = worker.client("orders", headers={"X-Owner": "ada"})
    until(lambda: bool(client.frames), "it is answered")
    ends = [str(frame.data) for frame in client.frames if frame.event == "pgbus:shutdown"]
    client.close()
    return any("too-many-connections" in data for data in ends)


def elsewhere(worker: Serving) -> int:
    return worker.instance.clients._elsewhere.elsewhere("owner", "ada")


def goes_by_what_it_knew(worker: Serving) -> bool:
    redis = worker.instance.redis
    return redis is not None and redis.caps._partial


def use_redis(url: str, *workers: Serving) -> bool:
    """Return whether these workers report through Redis, and none to PostgreSQL."""
    redis = [worker.instance.redis for worker in workers]
    return all(each is not None and each.caps._idle is not None for each in redis) and told(url) == 0


def told(url: str) -> int:
    """Return how many workers have reported to PostgreSQL in the last second."""
    recent = "select count(*) from pgbus.cap_reports where seen_at > clock_timestamp() - interval '1 second'"
    with session(url) as connection:
        return int(run(connection, recent)[0][0])


def test_a_cap_holds_over_all_workers_and_postgresql_gets_no_reports(
    serve: Serve, server: RedisServer, pgbus_database: str
) -> None:
    workers = [serve() for _ in range(3)]
    until(lambda: use_redis(pgbus_database, *workers), "all report through Redis", 40)
    clients = [come(workers[0]), come(workers[0]), come(workers[1])]
    until(lambda: elsewhere(workers[2]) == 3, "the third worker knows")
    clients.append(come(workers[2]))
    until(lambda: elsewhere(workers[0]) == 2 and elsewhere(workers[1]) == 3, "the others know")
    assert all(map(is_refused, workers))
    assert told(pgbus_database) == 0
    workers[2].instance.shutdown()
    (name,) = server.client.keys("*:{caps}:reports")
    # A worker that let Redis rest when it ended leaves its report to the others, which remove it after a minute.
    until(lambda: server.client.hlen(name) == 2, "its report is taken back", 100)
    until(lambda: elsewhere(workers[0]) == 1, "it knows that they are gone")
    assert not is_refused(workers[0])


def test_a_cap_holds_over_workers_with_redis_and_without(serve: Serve, pgbus_database: str) -> None:
    workers = [serve() for _ in range(2)]
    until(lambda: use_redis(pgbus_database, *workers), "all report through Redis", 40)
    plain = serve(wake="postgres")
    for _ in range(2):
        come(plain)
    until(lambda: all(elsewhere(worker) == 2 for worker in workers), "the others know")
    for worker in workers:
        come(worker)
    until(lambda: [elsewhere(worker) for worker in (*workers, plain)] == [3, 3, 2], "all know all")
    assert all(is_refused(worker) for worker in (*workers, plain))
    plain.instance.shutdown()
    until(lambda: [elsewhere(worker) for worker in workers] == [1, 1], "they know that it is gone")
    until(lambda: use_redis(pgbus_database, *workers), "all report through Redis again", 40)


def test_a_cap_holds_while_redis_is_away_and_after_its_return(
    serve: Serve, server: RedisServer, pgbus_database: str
) -> None:
    workers = [serve() for _ in range(2)]
    until(lambda: use_redis(pgbus_database, *workers), "all report through Redis", 40)
    clients = [come(worker) for worker in workers for _ in range(2)]
    server.kill()
    until(lambda: told(pgbus_database) == 2, "both report to PostgreSQL")
    until(lambda: [elsewhere(worker) for worker in workers] == [2, 2], "they know of one another")
    assert all(map(is_refused, workers))
    server.start()
    until(lambda: use_redis(pgbus_database, *workers), "all report through Redis again", 60)
    until(lambda: [elsewhere(worker) for worker in workers] == [2, 2], "they know of one another")
    assert all(map(is_refused, workers))
    assert not any(client.closed for client in clients)


def test_a_cap_holds_while_redis_evicts_what_the_workers_report(
    serve: Serve, server: RedisServer, pgbus_database: str
) -> None:
    workers = [serve() for _ in range(2)]
    until(lambda: use_redis(pgbus_database, *workers), "all report through Redis", 40)
    # A busy worker may have turned to PostgreSQL at its start. For some seconds, it goes by what it knew before that: nothing.
    until(lambda: not any(map(goes_by_what_it_knew, workers)), "each goes by the last sum", 40)
    for worker in workers:
        for _ in range(2):
            come(worker)
    until(lambda: [elsewhere(worker) for worker in workers] == [2, 2], "they know of one another")
    (name,) = server.client.keys("*:{caps}:reports")
    seen, began = set(), monotonic()
    for _ in range(150):
        if monotonic() - began > COUNTED / 4:
            break  # on a busy machine: a worker that has reported nothing for COUNTED seconds counts no more
        server.client.delete(name)
        gevent.sleep(0.02)
        seen.add((elsewhere(workers[0]), elsewhere(workers[1])))
    assert seen == {(2, 2)}
    assert all(map(is_refused, workers))
    until(lambda: use_redis(pgbus_database, *workers), "all report through Redis again", 60)
    assert [elsewhere(worker) for worker in workers] == [2, 2]
