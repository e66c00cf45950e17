"""What is to be told of this process: the release, and what the kernel knows, as Prometheus's own libraries name it."""

from __future__ import annotations

import os
import resource
import sys
from functools import cache

from prometheus_client.core import Metric

from .families import counter, gauge

_DESCRIPTORS = "/proc/self/fd"


def families() -> list[Metric]:
    """CPU, memory and descriptors; what this system does not tell is left out."""
    cpu = os.times()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = float("inf") if soft == resource.RLIM_INFINITY else float(soft)
    return [
        counter("process_cpu_seconds", "CPU time, user and system, in seconds", cpu.user + cpu.system),
        gauge("process_resident_memory_bytes", "Resident memory in bytes", resident_bytes()),
        gauge("process_open_fds", "Open file descriptors", open_descriptors()),
        gauge("process_max_fds", "The most file descriptors that may be open", limit),
        gauge("process_start_time_seconds", "When the process began, in Unix seconds", _started_at(os.getpid())),
    ]


def release() -> str:
    """The version of the package; it is the package's own module that tells, which stands above all floors."""
    return str(sys.modules[__name__.partition(".")[0]].__version__)


def resident_bytes() -> float | None:
    """The resident memory in bytes; None where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return float(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return None


def open_descriptors() -> float | None:
    """How many file descriptors are open; None where the system does not tell."""
    try:
        # Linux 6.2 and later tell the number as the folder's size, which costs nothing; reading ten thousand names, every
        # few seconds, is a sixth of the CPU of ten thousand idle connections.
        told = os.stat(_DESCRIPTORS).st_size
        return float(told or len(os.listdir(_DESCRIPTORS)) - 1)  # less the one that reads the folder
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
