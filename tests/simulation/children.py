"""The processes that run simulations, each for a thread of a pool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from types import TracebackType
from typing import Any, NamedTuple

from .history import History

Command = dict[str, Any]


class Result(NamedTuple):
    """What came of a simulation. ``failure`` is the kind of the promise that was broken, a text, and the time in seconds."""

    command: Command
    seed: int
    failure: tuple[str, str, float] | None
    figures: dict[str, Any]
    steps: int
    took: float


class Children:
    """``jobs`` processes. Use it as a context manager; they end with it."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._pool = ThreadPoolExecutor(jobs)
        self._own = threading.local()
        self._all: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._all:
            child.kill()
        self._pool.shutdown(cancel_futures=True)
        for child in self._all:
            child.communicate()

    def _ask(self, command: Command) -> Result:
        child: subprocess.Popen[str] | None = getattr(self._own, "child", None)
        if child is None:
            # The order of sets of texts depends on the seed of their hashes.
            child = self._own.child = subprocess.Popen(
                [sys.executable, "-m", "tests.simulation.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
            self._all.append(child)
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps(command) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that ran {command} has ended, with status {child.wait(5)}")
        answer = json.loads(line)
        failure = answer.pop("failure")
        return Result(command, failure=None if failure is None else tuple(failure), **answer)

    def run(self, history: History, fault: str = "") -> Result:
        """Run one history."""
        return self._pool.submit(self._ask, {"history": vars(history), "planted": fault}).result()

    def results(self, commands: Iterable[Command]) -> Iterator[Result]:
        """Run simulations side by side, and yield each result as it comes. Ends early if it is closed."""
        left = iter(commands)
        running: set[Future[Result]] = {self._pool.submit(self._ask, each) for each in islice(left, self._jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()
                running |= {self._pool.submit(self._ask, command) for command in islice(left, 1)}
