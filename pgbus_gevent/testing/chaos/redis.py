"""Redis for a run: a master, a replica and a Sentinel, which tells the workers which of the two is the master."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from .postgres import free_port
from .processes import ChaosFailed, Part, until

_NAME = "chaos"
_STARTING = 30.0
_ANSWERING = 5.0


class Node:
    """One process of Redis."""

    def __init__(
        self, folder: Path, name: str, environment: dict[str, str], *lines: str, sentinel: bool = False
    ) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            raise ChaosFailed("neither redis-server nor valkey-server is installed")
        self.port = free_port()
        home = folder / name
        home.mkdir()
        configuration = home / "redis.conf"
        common = (f"port {self.port}", "bind 127.0.0.1", f"dir {home}", "protected-mode no")
        stored = () if sentinel else ('save ""', "repl-diskless-sync-delay 0")
        configuration.write_text("\n".join([*common, *stored, *lines]) + "\n")
        command = [program, str(configuration), *(["--sentinel"] if sentinel else [])]
        self.part = Part(command, folder / "logs" / f"{name}.log", environment)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        if not self.part.running:
            self.part.start()
        until(lambda: self.ask("PING").startswith("+PONG"), _STARTING, f"Redis at port {self.port} does not answer")

    def ask(self, command: str) -> str:
        """Send a command and return the beginning of the answer; empty if there is none."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), _ANSWERING) as line:
                line.sendall(command.encode() + b"\r\n")
                return line.recv(65536).decode()
        except OSError:
            return ""

    @property
    def is_master(self) -> bool:
        """Whether this node is the master."""
        return "master" in self.ask("ROLE")


class RedisParts:
    """The three processes."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment
        first = Node(folder, "redis-1", environment)
        second = Node(folder, "redis-2", environment, f"replicaof 127.0.0.1 {first.port}")
        self.nodes = [first, second]
        self._sentinel: Node | None = None

    @property
    def url(self) -> str:
        """The address for ``wake``."""
        assert self._sentinel is not None
        return f"redis+sentinel://127.0.0.1:{self._sentinel.port}/{_NAME}"

    def start(self) -> None:
        """Start all."""
        for node in self.nodes:
            node.start()
        lines = [
            f"sentinel monitor {_NAME} 127.0.0.1 {self.nodes[0].port} 1",
            f"sentinel down-after-milliseconds {_NAME} 1000",
            f"sentinel failover-timeout {_NAME} 3000",
        ]
        self._sentinel = Node(self._folder, "sentinel", self._environment, *lines, sentinel=True)
        self._sentinel.start()

    def master(self) -> Node:
        """Return the node that is the master, or one of two that think so."""
        return next((node for node in self.nodes if node.part.running and node.is_master), self.nodes[0])

    def fail_over(self) -> str:
        """Have the Sentinel make the replica the master. Returns its answer."""
        assert self._sentinel is not None
        return self._sentinel.ask(f"SENTINEL FAILOVER {_NAME}")

    def close(self) -> None:
        """End all."""
        for node in [*self.nodes, *([self._sentinel] if self._sentinel else [])]:
            node.part.kill()
