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
    return sum(sum(_times(pid)[:2]) for pid in pids) / _TICK


def cpu_of_family(parent: int) -> float:
    """Return the CPU seconds of a process and its children so far, including children that have ended."""
    children = sum(sum(_times(pid)[:2]) for pid in _children(parent))
    return (sum(_times(parent)) + children) / _TICK


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
