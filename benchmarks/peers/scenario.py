"""One run: a peer, a fault, the load, and the verdict."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg

from pgbus_gevent.database.embedded import EmbeddedPostgres

from .adapters.base import Peer
from .clients import Client, stop
from .environment import Environment
from .faults import Fault
from .judge import Commit, Verdict, delays, judge
from .publishers import SETUP, WARM_UP, Pace, Publisher, ledger, render
from .site import Failed, Site

STREAMS = ("s0", "s1", "s2", "s3")
_WARMING = 30.0
_LONGEST = 75.0
_ROOM = 2**30


@dataclass(frozen=True)
class Size:
    """The size of a run: the seconds of the load, and the number of clients over all streams."""

    seconds: float = 8.0
    clients: int = 40


@dataclass
class Outcome:
    """What a run found. Times are in milliseconds, from the COMMIT to the receipt; ``cpu`` is the server's, in seconds.

    ``again`` counts calls to publish that failed and were repeated, ``refused`` those that were given up. ``load`` is the load
    average of the machine over the last minute.
    """

    verdict: Verdict
    messages: int
    connects: int
    refusals: int
    again: int
    refused: int
    median: float
    slowest: float
    cpu: float
    seconds: float
    load: float

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON's types."""
        return {**asdict(self), "percent": self.verdict.percent}


