"""The faults. Each is what happens during the load of a run, and what differs in the load."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from .adapters.base import Peer
from .clients import Client
from .publishers import Pace
from .site import Site

CUT_EVERY = 2.5
STALL = 4.0
DOWN = 0.5


class Load(Protocol):
    """What a fault sees of a run."""

    peer: Peer
    site: Site
    seconds: float
    clients: list[Client]
    rng: random.Random


async def _nothing(load: Load) -> None:
    await asyncio.sleep(load.seconds)


async def _cuts(load: Load) -> None:
    async def cuts(client: Client) -> None:
        while True:
            await asyncio.sleep(load.rng.uniform(0.5, 1.5) * CUT_EVERY)
            client.cut()

    tasks = [asyncio.create_task(cuts(client)) for client in load.clients]
    await asyncio.sleep(load.seconds)
    for task in tasks:
        task.cancel()


async def _server(load: Load) -> None:
    await asyncio.sleep(load.seconds * 0.25)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        server = load.site.server
        assert server is not None
        await asyncio.to_thread(server.stop, sign)
        await asyncio.sleep(DOWN)
        await asyncio.to_thread(server.start)
        await asyncio.sleep(load.seconds * 0.375)


async def _store(load: Load) -> None:
    await asyncio.sleep(load.seconds * 0.25)
    for way in ("fast", "immediate"):
        if load.peer.store == "postgresql":
            await asyncio.to_thread(load.site.postgres.restart, way)
        elif load.site.redis is not None:
            await asyncio.to_thread(load.site.redis.stop, signal.SIGTERM)
            await asyncio.sleep(DOWN)
            await asyncio.to_thread(load.site.redis.start)
        await asyncio.sleep(load.seconds * 0.375)


async def _slow(load: Load) -> None:
    for _ in range(2):
        await asyncio.sleep(load.seconds * 0.1)
        for client in load.clients[::2]:
            client.stall(min(STALL, load.seconds * 0.35))
        await asyncio.sleep(load.seconds * 0.4)


_PACE = Pace(0.1)


@dataclass(frozen=True)
class Fault:
    """A fault. ``pages`` says that clients come from pages that were rendered a while before; ``held`` adds a second publisher
    for each stream, with that pace."""

    name: str
    title: str
    what: str
    happen: Callable[[Load], Awaitable[None]] = _nothing
    pace: Pace = _PACE
    pages: bool = False
    held: Pace | None = None


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("none", "no fault", "nothing fails"),
        Fault("cuts", "lines cut", f"every client's line is cut every {CUT_EVERY:g} s on average", _cuts),
        Fault(
            "server",
            "server restarted",
            f"the peer's server gets SIGTERM and later SIGKILL, and starts again after {DOWN:g} s",
            _server,
        ),
        Fault(
            "store",
            "store restarted",
            "PostgreSQL is restarted twice, in the modes fast and immediate; a Redis is restarted twice, with SIGTERM",
            _store,
        ),
        Fault(
            "slow",
            "slow clients",
            f"half of the clients read nothing for {STALL:g} s, twice; messages have 6 kB and come four times as often",
            _slow,
            Pace(0.025, size=6000),
        ),
        Fault(
            "page",
            "stale pages",
            "each client comes from a page that was rendered 0.5 to 2 s before, while messages are committed",
            pages=True,
        ),
        Fault(
            "commits",
            "commits out of order",
            "a second publisher of each stream holds its transactions open for up to 1 s; one in four rolls back",
            held=Pace(0.3, hold=1.0, rolled_back=0.25),
        ),
        Fault(
            "publisher",
            "publisher killed",
            "one publisher in ten ends directly after its COMMIT; another takes its place",
            pace=Pace(0.1, dies=0.1),
        ),
    )
}
