"""A place where configuration files stand where they belong: a network and a file system of its own, with Debian's programs.

It is made of namespaces, so root must run the tests. The ports 80 and 443 and the addresses of ``deploy/`` are free there.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gevent
import psutil
import pytest
from support import PATIENCE, until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SITE = "live.example.com"

CLONE_NEWNET = 0x40000000  # setns(2)
_libc = ctypes.CDLL(None, use_errno=True)

SET_UP = """
set -e
ip link set lo up
for address in 10.0.0.11 10.0.0.12; do ip addr add $address/32 dev lo; done
for folder in /run /var/log /var/lib/nginx /etc/ssl/private /etc/ssl/certs; do
  [ ! -d $folder ] || mount -t tmpfs -o mode=755 tmpfs $folder
done
mkdir -p /run/haproxy /var/log/nginx
echo "127.0.0.1 localhost live.example.com" >/run/hosts
mount --bind /run/hosts /etc/hosts
cp "$1/site.pem" /etc/ssl/certs/live.example.com.pem
cp "$1/site.key" /etc/ssl/private/live.example.com.key
echo ready
exec cat
"""


def needed() -> str:
    """Return why no place can be made here; empty if it can."""
    missing = [name for name in ("unshare", "nsenter", "ip", "openssl") if shutil.which(name) is None]
    if missing or sys.platform != "linux":
        return f"there is no {', '.join(missing)}"
    done = subprocess.run(["unshare", "--net", "--mount", "true"], stderr=subprocess.DEVNULL, timeout=60)
    return "" if done.returncode == 0 else "no namespaces can be made here"


def program(name: str) -> str:
    """Return the path of an installed program. The test is skipped without it."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"there is no {name}: apt-get install {name}")
    return found


class Place:
    """The namespaces. ``folder`` takes the logs and the certificate of the site. :meth:`close` ends all that runs there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[subprocess.Popen[bytes]] = []
        make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout site.key -out site.pem"
        names = ["-subj", f"/CN={SITE}", "-addext", f"subjectAltName=DNS:{SITE}"]
        subprocess.run([*make.split(), *names], cwd=folder, check=True, capture_output=True, timeout=60)
        self._holder: Any = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", SET_UP, "sh", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout.readline() == b"ready\n"
        self._network = os.open(f"/proc/{self._holder.pid}/ns/net", os.O_RDONLY)
        self.context = ssl.create_default_context(cafile=str(folder / "site.pem"))
        self.context.set_alpn_protocols(["h2", "http/1.1"])

    def inside(self, *command: str, folder: Path | None = None) -> list[str]:
        """Return the command that runs a command there, in its own folder or another one."""
        return ["nsenter", "-t", str(self._holder.pid), "--net", "--mount", f"--wd={folder or self.folder}", *command]

    def path(self, inside: str) -> str:
        """Return the path that leads from outside to a file there."""
        return f"/proc/{self._holder.pid}/root{inside}"

    def run(self, *command: str, **variables: str) -> str:
        """Run a command there, and return its output and its errors. Raises AssertionError with them if the command fails."""
        done = subprocess.run(
            self.inside(*command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            env={**os.environ, **variables},
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def configure(self, folder: str, files: dict[str, str]) -> None:
        """Give the place its own copy of a folder of the system, with these files in it, by name."""
        staged = Path(tempfile.mkdtemp(dir=self.folder))
        for name, text in files.items():
            path = staged / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        script = 'own=/run/own$2; [ -e "$own" ] || { mkdir -p "$own"; cp -a "$2/." "$own"; mount --bind "$own" "$2"; }'
        script += '; cp -r "$1/." "$own"'
        self.run("sh", "-ec", script, "sh", str(staged), folder)

    def start(self, name: str, *command: str, descriptors: tuple[int, ...] = (), **variables: str) -> Running:
        """Start a program there. Its output goes to the log ``name``."""
        path = self.folder / f"{name}.log"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PGBUS_", "DATABASE_"))}
        with open(path, "ab") as log:
            process = subprocess.Popen(
                self.inside(*command),
                stdout=log,
                stderr=log,
                env={**kept, "PYTHONPATH": str(ROOT), **variables},
                pass_fds=descriptors,
            )
        self._running.append(process)
        return Running(process, path)

    @contextmanager
    def _entered(self) -> Iterator[None]:
        # The thread is there for a moment, in which no other greenlet runs. A socket stays in the network where it was made.
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            assert _libc.setns(self._network, CLONE_NEWNET) == 0
            yield
        finally:
            assert _libc.setns(own, CLONE_NEWNET) == 0
            os.close(own)

    def connect(self, port: int = 443, host: str = "127.0.0.1") -> Any:
        """Return a connected socket there. Raises OSError."""
        with self._entered():
            sock = gevent.socket.socket()
        try:
            sock.settimeout(PATIENCE)
            sock.connect((host, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def listen(self, port: int, host: str = "127.0.0.1") -> socket.socket:
        """Return a socket that listens there, as a service manager's does."""
        with self._entered():
            sock = socket.create_server((host, port), backlog=4096)
        os.set_inheritable(sock.fileno(), True)
        return sock

    def accepts(self, port: int, host: str = "127.0.0.1") -> bool:
        try:
            self.connect(port, host).close()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """End all that runs there, also what a program has started and left."""
        own = os.readlink(f"/proc/{self._holder.pid}/ns/net")
        os.close(self._network)
        for pid in set(psutil.pids()) - {self._holder.pid}:
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/ns/net") == own:
                    os.kill(pid, signal.SIGKILL)
        for process in self._running:
            process.kill()  # one that has not come there yet
            process.wait(PATIENCE)
        self._holder.communicate(timeout=PATIENCE)


class Running:
    """A program that was started."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def children(self) -> dict[int, str]:
        """Return the title of each of its children."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                found[child.pid] = " ".join(child.cmdline())
        return found

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def until(self, condition: Any, what: str, timeout: float = 3 * PATIENCE) -> None:
        """Wait for a condition while it runs. Raises AssertionError with its log."""

        def holds() -> Any:
            assert self.process.poll() is None, f"it has ended:\n{self.log}"
            return condition()

        until(holds, what, timeout, pause=0.03)

    def stop(self) -> int:
        """End it in good order, and return its status."""
        if self.process.poll() is None:
            self.signal()
        until(lambda: self.process.poll() is not None, "it ends", 3 * PATIENCE)
        return int(self.process.returncode)