class Scenario:
    """A run. The faults see its attributes."""

    def __init__(self, peer: Peer, fault: Fault, size: Size, seed: int, site: Site) -> None:
        self.peer = peer
        self.site = site
        self.seconds = size.seconds
        self.rng = random.Random(f"{seed} {peer.name} {fault.name}")
        self.clients = [self._client(STREAMS[n % len(STREAMS)]) for n in range(size.clients)]
        self._fault = fault
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> Outcome:
        """Run it. Raises :class:`~.site.Failed` if a server does not start, or if no message arrives before the fault."""
        began = time.monotonic()
        await asyncio.to_thread(self._open)
        assert self.site.server is not None
        publishers = self._publishers()
        try:
            await self._connect()
            used = self.site.server.cpu()
            for publisher in publishers:
                publisher.start()
            arrivals = asyncio.create_task(self._arrive())
            await self._fault.happen(self)
            used = self.site.server.cpu() - used
            for publisher in publishers:
                publisher.end()
            for publisher in publishers:
                await asyncio.to_thread(publisher.join, 60.0)
            await arrivals
            commits = {key: commit for publisher in publishers for key, commit in publisher.commits.items()}
            await self._settle(commits)
        finally:
            await stop(self._tasks)
        await asyncio.to_thread(self._check, commits)
        received = [client.received for client in self.clients]
        late = delays(commits, received) or [0.0]
        return Outcome(
            verdict=judge(commits, received),
            messages=len(commits),
            connects=sum(client.connects for client in self.clients),
            refusals=sum(client.refusals for client in self.clients),
            again=sum(publisher.again for publisher in publishers),
            refused=sum(publisher.refused for publisher in publishers),
            median=1000 * late[len(late) // 2],
            slowest=1000 * late[-1],
            cpu=used,
            seconds=time.monotonic() - began,
            load=os.getloadavg()[0],
        )

    def _open(self) -> None:
        with psycopg.connect(self.site.database_url) as connection:
            connection.execute(SETUP)
        self.peer.prepare(self.site)
        self.site.serve(self.peer.command(self.site), self.peer.variables(self.site))
        with httpx.Client(timeout=5.0, verify=False) as http:
            self.peer.open(self.site, http, STREAMS)

    def _publishers(self) -> list[Publisher]:
        def publisher(stream: str, name: str, pace: Pace) -> Publisher:
            return Publisher(self.peer, self.site, stream, name, pace, self.rng.getrandbits(32))

        publishers = [publisher(stream, "a", self._fault.pace) for stream in STREAMS]
        if self._fault.held is not None:
            publishers += [publisher(stream, "b", self._fault.held) for stream in STREAMS]
        return publishers

    def _client(self, stream: str) -> Client:
        return self.peer.client(stream) or Client(self.peer, self.site, stream, self.rng)

    async def _connect(self) -> None:
        """Connect the clients, and publish until each has a message. Clients that come from pages only let the server warm up."""
        clients = self.clients
        if self._fault.pages:
            clients = [self._client(stream) for stream in STREAMS]
        tasks = [asyncio.create_task(client.run()) for client in clients]
        self._tasks += tasks
        warming = [
            Publisher(self.peer, self.site, stream, WARM_UP, Pace(0.0), self.rng.getrandbits(32)) for stream in STREAMS
        ]
        deadline = time.monotonic() + _WARMING
        number = 0
        while any(not client.received.keys for client in clients):
            if time.monotonic() > deadline:
                raise Failed("no message has arrived at some clients before the fault")
            number += 1
            for publisher in warming:
                await asyncio.to_thread(publisher.publish, number)
            await asyncio.sleep(0.3)
        for publisher in warming:
            publisher.close()
        if self._fault.pages:
            await stop(tasks)
        await asyncio.sleep(0.5)
        for client in clients:
            client.received.keys.clear()
            client.received.times.clear()

    async def _arrive(self) -> None:
        """Let the clients of pages arrive: render a page at a random time of the first half, and subscribe a while later."""
        if not self._fault.pages:
            return

        async def arrive(client: Client) -> None:
            await asyncio.sleep(self.rng.uniform(0.1, self.seconds / 2))
            found, shown = await asyncio.to_thread(render, self.peer, self.site, client.received.stream)
            client.cursor = found
            client.received.page = frozenset(key for key in shown if WARM_UP not in key)
            await asyncio.sleep(self.rng.uniform(0.5, 2.0))
            self._tasks.append(asyncio.create_task(client.run()))

        await asyncio.gather(*(arrive(client) for client in self.clients))

    async def _settle(self, commits: dict[str, Commit]) -> None:
        """Wait until every client has everything, or nothing has come for the peer's patience."""
        longest = time.monotonic() + _LONGEST
        moved, had = time.monotonic(), -1
        while time.monotonic() < min(moved + self.peer.patience, longest):
            if not judge(commits, [client.received for client in self.clients]).lost:
                await asyncio.sleep(0.5)  # what is repeated may still come
                return
            have = sum(len(client.received.keys) for client in self.clients)
            if have != had:
                moved, had = time.monotonic(), have
            await asyncio.sleep(0.25)

    def _check(self, commits: dict[str, Commit]) -> None:
        """The publishers' own count must be that of the table. Warm-up messages are taken out of what clients received."""
        found = {key for key in ledger(self.site) if WARM_UP not in key}
        if found != commits.keys():
            raise Failed(f"publishers and table differ: {sorted(found ^ commits.keys())[:5]}")
        for client in self.clients:
            kept = [
                pair for pair in zip(client.received.keys, client.received.times, strict=True) if WARM_UP not in pair[0]
            ]
            client.received.keys = [key for key, _ in kept]
            client.received.times = [moment for _, moment in kept]


def run(
    peer: Peer, fault: Fault, size: Size, seed: int, environment: Environment, postgres: EmbeddedPostgres
) -> Outcome:
    """Run a peer under a fault, with a new server and a new database. Raises :class:`~.site.Failed`."""
    with open_site(peer, environment, postgres) as site:
        return asyncio.run(Scenario(peer, fault, size, seed, site).run())


def temporary() -> tempfile.TemporaryDirectory[str]:
    """Return a new directory, in memory if there is such a place: otherwise the speed of a disk decides how much is published."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > _ROOM else None
    return tempfile.TemporaryDirectory(prefix="pgbus-peers-", dir=place, ignore_cleanup_errors=True)


@contextmanager
def open_site(peer: Peer, environment: Environment, postgres: EmbeddedPostgres) -> Iterator[Site]:
    """Open the servers of a run in a temporary directory."""
    with temporary() as name:
        directory = Path(name)
        directory.chmod(0o755)  # if root runs this, nginx runs as another user
        site = Site(directory, environment, postgres)
        try:
            if peer.store == "redis":
                site.start_redis()
            yield site
        finally:
            site.close()


@contextmanager
def open_postgres() -> Iterator[EmbeddedPostgres]:
    """Open a PostgreSQL for several runs, with its defaults, in a temporary directory."""
    with temporary() as name:
        Path(name).chmod(0o711)  # if root runs this, it runs as another user
        with EmbeddedPostgres.open(name, options={"max_connections": "200"}) as postgres:
            yield postgres


def applies(peer: Peer, fault: Fault) -> bool:
    """Whether a fault says something about a peer that another does not: a store in the server's process restarts with it."""
    return not (fault.name == "store" and peer.store == "itself")
