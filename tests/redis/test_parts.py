"""Whole workers with Redis: exact, whatever happens to it."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis_parts import RedisServer, needs_redis, redis_cluster, redis_sentinels, redis_server
from requests import get
from support import Serving, run, serving, session, until, until_messages
from told_parts import Told

from pgbus_gevent.bus import Bus
from pgbus_gevent.redis import wakes
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import steward as steward_module
from pgbus_gevent.streamer.connection import Connection

pytestmark = [needs_redis, pytest.mark.program]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakes, "RETURN", 1.0)


@pytest.fixture
def steady(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the same worker relay, and the others hear it, even if this process or a server stands still for some seconds."""
    monkeypatch.setattr(steward_module, "LEASE", 60.0)


@contextmanager
def fleet(settings: Settings, url: str, count: int = 2, **changes: Any) -> Iterator[list[Serving]]:
    """Run workers of one database, and wait until all get their wakes from Redis."""
    assert settings.database_url is not None
    with session(settings.database_url) as connection:
        # The first append after a start changes the names in Redis, and an ephemeral message, or the logs, may be lost then.
        run(connection, "select pgbus.broadcast('first', 'x')")
    with ExitStack() as stack:
        workers = [stack.enter_context(serving(settings, wake=url, public=("*",), **changes)) for _ in range(count)]
        until(lambda: all(map(on_redis, workers)), "all workers use Redis", 60)
        yield workers


def on_redis(worker: Serving) -> bool:
    redis = worker.instance.redis
    return (
        redis is not None and redis.wakes.on_redis and worker.instance.listener.live and redis.wakes.session is not None
    )


def relays(workers: list[Serving]) -> list[Serving]:
    """Return the workers that relay now: none for a moment, if another one is to do so."""
    return [worker for worker in workers if worker.instance.redis and worker.instance.redis.relay.publishing]


def data(client: Any) -> list[str]:
    return [message.data for message in client.messages]


class Sends(NamedTuple):
    """What connections were sent: the id of the connection, the functions that called, and the data."""

    all: list[tuple[str, str, bytes]]

    def of(self, id: str | None) -> list[tuple[str, str, list[bytes]]]:
        """Return the sends with the message ``id``, and the ids of the messages in each."""
        line = f"id: {id}\n".encode()
        return [
            (client, callers, re.findall(rb"^id: (\d+)", sent, re.M))
            for client, callers, sent in self.all
            if line in sent
        ]


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch) -> Sends:
    """Records what every connection is sent."""
    found = Sends([])
    send = Connection.send

    def recorded(self: Connection, data: bytes, now: float) -> None:
        frame = sys._getframe(1)
        callers = []
        while frame is not None and len(callers) < 4:
            callers.append(frame.f_code.co_name)
            frame = frame.f_back  # type: ignore[assignment]
        found.all.append((self.id, " < ".join(callers), bytes(data)))
        send(self, data, now)

    monkeypatch.setattr(Connection, "send", recorded)
    return found


def check_exactly(client: Any, expected: list[str], sends: Sends, log: Any = None) -> None:
    """Fail unless the client was sent just these messages. The error has the ids around the first other one, also of the log."""
    got = data(client)
    pairs = enumerate(zip(got, expected, strict=False))
    wrong = next((n for n, (mine, due) in pairs if mine != due), min(len(got), len(expected)))
    messages, times = client.messages, dict(zip(map(id, client.frames), client.times, strict=True))
    around = [(message.id, message.data, times[id(message)]) for message in messages[max(0, wrong - 3) : wrong + 3]]
    ring = log.ids[-(len(messages) - wrong + 3) :][:6] if log is not None else None
    controls = [(frame.event, frame.data) for frame in client.frames if frame.event.startswith("pgbus:")]
    assert got == expected, (
        f"at {wrong}: got {around}, expected {expected[max(0, wrong - 3) : wrong + 3]}, the ring has {ring} there,"
        f" there were {controls}, and the message was sent {sends.of(around[min(3, wrong)][0]) if around else None}"
    )


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("kind", ["single", "cluster", "sentinels"])
def test_messages_ephemerals_and_kicks_go_through_redis(kind: str, pgbus_settings: Settings, pgbus_bus: Bus) -> None:
    make = {"single": redis_server, "cluster": redis_cluster, "sentinels": redis_sentinels}[kind]
    with make() as redis, fleet(pgbus_settings, redis.url) as workers:  # type: ignore[operator]
        clients = [worker.live("orders") for worker in workers]
        stream = pgbus_bus.stream("orders")
        for n in range(50):
            stream.broadcast(str(n))
        stream.broadcast("x" * 100_000)
        for client in clients:
            until_messages(client, 51)
            assert data(client) == [*map(str, range(50)), "x" * 100_000]
        stream.broadcast("soon gone", ephemeral=True)
        stream.broadcast("y" * 50_000, ephemeral=True)
        for client in clients:
            until_messages(client, 53)
            assert data(client)[51:] == ["soon gone", "y" * 50_000]
        until(lambda: len(relays(workers)) == 1, "one of them relays")
        assert all(worker.instance.redis.relay.published > 50 for worker in relays(workers))  # type: ignore[union-attr]


