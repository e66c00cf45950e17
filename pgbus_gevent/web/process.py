"""Facts about this process: the release, and CPU, memory and descriptors under the names that Prometheus's libraries use."""

from __future__ import annotations

import os
import resource
import sys
from functools import cache
from typing import Any
from weakref import WeakSet

from prometheus_client.core import Metric

from .families import counter, gauge

doors: WeakSet[Any] = WeakSet()
"""The servers of this process that are ours; a server adds itself. Each has a ``room`` with connections without a request."""

_DESCRIPTORS = "/proc/self/fd"


def families() -> list[Metric]:
    """CPU, memory and descriptors, as far as this system reports them."""
    cpu = os.times()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = float("inf") if soft == resource.RLIM_INFINITY else float(soft)
    rooms = [door.room for door in doors]
    return [
        gauge("pgbus_waiting_connections", "Connections of our server without a request", sum(map(len, rooms))),
        counter(
            "pgbus_waiting_connections_closed",
            "Connections without a request that were closed because there were too many",
            sum(room.closed for room in rooms),
        ),
        counter("process_cpu_seconds", "CPU time, user and system, in seconds", cpu.user + cpu.system),
        gauge("process_resident_memory_bytes", "Resident memory in bytes", resident_bytes()),
        gauge("process_open_fds", "Open file descriptors", open_descriptors()),
        gauge("process_max_fds", "The most file descriptors that may be open", limit),
        gauge("process_start_time_seconds", "When the process began, in Unix seconds", _started_at(os.getpid())),
    ]


def release() -> str:
    """The version of the package, read from its module, which no lower layer may import."""
    return str(sys.modules[__name__.partition(".")[0]].__version__)


def resident_bytes() -> float | None:
    """The resident memory in bytes; None if the system does not report it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return float(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return None


def open_descriptors() -> float | None:
    """How many file descriptors are open; None if the system does not report it."""
    try:
        # Linux 6.2 and later report the number as the size of the folder, which costs nothing. Reading ten thousand names every
        # few seconds takes a sixth of the CPU that ten thousand idle connections take.
        size = os.stat(_DESCRIPTORS).st_size
        return float(size or len(os.listdir(_DESCRIPTORS)) - 1)  # without the one that reads the folder
    except OSError:
        return None


@cache
def _started_at(pid: int) -> float | None:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            ticks = float(file.read().rpartition(")")[2].split()[19])
        with open("/proc/stat", encoding="ascii") as file:
            (boot,) = (float(line.split()[1]) for line in file if line.startswith("btime "))
    except (OSError, ValueError):
        return None
    return boot + ticks / os.sysconf("SC_CLK_TCK")
