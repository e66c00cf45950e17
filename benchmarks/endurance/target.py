"""The server under attack: PostgreSQL, ``serve`` with its workers, and if wanted Redis, and an edge in front of the origin."""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg2

from pgbus_gevent.testing.databases import TestDatabases

ROOT = Path(__file__).parents[2]
SECRET = "a secret of the endurance test"
TOKEN = "a-publish-token-for-the-endurance-test"
WORKER_TOKEN = "a-worker-token-for-the-endurance-test"
START = 60.0
"""Seconds that a program may take to start."""

_ANNOUNCED = re.compile(r"serves (http://([\d.]+):(\d+))/")


class Served:
    """One running ``serve``. ``pids`` are its processes."""

    def __init__(self, folder: Path, settings: dict[str, str], *, limit: int | None = None, app: bool = True) -> None:
        self.log = folder / f"serve-{len(list(folder.glob('serve-*')))}.log"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PGBUS_", "PG", "DATABASE_URL"))}
        plant = {k: v for k, v in os.environ.items() if k == "PGBUS_ENDURANCE_PLANT"}
        environment = {
            **kept,
            **plant,
            **{f"PGBUS_{k.upper()}": v for k, v in settings.items()},
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "pgbus_gevent.serve", "--port", "0"]
        if app:
            command.insert(3, "benchmarks.endurance.site:application")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                preexec_fn=lambda: _limit_descriptors(limit),
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = _ANNOUNCED.search(line)
        if found is None:
            self.process.kill()
            raise RuntimeError(f"serve did not start: {line!r}\n{self.log.read_text()[-4000:]}")
        self.url, self.host, self.port = found[1], found[2], int(found[3])
        self.workers = int(settings.get("workers", "1"))

    @property
    def pids(self) -> list[int]:
        """The processes that serve."""
        if self.workers == 1:
            return [self.process.pid]
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [each.pid for each in below if not each.children()]

    @property
    def rss(self) -> int:
        """The resident memory of the processes that serve, in bytes."""
        return sum(psutil.Process(pid).memory_info().rss for pid in self.pids)

    @property
    def descriptors(self) -> int:
        """The open descriptors of the processes that serve."""
        return sum(psutil.Process(pid).num_fds() for pid in self.pids)

    @property
    def cpu(self) -> float:
        """The CPU seconds of the processes that serve."""
        return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in self.pids)

    @property
    def errors(self) -> str:
        """The log so far."""
        return self.log.read_text()

    def connect(self, *, buffer: int | None = None, timeout: float = 20.0) -> socket.socket:
        """Return a connected socket; ``buffer`` is the size of its receive buffer in bytes."""
        sock = socket.socket()
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.settimeout(timeout)
        sock.connect((self.host, self.port))
        return sock

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, timeout: float = 20.0
    ) -> tuple[int, bytes]:
        """Send one request on a connection of its own; return status and body."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}"} if method == "POST" else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The sum of a metric over all workers."""
        page = self.ask("/pgbus/metrics")[1].decode()
        lines = [line for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} ")) or "{" in name]
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def censuses(self, path: str = "/census") -> dict[int, dict[str, Any]]:
        """The census of each worker, by its process id. With the path ``/trimmed``, it gives free memory back first."""
        found: dict[int, dict[str, Any]] = {}
        for _ in range(60 * self.workers):
            answer = json.loads(self.ask(path)[1])
            found[answer["pid"]] = answer
            if len(found) >= self.workers:
                return found
        raise RuntimeError(f"only {len(found)} of {self.workers} workers answered")

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Site:
    """The servers, of which ``front`` has the clients and ``origin`` the database; without an edge they are the same."""

    def __init__(self, database_url: str, front: Served, origin: Served, redis: int | None) -> None:
        self.database_url = database_url
        self.front = front
        self.origin = origin
        self.redis = redis

    @property
    def servers(self) -> list[Served]:
        """All servers."""
        return [self.front] if self.front is self.origin else [self.origin, self.front]

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own."""
        connection = psycopg2.connect(self.database_url)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    @property
    def sessions(self) -> int:
        """The sessions on the database, but for the one that counts them."""
        mine = "datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()"
        return int(self.query(f"select count(*) from pg_stat_activity where {mine}")[0][0])


@contextmanager
def site(
    *,
    database_url: str | None = None,
    edge: bool = False,
    redis: bool = False,
    limit: int | None = None,
    **settings: str,
) -> Iterator[Site]:
    """Start everything in a temporary folder, and stop it at the end. ``settings`` are those of the server with the clients.

    ``database_url`` is that of an empty database with the schema; without it, PostgreSQL is started too.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgbus-endurance-")))
        url = database_url or stack.enter_context(_database())
        common = {
            "secret": SECRET,
            "public": "*",
            "publish_token": TOKEN,
            "worker_token": WORKER_TOKEN,
            "log_level": "warning",
        }
        hooks = {"authorize": "benchmarks.endurance.site:authorize", "filters": "benchmarks.endurance.site:filters"}
        wake = {}
        port = stack.enter_context(_redis(folder)) if redis else None
        if port is not None:
            wake = {"wake": f"redis://127.0.0.1:{port}"}
        own = {**common, **hooks, **settings, **wake, "database_url": url}
        origin = Served(folder, own, limit=None if edge else limit)
        stack.callback(origin.stop)
        front = origin
        if edge:
            kept = {
                k: v for k, v in settings.items() if k not in ("presence", "presence_ttl", "workers", "presence_grace")
            }
            front = Served(folder, {**common, **hooks, **kept, "upstream": f"{origin.url}/pgbus"}, limit=limit)
            stack.callback(front.stop)
        for served in {origin, front}:
            until(lambda served=served: _ready(served), START, "a server is ready")
        yield Site(url, front, origin, port)


@contextmanager
def _database() -> Iterator[str]:
    databases = TestDatabases()
    try:
        yield databases.make()
    finally:
        databases.close()


def _ready(served: Served) -> bool:
    with suppress(OSError):
        return served.ask("/pgbus/readyz")[0] == 200
    return False


@contextmanager
def _redis(folder: Path) -> Iterator[int]:
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise SystemExit("redis-server is not installed: apt install redis-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [
        program,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


def until(happened: Callable[[], Any], seconds: float, what: str, pause: float = 0.1) -> Any:
    """Return the first true result of ``happened``. Raises TimeoutError with ``what`` after ``seconds``."""
    end = time.monotonic() + seconds
    while not (found := happened()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)
    return found


def raise_own_limit() -> int:
    """Allow this process as many descriptors as it may have, and return how many those are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _limit_descriptors(limit: int | None) -> None:
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
