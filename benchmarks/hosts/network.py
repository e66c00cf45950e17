"""Simulated hosts: network namespaces with an address each, on one bridge."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

NETWORK = "10.77.0"
_COMMAND_SECONDS = 20


def ip(*arguments: str, check: bool = True) -> None:
    """Run the program ``ip`` of iproute2."""
    subprocess.run(["ip", *arguments], check=check, stderr=subprocess.DEVNULL, timeout=_COMMAND_SECONDS)


class Host:
    """One namespace with the address ``10.77.0.<number>``. Its processes are started by :meth:`start`."""

    def __init__(self, prefix: str, name: str, number: int) -> None:
        self.name = name
        self.namespace = f"{prefix}{name}"
        self.address = f"{NETWORK}.{number}"
        self._bridge = f"{prefix}fab"
        self._port = f"{prefix}{number}"
        self.processes: dict[str, Process] = {}
        ip("netns", "add", self.namespace)
        ip(
            "link",
            "add",
            self._port,
            "netns",
            self._bridge,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.namespace,
        )
        ip("-n", self._bridge, "link", "set", self._port, "master", "br0", "up")
        ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.namespace, "link", "set", device, "up")

    def cut(self) -> None:
        """Take the host's line away. Its connections hang; nothing is refused."""
        ip("-n", self._bridge, "link", "set", self._port, "down")

    def restore(self) -> None:
        """Give the line back."""
        ip("-n", self._bridge, "link", "set", self._port, "up")

    def start(self, name: str, command: Sequence[str], log: Path, *, user: str = "", **environment: str) -> Process:
        """Start a process on the host, or start it again with the same name. ``user`` is the account that it runs as."""
        if user and os.geteuid() == 0:
            command = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", *command]
        process = Process(
            ["ip", "netns", "exec", self.namespace, *command], log / f"{self.name}-{name}.log", environment
        )
        self.processes[name] = process
        return process

    def run(self, command: Sequence[str], *, user: str = "", timeout: float = 60, **options: Any) -> str:
        """Run a command on the host to its end. Return what it prints."""
        if user and os.geteuid() == 0:
            command = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", *command]
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace, *command],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=timeout,
            **options,
        )
        return done.stdout


class Process:
    """A process in a session of its own, so that signals reach its children too. Its output goes to the file ``log``."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._command, self._log, self._environment = list(command), log, dict(environment)
        self._output: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, or start it again after it has ended."""
        self._output = self._log.open("ab")
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **self._environment},
        )

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of the process, which is also that of its session."""
        assert self._process is not None
        return self._process.pid

    def send(self, number: int) -> None:
        """Send a signal to the process and its children."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass

    def kill(self) -> None:
        """End it at once, with its children, and wait for its end."""
        self.end(signal.SIGKILL)

    def end(self, number: int = signal.SIGTERM, timeout: float = 20.0) -> None:
        """Send a signal and wait for the end. After ``timeout`` seconds, kill it."""
        self.send(number)
        assert self._process is not None
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._process.wait(timeout)
        if self._output is not None:
            self._output.close()


class Network:
    """All hosts. Use it in a ``with`` statement: at its end every process is killed, and every namespace removed."""

    def __init__(self, prefix: str = "pgb-") -> None:
        self._prefix = prefix
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Network:
        fabric = f"{self._prefix}fab"
        self._remove()
        ip("netns", "add", fabric)
        ip("-n", fabric, "link", "add", "br0", "type", "bridge")
        ip("-n", fabric, "link", "set", "br0", "up")
        return self

    def __exit__(self, *exception: object) -> None:
        for host in reversed(self.hosts.values()):
            for process in reversed(host.processes.values()):
                process.send(signal.SIGCONT)
                process.kill()
        self._remove()

    def _remove(self) -> None:
        listed = subprocess.run(
            ["ip", "netns", "list"], check=True, stdout=subprocess.PIPE, text=True, timeout=_COMMAND_SECONDS
        )
        for line in listed.stdout.splitlines():
            name = line.split()[0]
            if name.startswith(self._prefix):
                ip("netns", "delete", name, check=False)

    def host(self, name: str, number: int) -> Host:
        """Add a host."""
        self.hosts[name] = Host(self._prefix, name, number)
        return self.hosts[name]
