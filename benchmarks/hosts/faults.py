"""Faults, drawn at random from a seed. Each of them ends by itself, and puts right what it broke."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .network import Host, Process
from .site import Site

Fault = tuple[str, Callable[[], None]]


class Faults:
    """The faults of a site. :meth:`draw` returns one to be run; it takes up to some 20 seconds."""

    def __init__(self, site: Site, seed: int) -> None:
        self._site = site
        self._random = random.Random(seed)

    def draw(self) -> Fault:
        """Return the name of a fault and a function that brings it about, and ends it."""
        site, pick = self._site, self._random.choice
        web = pick(site.workers)
        seconds = self._random.uniform(2, 12)
        faults: list[Fault] = [
            (f"{web.name}: all workers killed", lambda: self._kill(web.processes["serve"], seconds / 2)),
            (f"{web.name}: stopped for {seconds:.0f} s", lambda: self._stop(web.processes["serve"], seconds)),
            (f"{web.name}: cut off for {seconds:.0f} s", lambda: self._cut(web, seconds)),
            (f"{web.name}: reloaded", lambda: web.processes["serve"].send(signal.SIGHUP)),
            (
                f"pooler: killed for {seconds / 3:.0f} s",
                lambda: self._kill(site.pooler.processes["pgbouncer"], seconds / 3),
            ),
            (f"standby: cut off for {seconds:.0f} s", lambda: self._cut(site.standby, seconds)),
            (f"standby: replay paused for {seconds:.0f} s", lambda: self._pause_replay(seconds)),
            (f"database: cut off for {seconds / 2:.0f} s", lambda: self._cut(site.database, seconds / 2)),
            ("database: every LISTEN session ended", self._end_listeners),
        ]
        if site.redis:
            relay, node = pick(site.workers[:2]), pick(site.redis)
            part = node.processes[pick(["redis-7000", "redis-7001"])]
            faults += [
                (f"relay of {relay.name}: killed", lambda: self._kill(relay.processes["relay"], seconds / 2)),
                (
                    f"relay of {relay.name}: stopped for {seconds:.0f} s",
                    lambda: self._stop(relay.processes["relay"], seconds),
                ),
                (f"{node.name}: one Redis killed for {seconds:.0f} s", lambda: self._kill(part, seconds)),
                (f"{node.name}: Redis stopped for {seconds:.0f} s", lambda: self._stop(part, seconds)),
                (f"{node.name}: cut off for {seconds:.0f} s", lambda: self._cut(node, seconds)),
                (f"{node.name}: flushed", lambda: self._flush(node)),
            ]
        return self._random.choice(faults)

    def _kill(self, process: Process, seconds: float) -> None:
        process.kill()
        time.sleep(seconds)
        process.start()

    def _stop(self, process: Process, seconds: float) -> None:
        process.send(signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            process.send(signal.SIGCONT)

    def _cut(self, host: Host, seconds: float) -> None:
        host.cut()
        try:
            time.sleep(seconds)
        finally:
            host.restore()

    def _sql(self, host: Host, statement: str) -> None:
        host.run(["psql", "-h", host.address, "-U", "postgres", "-q", "-c", statement, "postgres"])

    def _pause_replay(self, seconds: float) -> None:
        self._sql(self._site.standby, "select pg_wal_replay_pause()")
        try:
            time.sleep(seconds)
        finally:
            self._sql(self._site.standby, "select pg_wal_replay_resume()")

    def _end_listeners(self) -> None:
        self._sql(
            self._site.database,
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgbus-listen%'",
        )

    def _flush(self, node: Host) -> None:
        for port in ("7000", "7001"):
            try:
                node.run(["redis-cli", "-h", node.address, "-p", port, "flushall"], timeout=5)
            except Exception:
                pass  # a replica refuses, and so does a node that is away


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Give a function that returns the seconds since the block began."""
    began = time.monotonic()
    yield lambda: time.monotonic() - began
