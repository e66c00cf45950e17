"""Connections leave nothing behind, even if many come and go over many streams."""

from __future__ import annotations

import gc
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import Any

import gevent
import psutil
import pytest
from gevent.pool import Pool as Greenlets
from support import Serving, greenlets, raw_client, run, serving, session, until

from pgbus_gevent.database.pool import Pool
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance

STREAMS = 10_000
ROUNDS = 2


def sizes(thing: object, path: str, seen: set[int]) -> Iterator[tuple[str, int]]:
    """Yield the size of every container that can be reached from ``thing`` through objects of the package.

    All containers inside one container have the same path, because items may move in it, like connections in the heartbeat's slots.
    """
    # The number of idle connections in the pool changes all the time, and is bounded.
    if id(thing) in seen or isinstance(thing, (Settings, Pool)):
        return
    seen.add(id(thing))
    if isinstance(thing, deque) and thing.maxlen is not None:
        yield path, thing.maxlen  # bounded containers may fill up
    elif isinstance(thing, (dict, set, list, deque)):
        yield path, len(thing)
        for value in list(thing.values() if isinstance(thing, Mapping) else thing):
            yield from sizes(value, f"{path}[]", seen)
    elif type(thing).__module__.startswith("pgbus_gevent") and not isinstance(thing, type):
        slots = [
            name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ()) if name != "__weakref__"
        ]
        for name in (*slots, *getattr(thing, "__dict__", ())):
            yield from sizes(getattr(thing, name, None), f"{path}.{name}", seen)


class State:
    """Return the sizes of everything that an Instance and its process hold."""

    def __init__(self, instance: Instance) -> None:
        gc.collect()
        parts = {name: value for name, value in vars(instance).items() if name != "database"}
        self.containers: Counter[str] = Counter()
        for name, part in parts.items():
            for path, size in sizes(part, name, set()):
                self.containers[path] += size
        pool = instance.database.pool  # it grows with its work, and shrinks a while later
        self.descriptors = len(os.listdir("/proc/self/fd")) - len(pool._idle) - len(pool._used)
        self.greenlets = len(greenlets())
        self.watchers = gevent.get_hub().loop.activecnt
        self.budget = instance.board.budget.used
        self.rss = psutil.Process().memory_info().rss

    def grown(self, before: State) -> dict[str, Any]:
        """Return everything that has grown, except memory."""
        mine, others = ({**vars(state), **state.containers} for state in (self, before))
        return {
            name: (others.get(name, 0), value)
            for name, value in mine.items()
            if isinstance(value, int) and name != "rss" and value > others.get(name, 0)
        }


def fill_pool(instance: Instance) -> None:
    """Open all connections of the pool, so that it cannot grow later."""
    gevent.joinall([gevent.spawn(instance.database.queries.ping) for _ in range(20)], raise_error=True)


def until_shrunk(instance: Instance, before: State) -> None:
    """Wait until nothing is larger than before, or fail with what stays larger."""
    grown: dict[str, Any] = {}

    def shrunk() -> bool:
        nonlocal grown
        grown = State(instance).grown(before)
        return not grown

    try:
        until(shrunk, "what the connections brought is gone", pause=0.1)
    except AssertionError as error:
        raise AssertionError(f"{error}: {grown} (before, now)") from None


def come_and_go(server: Serving, number: int) -> None:
    """Connect to a new stream, get its only message, and leave."""
    sock = raw_client(server.url, f"leak:{number}?since=0")
    try:
        found = b""
        while b"\ndata: hello\n" not in found:
            data = sock.recv(65536)
            assert data, found
            found += data
    finally:
        sock.close()


def test_ten_thousand_connections_over_ten_thousand_streams_leave_nothing_behind(
    pgbus_settings: Settings, pgbus_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with session(pgbus_database) as connection:
        publish = "select pgbus.broadcast('leak:' || n, 'hello') from generate_series(1, %s) n"
        run(connection, publish, STREAMS)
    # On a machine that stands still, a client may wait for its start for longer than clients do by default.
    with serving(pgbus_settings, max_connections=20_000, away_after=120.0) as server:
        instance = server.instance
        fill_pool(instance)
        pool = Greenlets(50)
        pool.map(lambda number: come_and_go(server, number), range(1, 200))
        until(lambda: len(instance.registry) == 0, "the first ones are gone")
        states = [State(instance)]
        names = {"registry._logs", "looks._waiting", "schedule._slots", "counter._streams"}
        assert states[0].containers.keys() > {f"board.{name}" for name in names}
        for number in range(ROUNDS):
            first, last = (STREAMS * part // ROUNDS for part in (number, number + 1))
            for _ in pool.imap_unordered(lambda number: come_and_go(server, number), range(first + 1, last + 1)):
                pass
            until(lambda: len(instance.registry) == 0 and not instance.board.looks, "all are gone")
            until_shrunk(instance, states[0])
            states.append(State(instance))
        assert instance.counter.total.total_connections == STREAMS + 199
        assert instance.counter.total.active_connections == 0
    with capsys.disabled():
        print(f"\n10,000 came and went; memory: {', '.join(f'{state.rss / 2**20:.1f} MB' for state in states)}")
    assert states[2].rss - states[1].rss < 4 << 20


def test_a_stream_that_is_still_watched_keeps_its_state_as_others_leave(pgbus_settings: Settings) -> None:
    with serving(pgbus_settings) as server:
        staying = server.live("orders")
        until(lambda: not server.instance.board.schedule.new, "it has its place")
        fill_pool(server.instance)
        before = State(server.instance)
        for _ in range(5):
            server.live("orders").close()
        until(lambda: len(server.instance.registry) == 1, "the others are gone")
        until_shrunk(server.instance, before)
        assert not staying.closed
