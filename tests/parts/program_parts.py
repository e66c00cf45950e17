"""Programs as a user starts them: in separate processes, on a free port and a database of the tests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlencode

import gevent
from raw_http import Answer, ask
from support import free_port

from pgbus_gevent.testing.client import StreamClient

ROOT = Path(__file__).parents[2]
SECRET = "a secret of the tests"
PATIENCE = 20.0
TAG = re.compile(r'<pgbus-stream-source src="([^"]+)" since-id="(\d+)"(?: identity="[^"]+")?></pgbus-stream-source>')


def tag_in(page: str) -> tuple[str, int]:
    """Return the path and the watermark of the one tag in a page."""
    (found,) = TAG.findall(page)
    return found[0], int(found[1])


class Program:
    """A program that listens on :attr:`port`."""

    def __init__(self, arguments: list[str], database_url: str, cwd: Path, port: int | None, **env: str) -> None:
        self.port = port or free_port()
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PGBUS_", "DATABASE_"))}
        environ |= {
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "PGBUS_DATABASE_URL": database_url,
            "PGBUS_SECRET": SECRET,
            "PGBUS_GRACE": "3",
            "PORT": str(self.port),
            "PGBUS_PORT": str(self.port),
            **env,
        }
        self._log = cwd / f"log-{self.port}"
        with open(self._log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], cwd=cwd, env=environ, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def log(self) -> str:
        """Return its output so far, on stdout and stderr."""
        return self._log.read_text()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Answer:
        return ask(self.port, path)

    def head_status(self, path: str, **headers: str) -> int:
        """Return the status of a HEAD. For a stream, it is that of the GET."""
        return ask(self.port, path, "HEAD", **headers).status

    def post(self, path: str, **fields: str) -> Answer:
        return ask(self.port, path, "POST", urlencode(fields), Content_Type="application/x-www-form-urlencoded")

    def page(self, path: str = "/") -> str:
        """Return the text of a page, which must exist."""
        answer = self.get(path)
        assert answer.status == 200, (answer, self.log)
        return answer.body.decode()

    def watch(self, path: str, since: int | None = None) -> StreamClient:
        """Yield a connected client of a stream."""
        client = StreamClient(self.url, path, since=since)
        client.next("pgbus:connected", timeout=PATIENCE)
        return client

    def wait_ready(self) -> None:
        deadline = monotonic() + 3 * PATIENCE  # it may have to make a cluster of databases first
        while True:
            assert self.process.poll() is None, f"it ended with status {self.process.returncode}:\n{self.log}"
            assert monotonic() < deadline, f"it does not listen:\n{self.log}"
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                gevent.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 3 * PATIENCE) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it still runs {timeout:g} s after the signal:\n{self.log}") from None

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)


@contextmanager
def program(*arguments: str, database_url: str, cwd: Path, port: int | None = None, **env: Any) -> Iterator[Program]:
    """Run a program for a block, which begins when the program listens. Its output is shown if the block fails."""
    running = Program([*arguments], database_url, cwd, port, **env)
    try:
        running.wait_ready()
        yield running
    except BaseException:
        print(f"the program printed:\n{running.log[-4000:]}")
        raise
    finally:
        running.close()
