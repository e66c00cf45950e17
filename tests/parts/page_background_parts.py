"""Programs that a block of the documentation starts, and that run until the end of its page."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from time import monotonic

import gevent

START = 120.0
"""Seconds that a program may take until it listens."""


class Background:
    """A shell command in a process group of its own."""

    def __init__(self, name: str, command: str, folder: Path, environment: dict[str, str]) -> None:
        self.name = name
        self._closed = False
        number, self._log = tempfile.mkstemp(dir=folder, prefix="log-")
        with os.fdopen(number, "wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", command],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """Return what it has printed so far."""
        return Path(self._log).read_text(encoding="utf-8", errors="replace")

    def wait_for_port(self, port: int) -> None:
        """Wait until it accepts connections. Raises AssertionError if it ends, or does not listen in time."""
        deadline = monotonic() + START
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            status = self._process.poll()
            assert status is None, f"{self.name}: it ended with status {status}\n{self.output}"
            assert monotonic() < deadline, f"{self.name}: it does not listen\n{self.output}"
            gevent.sleep(0.02)

    def check(self) -> None:
        """Raise AssertionError if it has failed. It may still run, or have been ended by the next that serves."""
        status = self._process.poll()
        assert self._closed or not status, f"{self.name}: it ended with status {status}\n{self.output}"

    def close(self) -> None:
        """End its whole group. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for number, seconds in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 20.0)):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                break
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
