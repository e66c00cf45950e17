"""The processes that run simulations, each for a thread of a pool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from types import TracebackType
from typing import Any, NamedTuple

from .history import History

Command = dict[str, Any]


class Result(NamedTuple):
    """What came of a simulation. ``failure`` is the kind of the promise that was broken, a text, and the time in seconds.

    ``given_up`` says why the simulator could not run the history to its end, so that it says nothing about the product.
    """

    command: Command
    seed: int
    failure: tuple[str, str, float] | None
    figures: dict[str, Any]
    steps: int
    took: float
    given_up: str | None = None


class Children:
    """``jobs`` processes. Use it as a context manager; they end with it.

    A process that ends, or needs more than ``patience`` seconds for one history, is replaced, and the history is given up.
    """

    def __init__(self, jobs: int, *, patience: float = 150.0) -> None:
        self._jobs = jobs
        self._patience = patience
        self._pool = ThreadPoolExecutor(jobs)
        self._own = threading.local()
        self.processes: list[subprocess.Popen[str]] = []
        """All that were started, the ones that have ended too."""

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self.processes:
            child.kill()
        self._pool.shutdown(cancel_futures=True)
        for child in self.processes:
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
            self.processes.append(child)
        assert child.stdin is not None and child.stdout is not None
        began = time.monotonic()
        watch = threading.Timer(self._patience, child.kill)
        watch.start()
        try:
            child.stdin.write(json.dumps(command) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        if not line:
            self._own.child = None
            seed, took = command.get("seed") or command["history"]["seed"], time.monotonic() - began
            why = f"its process ended after {took:.0f} s, with status {child.wait(5)}"
            return Result(command, seed, None, {}, 0, took, why)
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