@pytest.mark.usefixtures("steady")
def test_a_message_takes_milliseconds_and_no_statement_of_the_worker_that_gets_it(
    pgbus_settings: Settings, pgbus_bus: Bus, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakes, "RELY", 60.0)
    with fleet(pgbus_settings, server.url) as workers:
        [relay] = until(lambda: relays(workers), "one relays")
        other = next(worker for worker in workers if worker is not relay)
        client = other.live("orders")
        until(lambda: not other.instance.board.follow_all, "the worker relies on the relay")
        reader, sweeper = other.instance.reader, other.instance.sweeper
        reads, sweeps, began = reader.reads, sweeper.sweeps, time.monotonic()
        for n in range(100):
            pgbus_bus.stream("orders").broadcast(str(n))
            until(lambda n=n: len(client.messages) > n, "the message arrives")
        probes = sweeper.sweeps - sweeps
        # By their interval, which is shortened at random; and some that were due at the beginning.
        assert probes <= 3 + (time.monotonic() - began) / (0.75 * sweeper.interval)
        # A probe may see a message before its wake comes. Then it is compared with the table, and what follows it is read.
        assert reader.reads - reads <= 2 * probes


@pytest.mark.usefixtures("steady")
def test_metrics_and_readyz_say_what_is_used(pgbus_settings: Settings, pgbus_bus: Bus, server: RedisServer) -> None:
    with fleet(pgbus_settings, server.url, 1) as (worker,):
        client = worker.live("orders")
        pgbus_bus.stream("orders").broadcast("x")
        until_messages(client, 1)
        metrics = get(f"{worker.url}/pgbus/metrics").text
        assert "pgbus_redis_up" in metrics and "pgbus_relay_up" in metrics and "pgbus_redis_reads_total" in metrics
        assert get(f"{worker.url}/pgbus/readyz").json()["redis"] == "used"
        server.kill()
        until(lambda: get(f"{worker.url}/pgbus/readyz").json()["redis"].startswith("not used"), "readyz says so")
        assert worker.instance.redis is not None and worker.instance.redis.wakes.fallbacks == 1
        assert get(f"{worker.url}/pgbus/readyz").ok


def test_the_command_relay_relays_and_leaves_at_once_and_its_service_manager_knows(
    pgbus_settings: Settings, pgbus_bus: Bus, server: RedisServer, tmp_path: Path
) -> None:
    assert pgbus_settings.database_url is not None
    told = Told(tmp_path / "notify")
    command = [sys.executable, "-m", "pgbus_gevent", "relay", "--wake", server.url]
    environment = {
        **os.environ,
        "PGBUS_DATABASE_URL": pgbus_settings.database_url,
        "PGBUS_LOG_LEVEL": "info",
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "3000000",
    }
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log, cwd=tmp_path)
    try:
        until(lambda: "relaying to Redis" in (tmp_path / "log").read_text(), "the relay is elected", 60)
        with fleet(pgbus_settings, server.url, 1) as (worker,):
            client = worker.live("orders")
            pgbus_bus.stream("orders").broadcast("x")
            until_messages(client, 1)
            until(lambda: relays([worker]) == [], "the worker leaves it to the command")
            until(lambda: up(worker) == [("pgbus_relay_up", 1.0), ("pgbus_steward", 1.0)], "metrics show the relay", 60)
            until(lambda: {"READY=1", "STATUS=relaying"} <= set(told.lines) and told.signs() > 1, "it lives")
            assert "STOPPING=1" not in told.lines
            process.terminate()
            assert process.wait(60) == 0
            until(lambda: "STOPPING=1" in told.lines, "the manager knows that it ends")
            until(lambda: relays([worker]), "the worker relays now")
            pgbus_bus.stream("orders").broadcast("y")
            until_messages(client, 2)
    finally:
        process.kill()
        process.wait(10)
        told.close()


