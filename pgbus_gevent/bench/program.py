"""Processes that take commands as lines of JSON on stdin and answer with lines of JSON on stdout.

The parent uses :class:`Program`; the process itself uses :func:`commands` and :func:`answer`. The process ends when its stdin
ends, so nothing is left running if the parent is killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent

from ..errors import PgbusError

ROOT = Path(__file__).resolve().parent.parent.parent
"""The directory that contains the package; it is put on the PYTHONPATH of the programs."""

STARTING = 60.0
"""The most seconds until a program's first answer."""

_ENDING = 10.0


class BenchFailed(PgbusError):
    """A process of the benchmark failed, or did not answer."""


class Program:
    """A running program. ``name`` is for messages. Calls let other greenlets run, and raise :class:`BenchFailed` after ``timeout``
    seconds."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C must reach only the benchmark, which then ends the programs in order
        )
        self.pid = self._process.pid

    @classmethod
    def module(cls, name: str, *arguments: str) -> Program:
        """Run a module of this folder in another Python process."""
        return cls(name, [sys.executable, "-m", f"{__package__}.{name}", *arguments])

    def call(self, timeout: float, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.send(**command)
        return self.receive(timeout)

    def send(self, **command: Any) -> None:
        """Send a command."""
        try:
            _stdin(self._process).write(json.dumps(command) + "\n")
        except OSError:
            pass  # the program has ended; receive() reports that

    def receive(self, timeout: float) -> dict[str, Any]:
        """Wait for the next answer."""
        line = None
        with gevent.Timeout(timeout, False):  # type: ignore[arg-type]  # False: end the block without an exception
            line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            why = f"gave no answer within {timeout:g} s" if line is None else "has ended"
            raise BenchFailed(f"the benchmark's process {self.name!r} {why}; see its messages on stderr")
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            raise BenchFailed(
                f"the benchmark's process {self.name!r} answered {line[:200]!r}, which is not JSON"
            ) from None
        if "error" in found:
            raise BenchFailed(f"the benchmark's process {self.name!r} failed: {found['error']}")
        return found

    def end(self) -> None:
        """Tell the program to end, by closing its stdin. It does not wait for the end."""
        if self._process.stdin and not self._process.stdin.closed:
            try:
                self._process.stdin.close()
            except OSError:
                pass  # the program has ended, and the buffered commands with it

    def close(self) -> None:
        """End the program, and kill it if closing its stdin is not enough. Idempotent."""
        self.end()
        for end in (self._process.terminate, self._process.kill):
            try:
                self._process.wait(_ENDING)
                break
            except subprocess.TimeoutExpired:
                end()
        else:
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


def _stdin(process: subprocess.Popen[str]) -> Any:
    return process.stdin


# in the program


def commands(source: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the commands until the end of the input, by default stdin."""
    for line in sys.stdin if source is None else source:
        yield json.loads(line)


def answer(**found: Any) -> None:
    """Answer a command."""
    print(json.dumps(found), flush=True)


def serve(doings: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Run the function that each command names in ``do``, and answer with its result, until stdin ends."""
    for command in commands():
        try:
            answer(**doings[command.pop("do")](**command))
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")
