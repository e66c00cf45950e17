"""Shared parts of the tests of the command line: commands that end by themselves, and ``tail``, which does not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import gevent

from pgbus_gevent.bus import Bus

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "pgbus_gevent"]
PATIENCE = 60.0
"""Seconds that anything here may take."""


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def environment(**variables: str) -> dict[str, str]:
    ours = ("PGBUS_", "PG", "DATABASE_URL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **variables}


class Cli:
    """Runs commands with a database and a data directory. ``run`` is for commands that end by themselves."""

    def __init__(self, data_dir: Path, database: str = "") -> None:
        self.variables = {"PGBUS_DATA_DIR": str(data_dir), "PGBUS_DATABASE_URL": database}
        self.patience = PATIENCE  # seconds

    def run(self, *arguments: str, stdin: bytes = b"", **variables: str) -> Ended:
        done = subprocess.run(
            [*PROGRAM, *arguments],
            input=stdin,
            capture_output=True,
            timeout=self.patience,
            cwd="/",
            env=environment(**{**self.variables, **variables}),
        )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *arguments: str, **more: Any) -> str:
        """Run a command that must succeed without a word on stderr, and return its output."""
        status, out, err = self.run(*arguments, **more)
        assert (status, err) == (0, "")
        return out

    def fails(self, status: int, *arguments: str, **more: Any) -> str:
        """Run a command that must fail without output, and return its only line on stderr."""
        ended = self.run(*arguments, **more)
        assert (ended.status, ended.out) == (status, ""), ended
        assert re.fullmatch(r"pgbus-gevent: [^\n]+\n", ended.err), ended.err
        return ended.err.removeprefix("pgbus-gevent: ").strip()


class Tail:
    """``tail`` in a separate process. Its output goes to ``out``; without one, to a pipe that :meth:`line` reads."""

    def __init__(self, cli: Cli, *arguments: str, out: int = subprocess.PIPE, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*PROGRAM, "tail", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            cwd="/",
            env=environment(**{**cli.variables, **variables}),
        )

    def line(self) -> str:
        """Return the next line of its output. Raises AssertionError if none comes."""
        return self._line(self.process.stdout, "output")

    def complaint(self) -> str:
        """Return the next line on its stderr."""
        return self._line(self.process.stderr, "stderr")

    def _line(self, file: Any, name: str) -> str:
        with gevent.Timeout(PATIENCE, AssertionError(f"no line on its {name} for {PATIENCE:g} s")):
            line = file.readline().decode()
        assert line.endswith("\n"), f"it ended its {name} with {line!r}"
        return str(line[:-1])

    def message(self) -> dict[str, Any]:
        """Return the next line as JSON, without the messages that :meth:`sync` sent."""
        while True:
            found: dict[str, Any] = json.loads(self.line())
            if found["event"] != "sync":
                return found

    def sync(self, bus: Bus, stream: str) -> None:
        """Return once it follows the stream. It must print JSON."""
        sender = gevent.spawn(self._call, bus, stream)
        try:
            assert json.loads(self.line())["event"] == "sync"
        finally:
            sender.kill()

    @staticmethod
    def _call(bus: Bus, stream: str) -> None:
        while True:
            bus.stream(stream).broadcast("", event="sync", ephemeral=True)
            gevent.sleep(0.1)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def end(self) -> Ended:
        """Wait for its end, and return the rest of its output."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return Ended(self.process.returncode, (out or b"").decode(), err.decode())

    def __enter__(self) -> Tail:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        for file in (self.process.stdout, self.process.stderr):
            if file is not None:
                file.close()
        self.process.wait(PATIENCE)