def up(worker: Serving) -> list[tuple[str, float]]:
    """Return the gauges that are 1 at the steward alone, summed over the workers of all hosts."""
    body = get(f"{worker.url}/pgbus/metrics?hosts=all").text
    families = {family.name: family for family in text_string_to_metric_families(body)}
    names = "pgbus_relay_up", "pgbus_steward"
    return [(name, sum(sample.value for sample in families[name].samples)) for name in names]


@pytest.mark.usefixtures("steady")
def test_clients_start_and_resume_from_redis(pgbus_settings: Settings, pgbus_bus: Bus, server: RedisServer) -> None:
    with fleet(pgbus_settings, server.url) as workers:
        ids = [pgbus_bus.stream("orders").broadcast(str(n)) for n in range(20)]
        until(lambda: sum(one.instance.redis.relay.published for one in workers) >= 20, "all are relayed")  # type: ignore[union-attr]
        client = workers[0].live("orders", since=ids[9])
        until_messages(client, 10)
        assert data(client) == list(map(str, range(10, 20)))
        assert workers[0].instance.redis.reads.answered["redis"] > 0  # type: ignore[union-attr]


@pytest.mark.usefixtures("steady")
def test_without_redis_workers_use_postgresql_and_return(
    pgbus_settings: Settings, pgbus_bus: Bus, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pgbus_gevent.listener")
    with fleet(pgbus_settings, server.url) as workers:
        clients = [worker.live("orders") for worker in workers]
        stream = pgbus_bus.stream("orders")
        stream.broadcast("before")
        server.kill()
        until(lambda: not any(map(on_redis, workers)), "the workers notice")
        for n in range(20):
            stream.broadcast(str(n))
            gevent.sleep(0.02)
        for client in clients:
            until_messages(client, 21)
        server.start()
        until(lambda: all(map(on_redis, workers)), "the workers return", 60)
        stream.broadcast("after")
        for client in clients:
            until_messages(client, 22)
            assert data(client) == ["before", *map(str, range(20)), "after"]
    returned = [record for record in caplog.records if "Redis is back" in record.getMessage()]
    assert [record.levelname for record in returned] == ["INFO"] * len(workers), "a return is no trouble"


@pytest.mark.usefixtures("steady")
def test_while_redis_is_away_the_workers_rely_on_the_steward(
    pgbus_settings: Settings, pgbus_bus: Bus, server: RedisServer
) -> None:
    with fleet(pgbus_settings, server.url, 3) as workers:
        server.kill()
        instances = [worker.instance for worker in workers]

        def rely() -> bool:
            rings = any(each.steward.sweeps.rings for each in instances)
            return rings and sum(each.sweeper._relying for each in instances) >= 2

        began = time.monotonic()
        until(lambda: time.monotonic() - began > 11, "what was asked before Redis was killed counts no more")
        steward = until(lambda: [each.steward for each in instances if each.steward.leads], "one leads")[0]
        steward.sweeps.begins = True  # as after an error
        until(lambda: not steward.sweeps.begins, "the steward begins anew")
        gevent.sleep(steward_module.RELY + steward_module.ASK[0])  # without its rings, nobody would rely on it now
        until(rely, "the steward rings, and the others rely on it")
        client = workers[0].live("orders")
        pgbus_bus.stream("orders").broadcast("rung")
        until_messages(client, 1)


def test_a_worker_with_redis_leads_before_one_without(
    pgbus_settings: Settings, pgbus_bus: Bus, server: RedisServer
) -> None:
    with serving(pgbus_settings, public=("*",)) as plain:
        until(lambda: plain.instance.steward.leads, "the first worker leads")
        with fleet(pgbus_settings, server.url) as workers:
            until(lambda: len(relays(workers)) == 1, "one of them relays")
            clients = [worker.live("orders") for worker in (plain, *workers)]
            for n in range(5):
                pgbus_bus.stream("orders").broadcast(str(n))
            for client in clients:
                until_messages(client, 5)
                assert data(client) == list(map(str, range(5)))


def test_a_redis_that_hangs_delays_messages_by_seconds_only(
    pgbus_settings: Settings, pgbus_bus: Bus, server: RedisServer
) -> None:
    with fleet(pgbus_settings, server.url) as workers:
        clients = [worker.live("orders") for worker in workers]
        server.signal(signal.SIGSTOP)
        try:
            pgbus_bus.stream("orders").broadcast("while it hangs")
            for client in clients:
                until_messages(client, 1)
        finally:
            server.signal(signal.SIGCONT)
        until(lambda: all(map(on_redis, workers)), "the workers return", 60)
        pgbus_bus.stream("orders").broadcast("after")
        for client in clients:
            until_messages(client, 2)
            assert data(client) == ["while it hangs", "after"]


def test_another_worker_relays_when_the_relay_dies(
    pgbus_settings: Settings, pgbus_bus: Bus, server: RedisServer
) -> None:
    with fleet(pgbus_settings, server.url, 3) as workers:
        [relay] = until(lambda: relays(workers), "one relays")
        others = [worker for worker in workers if worker is not relay]
        clients = [worker.live("orders") for worker in others]
        relay.instance.tasks["relay"].stop(1.0)
        relay.instance.tasks["steward"].stop(1.0)
        until(lambda: relays(others), "another one relays")
        for n in range(10):
            pgbus_bus.stream("orders").broadcast(str(n))
        for client in clients:
            until_messages(client, 10)
            assert data(client) == list(map(str, range(10)))


@pytest.mark.usefixtures("steady")
def test_another_worker_relays_if_the_relay_hears_nothing_for_long(
    pgbus_settings: Settings, pgbus_bus: Bus, server: RedisServer
) -> None:
    stream = pgbus_bus.stream("orders")
    with fleet(pgbus_settings, server.url) as workers:
        [relay] = until(lambda: relays(workers), "one relays")
        (other,) = (worker for worker in workers if worker is not relay)
        clients = [worker.live("orders") for worker in workers]
        relay.instance.tasks["ear"].stop(1.0)
        steward = relay.instance.steward

        def other_relays() -> bool:
            if steward._deaf_since is not None:
                steward._deaf_since = -inf
            return relays(workers) == [other]

        until(other_relays, "the other one relays")
        until(lambda: all(map(on_redis, workers)), "all workers use Redis")
        stream.broadcast("soon gone", ephemeral=True)
        for client in clients:
            until_messages(client, 1)
            assert data(client) == ["soon gone"]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_repeated_while_redis_is_flushed_filled_stopped_and_killed(
    seed: int, pgbus_settings: Settings, pgbus_bus: Bus, server: RedisServer, sends: Sends
) -> None:
    chance = random.Random(seed)
    with fleet(pgbus_settings, server.url) as workers:
        names = ["a", "b"]
        sent: dict[str, list[str]] = {name: [] for name in names}
        late: list[tuple[Any, str, int]] = []
        clients = [(worker.live(name), name, worker.instance.board) for worker in workers for name in names]

        def publish() -> None:
            for n in range(400):
                name = chance.choice(names)
                last = pgbus_bus.stream(name).broadcast(str(n))
                sent[name].append(str(n))
                if n % 40 == 20:
                    late.append((chance.choice(workers).client(name, since=last), name, len(sent[name])))
                gevent.sleep(0.02)

        publisher = gevent.spawn(publish)
        while not publisher.dead:
            fault = chance.choice(["flush", "fill", "kill", "clients", "nothing"])
            if fault == "flush":
                server.client.flushall()
            elif fault == "fill":
                server.client.config_set("maxmemory", 1)
                gevent.sleep(0.5)
                server.client.config_set("maxmemory", 0)
            elif fault == "kill":
                server.kill()
                gevent.sleep(chance.uniform(0, 1.0))
                server.start()
            elif fault == "clients":
                server.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            gevent.sleep(chance.uniform(0.3, 1.5))
        publisher.get()
        for client, name, board in clients:
            until_messages(client, len(sent[name]), 40)
            check_exactly(client, sent[name], sends, board.log(name))
        for client, name, start in late:
            until_messages(client, len(sent[name]) - start, 40)
            check_exactly(client, sent[name][start:], sends)
