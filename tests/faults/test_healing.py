"""A part of an Instance that dies is started again and continues; a part that keeps dying ends the process."""

from __future__ import annotations

import random
from typing import Any

import gevent
import pytest
from support import (
    PATIENCE,
    Serving,
    get,
    greenlets,
    received,
    serve_process,
    serving,
    session,
    stored,
    until,
    until_messages,
)

from pgbus_gevent.bus import Bus
from pgbus_gevent.database import notifications
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import Heartbeat, Listener, StreamEventDispatcher
from pgbus_gevent.streamer.reader import Reader
from pgbus_gevent.streamer.sweeper import Sweeper

PARTS = [
    "dispatcher", "heartbeat", "ephemerals", "reader-0", "reader-1", "sweeper", "listener", "presence", "revocations",
    "pruner", "pulse", "roll-call", "steward", "ear", "duty-presence", "duty-pruning", "duty-revocations",
]  # fmt: skip


def kill(name: str, error: type[BaseException] = gevent.GreenletExit) -> None:
    """Kill the greenlet of a part, at any point. It may still be starting after the last kill."""
    found = until(lambda: greenlets(f"pgbus-{name}"), f"{name} runs")
    assert len(found) == 1, found
    gevent.kill(found[0], error)


def check_that_all_goes_on(server: Serving, bus: Bus, url: str) -> None:
    """Check a live message, a small and a large ephemeral one, a replay from the database, a heartbeat, and a new client."""
    instance = server.instance
    until(lambda: instance.unready is None and instance.listener.live, "it is ready, for ephemerals too")
    orders = bus.stream("orders")
    live = server.live("orders")
    orders.broadcast("live")
    assert live.next(timeout=PATIENCE).data == "live"
    orders.broadcast("small", ephemeral=True)
    orders.broadcast("L" * 20_000, ephemeral=True)
    assert [live.next(timeout=PATIENCE).data[:5] for _ in range(2)] == ["small", "LLLLL"]
    orders.broadcast_many([str(n) for n in range(50)])
    with session(url) as connection:
        expected = stored(connection, "orders")
    replayed = server.client("orders", since=0)
    until_messages(replayed, len(expected))
    assert received(replayed) == expected
    until(lambda: b": heartbeat " in live.raw, "a heartbeat comes")
    until(lambda: all(task.running for task in instance.tasks.values()), "every part runs")
    assert get(server.url, "/pgbus/healthz").status == 200


@pytest.mark.parametrize("error", [gevent.GreenletExit, RuntimeError])
@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_dies_is_started_again_and_delivery_goes_on(
    name: str,
    error: type[BaseException],
    pgbus_settings: Settings,
    pgbus_bus: Bus,
    pgbus_database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # If PostgreSQL stands still for a moment, the session is not given up, and no ephemeral message is lost with it.
    monkeypatch.setattr(notifications, "LIFE", 60.0)
    small: dict[str, Any] = {"ring_messages": 4, "page_size": 7, "readers": 2}
    with serving(pgbus_settings, heartbeat=0.2, catch_up_interval=1.0, **small) as server:
        witness = server.live("orders")
        kill(name, error)
        pgbus_bus.stream("orders").broadcast("just after")
        assert witness.next(timeout=PATIENCE).data == "just after"
        check_that_all_goes_on(server, pgbus_bus, pgbus_database)


def test_the_parts_know_their_names(pgbus_settings: Settings) -> None:
    with serving(pgbus_settings, readers=2) as server:
        assert sorted(server.instance.tasks) == sorted(PARTS)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_parts_that_die_under_load_lose_nothing_and_repeat_nothing(
    seed: int, pgbus_settings: Settings, pgbus_database: str, pgbus_bus: Bus
) -> None:
    choose = random.Random(seed)
    streams = ["s:0", "s:1", "s:2"]

    def publish(stream: str) -> None:
        for n in range(60):
            pgbus_bus.stream(stream).broadcast_many([f"{n}.{i}" for i in range(choose.randint(1, 10))])
            gevent.sleep(choose.random() * 0.03)

    # A reader that is killed again and again on a slow machine does not answer a new client within the usual time.
    small: dict[str, Any] = {"ring_messages": 10, "page_size": 5, "readers": 2, "away_after": 3 * PATIENCE}
    with serving(pgbus_settings, catch_up_interval=0.5, **small) as server:
        live = [(stream, server.live(stream)) for stream in streams for _ in range(3)]
        publishers = [gevent.spawn(publish, stream) for stream in streams]
        late = []
        order = [name for name in PARTS for _ in range(2)]
        choose.shuffle(order)
        for name in order:
            gevent.sleep(choose.random() * 0.05)
            stream = choose.choice(streams)
            late.append((stream, server.client(stream, since=0)))
            kill(name, choose.choice([gevent.GreenletExit, RuntimeError]))
        gevent.joinall(publishers, timeout=120, raise_error=True)
        assert all(publisher.successful() for publisher in publishers)
        with session(pgbus_database) as connection:
            expected = {stream: stored(connection, stream) for stream in streams}
        assert [client.frames[-1:] for _, client in late if client.closed] == [], "no client is turned away"
        for stream, client in (*live, *late):
            want = expected[stream]
            # Pages of five messages for forty clients keep the processor busy.
            until_messages(client, len(want), timeout=3 * PATIENCE)
            assert received(client) == want
        assert server.instance.alive


# for good


def broken(self: object) -> None:
    raise RuntimeError("a part that does not work")


def returning(self: object) -> None:
    return


BROKEN = {
    "reader": (Reader, broken),
    "dispatcher": (StreamEventDispatcher, broken),
    "listener": (Listener, broken),
    "heartbeat": (Heartbeat, returning),
    "sweeper": (Sweeper, broken),
}


@pytest.mark.parametrize("part", BROKEN)
def test_a_part_that_dies_again_and_again_makes_healthz_fail_and_new_clients_go_elsewhere(
    part: str, pgbus_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    kind, run = BROKEN[part]
    monkeypatch.setattr(kind, "run", run)
    with serving(pgbus_settings, parts={"on_failure": told.append}, connect_timeout=2.0, readers=1) as server:
        until(lambda: get(server.url, "/pgbus/healthz").status == 503, "healthz fails")
        assert len(told) == 1 and told[0].startswith(part)
        assert get(server.url, "/pgbus/readyz").status == 503
        answer = get(server.url, "/pgbus/streams/orders", Accept="text/event-stream")
        assert answer.status == 200 and b'data: {"reason":"unavailable"}' in answer.body


PROGRAM = """
from gevent import monkey
monkey.patch_all()
import sys
from pgbus_gevent.serve import main
from pgbus_gevent.streamer.reader import Reader
def run(self):
    raise RuntimeError("a reader that does not work")
Reader.run = run
sys.exit(main())
"""


def test_a_part_that_dies_again_and_again_ends_serve_with_status_1(pgbus_database: str) -> None:
    with serve_process(pgbus_database, "--grace", "5", program=("-c", PROGRAM)) as server:
        assert server.wait() == 1
        assert "a reader that does not work" in server.errors
        assert "has failed for good" in server.errors
