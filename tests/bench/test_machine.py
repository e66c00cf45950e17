"""The CPU seconds of processes, as the benchmark counts them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import process_time

from pgbus_gevent.bench import machine

SPENDS = """
import sys, time
for line in sys.stdin:
    end = time.process_time() + float(line)
    while time.process_time() < end:
        pass
    print(time.process_time(), flush=True)
"""


@contextmanager
def spender() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SPENDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def spend(process: subprocess.Popen[str], seconds: float) -> float:
    """Have the process spend CPU, and return what it has spent so far by its own count."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def test_it_counts_less_than_a_tick() -> None:
    shares = []
    with spender() as process:
        for _ in range(15):
            began = spend(process, 0.001), machine.cpu([process.pid])
            ended = spend(process, 0.005), machine.cpu([process.pid])
            shares.append((ended[1] - began[1]) / (ended[0] - began[0]))
    # The process also spends CPU before and after it looks at its own count, sometimes much. In ticks, it would be none or twice
    # as much.
    assert 0.7 < median(shares) < 1.3


def test_a_family_has_the_children_that_live_and_those_that_have_ended() -> None:
    before = machine.cpu_of_family(os.getpid()) - process_time()
    with spender() as process:
        spend(process, 0.2)
        living = machine.cpu_of_family(os.getpid()) - process_time()
    ended = machine.cpu_of_family(os.getpid()) - process_time()
    assert living - before >= 0.15
    assert ended - before >= 0.15


def test_threads_count_also_after_their_end() -> None:
    def work() -> None:
        end = process_time() + 0.2
        while process_time() < end:
            pass

    before = machine.cpu([os.getpid()])
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert machine.cpu([os.getpid()]) - before >= 0.15


def test_a_process_that_has_ended_counts_nothing() -> None:
    with spender() as process:
        pid = process.pid
    assert machine.cpu([pid]) == 0.0
