"""What a run needs of the machine: a PostgreSQL, a Redis if the peer uses one, and the peer's server on a fixed port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from pgbus_gevent.bench.machine import cpu
from pgbus_gevent.database.embedded import EmbeddedPostgres

from .environment import Environment

ROOT = Path(__file__).resolve().parents[2]
_STARTING = 30.0
_PORTS = iter(range(20_000 + os.getpid() * 7 % 10_000, 32_000))


class Failed(Exception):
    """A server did not start."""


class Server:
    """A process that listens on a port, and can be started again."""

    def __init__(self, command: list[str], port: int, log: Path, variables: Mapping[str, str], directory: Path) -> None:
        self.port = port
        self._command = command
        self._log = log
        self._variables = variables
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def cpu(self) -> float:
        """Return the CPU seconds so far of its processes that run now. They are those of its session."""
        return cpu(members(self.pid))

    def start(self) -> None:
        """Start it, and wait until it accepts connections. Raises :class:`Failed`."""
        output: IO[bytes]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self._variables},
                cwd=self._directory,
                start_new_session=True,
            )
        deadline = time.monotonic() + _STARTING
        while not accepts(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{self._command[0]} does not serve: {self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def stop(self, sign: signal.Signals = signal.SIGTERM, patience: float = 3.0) -> None:
        """End it and its session: with a signal to the process, and after ``patience`` seconds by killing all. Idempotent."""
        if self._process is None:
            return
        if sign == signal.SIGKILL:
            self._kill()
        else:
            self._process.send_signal(sign)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            pass  # it is killed now
        self._kill()
        self._process.wait(10)
        self._process = None

    def _kill(self) -> None:
        for pid in members(self.pid):  # not its group alone, because Pushpin makes a group for each of its processes
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Site:
    """The servers of one run, in a directory of their own, and a new database in a PostgreSQL that all runs share."""

    def __init__(self, directory: Path, environment: Environment, postgres: EmbeddedPostgres) -> None:
        self.directory = directory
        self.environment = environment
        self.postgres = postgres
        self._database = directory.name.replace("-", "_").lower()
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(self._database)))
        self.database_url = urlsplit(postgres.url)._replace(path=f"/{self._database}").geturl()
        self.port = free_port()
        self.redis_port = 0
        self.redis: Server | None = None
        self.server: Server | None = None
        self.stack = ExitStack()
        """What else ends with the run."""

    def url(self, path: str) -> str:
        """Return the URL of a path of the peer's server."""
        return f"http://127.0.0.1:{self.port}{path}"

    def start_redis(self) -> None:
        """Start a Redis with the settings of Debian's package as to persistence: snapshots, also when it is told to end."""
        self.redis_port = free_port()
        program = shutil.which("redis-server") or ""
        snapshots = ["--save", "900 1 300 10 60 10000", "--dir", str(self.directory)]
        command = [program, "--port", str(self.redis_port), "--bind", "127.0.0.1", *snapshots]
        self.redis = Server(command, self.redis_port, self.directory / "redis.log", {}, self.directory)
        self.redis.start()

    def serve(self, command: list[str], variables: Mapping[str, str]) -> None:
        """Start the peer's server."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.server = Server(
            command, self.port, self.directory / "server.log", {"PYTHONPATH": path, **variables}, self.directory
        )
        self.server.start()

    def close(self) -> None:
        """Stop all servers."""
        self.stack.close()
        for server in (self.server, self.redis):
            if server is not None:
                server.stop()
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(self._database)))


def members(session_id: int) -> list[int]:
    """Return the processes of a session."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if session(pid) == session_id]


def session(pid: int) -> int | None:
    """Return the session of a process, or None if it has ended."""
    try:
        return os.getsid(pid)
    except OSError:
        return None


def accepts(port: int) -> bool:
    """Return whether a port accepts connections."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """Return a port that is free now, another at each call, below the range from which the kernel takes those of connections."""
    for port in _PORTS:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise Failed("there is no free port")


def python() -> str:
    """Return the Python that runs this, which has our own package."""
    return sys.executable
