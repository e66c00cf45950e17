"""Figures about processes: CPU, memory, sockets. They come from /proc, so this works only on Linux."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")


def cpu(pids: Iterable[int]) -> float:
    """Return the CPU seconds that the processes have used so far."""
    return sum(_used(pid) for pid in pids)


def cpu_of_family(parent: int) -> float:
    """Return the CPU seconds of a process and its children so far, including children that have ended."""
    ended = sum(_times(parent)[2:]) / _TICK
    return ended + cpu([parent, *_children(parent)])


def _used(pid: int) -> float:
    # The scheduler counts nanoseconds, but no threads that have ended. The other count has these, and is rounded down to ticks of
    # 10 ms: the sum over two hundred sessions of PostgreSQL, each with a few milliseconds, would be off by a seventh.
    return max(sum(_times(pid)[:2]) / _TICK, _scheduled(pid))


def _scheduled(pid: int) -> float:
    total = 0.0
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):  # it has ended, or the kernel does not count
        return 0.0
    return total


def _times(pid: int) -> list[int]:
    """Return utime, stime, cutime and cstime; empty for a process that has ended."""
    return [int(value) for value in _stat(pid)[11:15]]


def _stat(pid: int | str) -> list[str]:
    try:
        # The second field is the program's name in brackets. The name may contain spaces and brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _children(parent: int) -> list[int]:
    pids = [name for name in os.listdir("/proc") if name.isdigit()]
    return [int(pid) for pid in pids if _stat(pid)[1:2] == [str(parent)]]


def memory(pids: Iterable[int]) -> int:
    """Return the memory of the processes in bytes, with a proportional share of shared pages (PSS)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def socket_memory(port: int) -> int | None:
    """Return the bytes that the kernel holds in the sockets of a server's port, or None if ``ss`` is not available."""
    try:
        output = subprocess.run(
            ["ss", "-tmnH", "state", "established", f"sport = :{port}"], capture_output=True, text=True, timeout=30
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    # The bytes that wait to be read (r) and to be acknowledged (w), as the kernel counts them: skmem:(r…,rb…,t…,tb…,f…,w…,…).
    return sum(int(size) for size in re.findall(r"\(r(\d+),", output) + re.findall(r",w(\d+),", output))


def describe() -> dict[str, Any]:
    """Return the facts about the machine that are shown with the results."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }
