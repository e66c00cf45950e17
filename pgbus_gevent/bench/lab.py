"""The environment of a scenario: a database, and a server, clients and publishers that are started for each run."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any

from ..database import Database
from ..database.embedded import EmbeddedPostgres
from ..settings.table import Settings
from . import machine
from .program import ROOT, STARTING, BenchFailed, Program

OURS = "pgbus"
"""The name of our own server among the servers under test."""

PEERS = ROOT / "benchmarks" / "peers" / "speed"
"""The directory of the adapters in a checkout. Each ``.py`` file is a program that behaves like :mod:`.server`."""

FRAME = 215
"""Bytes of a message on the wire, unless a scenario says otherwise."""

_SETTLE = 0.3
_OPTIONS = {"max_connections": "300"}
_GET = "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n{more}\r\n"


class Missing(Exception):
    """A peer is not installed. The message says how to install it."""


@dataclass(frozen=True)
class Scale:
    """The size of the scenarios. None is the default of each scenario."""

    clients: int | None = None
    messages: int | None = None
    seconds: float | None = None
    fleets: tuple[int, ...] | None = None


@dataclass
class Server:
    """A server under test. ``database`` says whether it uses PostgreSQL, whose CPU time then counts.

    ``ports`` are those of all of its workers, if it has several; ``port`` is the first.
    """

    program: Program
    pids: list[int]
    port: int
    path: str
    marker: str
    way: str
    options: dict[str, Any]
    database: bool = False
    ports: list[int] = field(default_factory=list)

    def requests(self, streams: Sequence[str], *, since: Sequence[int] = (), headers: Sequence[str] = ()) -> list[str]:
        """Return the requests of clients of these streams.

        With the cursors ``since``, or the lines ``headers``, one request of the first stream for each of them.
        """
        headers = headers or [f"Last-Event-ID: {cursor}\r\n" for cursor in since]
        if headers:
            return [_GET.format(path=self.path.format(stream=streams[0]), more=line) for line in headers]
        return [_GET.format(path=self.path.format(stream=stream), more="") for stream in streams]

    def job(
        self, streams: Sequence[str], messages: int, *, rate: float = 0.0, size: int = FRAME, commit: bool = False
    ) -> dict[str, Any]:
        """Describe a publisher's work for this server. With ``commit``, times count from the COMMIT if the server has one."""
        return {
            "way": self.way,
            "options": {**self.options, "commit": True} if commit and self.way == "sql" else self.options,
            "streams": list(streams),
            "messages": messages,
            "rate": rate,
            "size": size,
        }

    def counters(self) -> dict[str, float]:
        """Return the counters of our own server."""
        return self.program.call(30.0, do="counters")

    def memory(self) -> int:
        """Return the memory of its processes in bytes."""
        return machine.memory(self.pids)


@dataclass
class Run:
    """One run of a scenario with one server: its size and its processes."""

    database_url: str
    postmaster: int | None
    server_name: str
    scale: Scale
    stack: ExitStack
    peers: Path = PEERS
    data_dir: str | None = None
    _programs: dict[str, Program] = field(default_factory=dict, init=False)

    # scale

    def clients(self, usual: int) -> int:
        """Return the number of clients, by default ``usual``."""
        return self.scale.clients or usual

    def beside(self, usual: int, of: int) -> int:
        """Return a number in proportion to the clients: ``usual`` if there are ``of`` clients."""
        return max(1, round(usual * self.clients(of) / of))

    def messages(self, usual: int) -> int:
        """Return the number of messages, by default ``usual``."""
        return self.scale.messages or usual

    def seconds(self, usual: float) -> float:
        """Return the duration in seconds, by default ``usual``."""
        return self.scale.seconds or usual

    # parts

    def program(self, module: str, which: str = "") -> Program:
        """Return a running program of ours, and start it on the first call. ``which`` distinguishes several of one kind."""
        name = f"{module} {which}"
        if name not in self._programs:
            self._programs[name] = self._started(Program.module(module))
        return self._programs[name]

    def _started(self, program: Program) -> Program:
        self.stack.callback(program.close)
        return program

    def serve(self, *, filters: int | None = None, **settings: Any) -> Server:
        """Start the server under test. Raises :class:`Missing`.

        The arguments are for our own server: ``settings``, and the number of filters for the labels ``user:0``, ``user:1``, …
        """
        if self.server_name == OURS:
            more = [] if filters is None else ["--filters", str(filters)]
            program = self.start_server(self.database_url, *more, settings=settings)
        else:
            adapter = str(self.peers / f"{self.server_name}.py")
            program = Program(self.server_name, [sys.executable, adapter, "--database-url", self.database_url])
        self._started(program)
        found = program.receive(STARTING)
        if "missing" in found:
            raise Missing(found["missing"])
        return Server(program, **found)

    @staticmethod
    def start_server(url: str, *arguments: str, settings: Mapping[str, Any]) -> Program:
        """Start our own server on a database. The caller closes it."""
        return Program.module("server", "--database-url", url, *arguments, "--settings", json.dumps(settings))

    # doing

    def connect(
        self,
        server: Server,
        group: str,
        count: int,
        requests: Sequence[str],
        *,
        by: str = "",
        reads: bool = True,
        greeted: bool = True,
    ) -> float:
        """Open connections in the client process ``by``. Returns the seconds until the server had greeted all of them.

        Clients that poll are not ``greeted`` before their answer, and count as connected when their request has been sent.
        """
        opening = {"group": group, "port": server.port, "count": count, "requests": requests, "reads": reads}
        opening["greeted"] = greeted
        self.receive({}, 60.0, by=by, open=[opening], marker=server.marker)
        opened = self.received(60.0, by=by)["groups"][group]
        if opened["open"] < count:
            raise BenchFailed(f"only {opened['open']} of {count} clients are connected")
        return float(opened["opened_in"])

    def receive(self, until: Mapping[str, int] | None, seconds: float, *, by: str = "", **more: Any) -> None:
        """Let the clients start to receive (:meth:`.load.Load.run`). :meth:`received` returns the result."""
        program = self.program("load", by)
        program.send(do="run", until=until, seconds=seconds, **more)
        program.receive(STARTING)

    def received(self, seconds: float, *, by: str = "") -> dict[str, Any]:
        """Wait until the clients have everything or their time is over. Returns their report."""
        return self.program("load", by).receive(seconds + 30.0)

    def publish(self, *jobs: dict[str, Any], timeout: float = 120.0, **more: Any) -> dict[str, Any]:
        """Run the jobs in a publisher process (:func:`.publisher.publish`)."""
        return self.program("publisher").call(timeout, do="publish", jobs=jobs, **more)

    def warm_up(
        self, server: Server, group: str, streams: Sequence[str], count: int, *, rounds: int = 5, by: str = ""
    ) -> None:
        """Publish a few messages that are not counted, and wait until all ``count`` clients have received them."""
        self.receive({group: rounds * count}, 20.0, by=by)
        self.publish(server.job(streams, rounds * len(streams)))
        self.received(20.0, by=by)

    def cpu(self, server: Server) -> Cpu:
        """Return the CPU seconds so far, after a pause in which work in progress can end."""
        sleep(_SETTLE)
        database = machine.cpu_of_family(self.postmaster) if self.postmaster and server.database else 0.0
        return Cpu(machine.cpu(server.pids), database)


@dataclass(frozen=True)
class Cpu:
    """CPU seconds."""

    server: float
    database: float

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.server - other.server, self.database - other.database)

    def per_million(self, deliveries: int) -> dict[str, float]:
        """Return the metrics of a row: CPU seconds per million deliveries, of the server, and of server and database."""
        million = max(1, deliveries) / 1e6
        return {
            "cpu_per_million": self.server / million,
            "cpu_all_per_million": (self.server + self.database) / million,
        }


@contextmanager
def database(
    url: str | None, data_dir: str | None = None, *, options: Mapping[str, str] = _OPTIONS
) -> Iterator[tuple[str, int | None]]:
    """Yield the URL of a database with the schema, and the process id of its server.

    With ``url``, that is the given database, and the process id is None. Otherwise it is a new database in a directory that is
    removed at the end, made below ``data_dir`` or in the system's directory for temporary files. ``options`` are PostgreSQL's
    settings for it.
    """
    with ExitStack() as stack:
        pid = None
        if url is None:
            directory = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="pgbus-bench-", dir=data_dir, ignore_cleanup_errors=True)
            )
            Path(directory).chmod(0o711)  # if root runs this, the server runs as another user
            embedded = stack.enter_context(EmbeddedPostgres.open(directory, options=options))
            url = embedded.url
            pid = int(next(Path(directory).glob("postgres-*/postmaster.pid")).read_text().split()[0])
        settings = Settings(database_url=url, secret=("the secret of the benchmark",))
        migrating = Database(settings)
        try:
            migrating.migrate()
        finally:
            migrating.close()
        yield url, pid


def adapters(directory: Path = PEERS) -> list[str]:
    """Return the names of the peers that have an adapter."""
    return sorted(path.stem for path in directory.glob("*.py"))
