"""The scenario about fleets: what 1 to 100 workers cost PostgreSQL, with each way in which they can hear of messages.

Each worker is an Instance with its own server, and has one client, on a stream of its own. The messages go to these streams in
turn. Each way has its own fleet, which is measured idle, at 10 and at 100 messages a second.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import sleep
from typing import Any, NamedTuple

import psycopg2

from ..commands.program import say
from ..errors import InvalidSetting
from ..hosts.pywsgi import listen
from ..settings.table import Settings
from . import machine
from .lab import Run, Server, database
from .load import percentiles
from .scenarios import Metrics, Rows, Scenario

PROCESSES = 16
"""The most processes. A larger fleet has several Instances in each, because a process of Python takes 40 MB and a second."""

SIZES = (1, 4, 16, 64, 100)
RATES = (0.0, 10.0, 100.0)

_PER_MESSAGE = 3
"""The statements of the publisher for each message: BEGIN, the call, and COMMIT. They do not count."""

_STARTING = 180.0
_SETTLE = 30.0  # seconds until each worker has reported itself, knows of the others, and hears only its own streams
_OPTIONS = {"max_connections": "600", "shared_preload_libraries": "pg_stat_statements"}


class Way(NamedTuple):
    """A way in which workers hear of messages: the settings of each, whether a steward is elected, and the id of Redis' process."""

    name: str
    settings: dict[str, Any]
    steward: bool = True
    redis: int | None = None


def fleet(run: Run) -> Rows:
    return measured(run, run.scale.fleets or SIZES)


def measured(
    run: Run, sizes: Sequence[int], *, ways: Collection[str] | None = None, rates: Sequence[float] = RATES
) -> Rows:
    """Return what fleets of these ``sizes`` cost with these ``ways``, or with all, at each rate of messages."""
    rows: Rows = {}
    # Its own server, because statements are counted by an extension that must be loaded at the start.
    with database(None, run.data_dir, options=_OPTIONS) as (url, postmaster), _redis() as redis:
        assert postmaster is not None
        counter = _Counter(url)
        for way in (Way("no steward", {}, steward=False), Way("steward", {}), *redis):
            if ways is not None and way.name not in ways:
                continue
            for size in sizes:
                with ExitStack() as stack:
                    fleet = _Fleet(run, stack, url, way, size)
                    for rate in rates:
                        rows[row_name(way.name, size, rate)] = fleet.measure(rate, counter, postmaster)
    return rows


def row_name(way: str, size: int, rate: float) -> str:
    """Return the name of a row of the result."""
    return f"{way}, {size}, {f'{rate:g}/s' if rate else 'idle'}"


@contextmanager
def _redis() -> Iterator[list[Way]]:
    """Yield the way through a Redis server of our own, or no way if there is no such server, or no such setting."""
    with ExitStack() as stack:
        probe = listen("127.0.0.1", 0)
        port = probe.getsockname()[1]
        probe.close()
        url = f"redis://127.0.0.1:{port}"
        missing = "" if shutil.which("redis-server") else "apt-get install redis-server"
        try:
            Settings(database_url="postgresql:///unused", secret=("unused, but long enough",), wake=url)
        except InvalidSetting as error:
            missing = missing or str(error)
        if missing:
            say(f"redis is left out: {missing}")
            yield []
            return
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pgbus-bench-redis-"))
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        stack.callback(server.wait)
        stack.callback(server.terminate)
        yield [Way("redis", {"wake": url}, redis=server.pid)]


class _Counter:
    """Counts the statements of a database."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True
        self._cursor = self._connection.cursor()
        self._cursor.execute("create extension if not exists pg_stat_statements")

    def statements(self) -> int:
        """Return how many statements have been run so far, without those of this counter."""
        self._cursor.execute("select sum(calls) from pg_stat_statements where query not like '%pg_stat_statements%'")
        ((found,),) = self._cursor.fetchall()
        return int(found or 0)


class _Fleet:
    """A running fleet of one way and size, with its clients."""

    def __init__(self, run: Run, stack: ExitStack, url: str, way: Way, size: int) -> None:
        self._run = run
        self._way = way
        self._size = size
        count = min(size, PROCESSES)
        shares = [size // count + (n < size % count) for n in range(count)]
        more = () if way.steward else ("--no-steward",)
        settings = {"max_connections": 1000, **way.settings}
        programs = [run.start_server(url, *more, "--instances", str(share), settings=settings) for share in shares]
        for program in programs:
            stack.callback(program.close)
        for program in programs:
            stack.callback(program.end)  # runs before close(), so that all end at the same time
        self._servers = [Server(program, **program.receive(_STARTING)) for program in programs]
        self._pids = [pid for server in self._servers for pid in server.pids]
        self._streams = [f"bench:fleet-{n}" for n in range(size)]
        self._load = f"{way.name} {size}"
        stack.callback(run.program("load", self._load).close)
        ports = [port for server in self._servers for port in server.ports]
        self._connect(ports)
        sleep(min(_SETTLE, run.seconds(_SETTLE)))

    def _connect(self, ports: Sequence[int]) -> None:
        server = self._servers[0]
        openings = [
            {"group": "all", "port": port, "count": 1, "requests": server.requests([stream])}
            for port, stream in zip(ports, self._streams, strict=True)
        ]
        self._run.receive({}, 60.0, by=self._load, open=openings, marker=server.marker)
        self._run.received(60.0, by=self._load)
        self._run.warm_up(server, "all", self._streams, self._size, rounds=1, by=self._load)

    def measure(self, rate: float, counter: _Counter, postmaster: int) -> Metrics:
        """Return what the fleet costs at a rate of messages."""
        run, seconds = self._run, self._run.seconds(10.0)
        before = counter.statements(), machine.cpu_of_family(postmaster), machine.cpu(self._pids), self._redis_cpu()
        found: Metrics = {"workers": self._size, "processes": len(self._pids), "rate": rate}
        messages = round(rate * seconds)
        if messages:
            run.receive({"all": messages}, seconds + 30.0, by=self._load, ages=True)
            job = self._servers[0].job(self._streams, messages, rate=rate, commit=True)
            published = run.publish(job, offsets=True)
            took = published["seconds"]
            group = run.received(seconds + 30.0, by=self._load)["groups"]["all"]
            ages = [age - published["offsets"][stamp] for stamp, ages in group["ages"].items() for age in ages]
            found |= {"lost": messages - group["frames"], "call_p50": published["p50"], "call_p99": published["p99"]}
            found |= {name: value for name, value in percentiles(ages).items() if name in ("p50", "p99")}
        else:
            sleep(seconds)
            took = seconds
        after = counter.statements(), machine.cpu_of_family(postmaster), machine.cpu(self._pids), self._redis_cpu()
        statements, database, workers, redis = (now - then for now, then in zip(after, before, strict=True))
        found["statements_per_second"] = (statements - _PER_MESSAGE * messages) / took
        found |= {"database_cpu_percent": database / took * 100, "workers_cpu_percent": workers / took * 100}
        if self._way.redis is not None:
            found["redis_cpu_percent"] = redis / took * 100
        return found

    def _redis_cpu(self) -> float:
        return 0.0 if self._way.redis is None else machine.cpu([self._way.redis])


FLEET = Scenario(
    "fleet",
    "1 to 100 workers (--fleets), each with one client on its own stream: no steward is elected, or one is, or Redis passes on",
    fleet,
    (
        *("workers", "processes", "rate", "statements_per_second", "database_cpu_percent", "redis_cpu_percent"),
        *("workers_cpu_percent", "lost", "call_p50", "call_p99", "p50", "p99"),
    ),
    usual=False,
)
