"""Processes that take commands as lines of JSON on stdin and answer with lines of JSON on stdout.

:class:`Program` is the side of who starts one, :func:`commands` and :func:`answer` are the program's. It ends when its stdin
does, so nothing stays behind when the one who started it is gone, however it went.
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
"""Where the package is, for processes that have to find it too."""

STARTING = 60.0
"""Seconds that a program may take until its first answer."""

_ENDING = 10.0


class BenchFailed(PgbusError):
    """A process of the benchmark did not do what it was to do."""


class Program:
    """A running program; ``name`` is for messages. The calls give way, and raise :class:`BenchFailed` after ``timeout`` seconds."""

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
            start_new_session=True,  # so that Ctrl-C is for the benchmark alone, which then ends them in order
        )
        self.pid = self._process.pid

    @classmethod
    def module(cls, name: str, *arguments: str) -> Program:
        """The module of this package, in a Python of its own."""
        return cls(name, [sys.executable, "-m", f"{__package__}.{name}", *arguments])

    def call(self, timeout: float, **command: Any) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        self.send(**command)
        return self.receive(timeout)

    def send(self, **command: Any) -> None:
        """Give a command."""
        try:
            _stdin(self._process).write(json.dumps(command) + "\n")
        except OSError:
            pass  # it has ended, which the missing answer tells

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next answer."""
        line = None
        with gevent.Timeout(timeout, False):  # type: ignore[arg-type]  # False: end the block without an exception
            line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            why = f"gave no answer within {timeout:g} s" if line is None else "has ended"
            raise BenchFailed(f"the benchmark's process {self.name!r} {why}; what it said on stderr tells more")
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            raise BenchFailed(f"the benchmark's process {self.name!r} said {line[:200]!r}") from None
        if "error" in found:
            raise BenchFailed(f"the benchmark's process {self.name!r} failed: {found['error']}")
        return found

    def close(self) -> None:
        """End it: by the end of its stdin, or else by force. May be called again."""
        if self._process.stdin and not self._process.stdin.closed:
            try:
                self._process.stdin.close()
            except OSError:
                pass  # what was still to be written to it is of no use any more
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


# the program's side


def commands(source: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
    """The commands, until there are no more."""
    for line in sys.stdin if source is None else source:
        yield json.loads(line)


def answer(**found: Any) -> None:
    """Answer one."""
    print(json.dumps(found), flush=True)


def serve(doings: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Do what is asked for, ``do`` being its name, until there is nothing more to do."""
    for command in commands():
        try:
            answer(**doings[command.pop("do")](**command))
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")
