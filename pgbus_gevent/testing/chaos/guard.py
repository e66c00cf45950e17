"""The guard of a run: a program that waits for the end of the conductor, and then kills and removes all that is left of the run.

``python -m pgbus_gevent.testing.chaos.guard FOLDER``. The conductor holds the other end of its stdin, which the kernel closes even
if the conductor is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from .processes import MARK

_ROUNDS = 100  # each takes a tenth of a second


def members(folder: Path) -> list[int]:
    """Return the ids of all processes that have the mark of the run of ``folder``, or work in it, except this one."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            marked = mark in Path("/proc", entry, "environ").read_bytes().split(b"\0")
            # A backend of PostgreSQL overwrites its environment with its title, but works in its data directory.
            inside = Path(os.readlink(f"/proc/{entry}/cwd")).is_relative_to(folder)
        except OSError:
            continue  # it has ended, or belongs to somebody else
        if marked or inside:
            found.append(int(entry))
    return found


def kill_members(folder: Path) -> None:
    """Kill every process of the run, and those that it starts meanwhile."""
    for _ in range(_ROUNDS):
        left = members(folder)
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.1)


def unmount(folder: Path) -> None:
    """Unmount every file system in the folder."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        place = line.split()[1]
        if Path(place).is_relative_to(folder):
            subprocess.run(["umount", "--lazy", place], check=False, timeout=20)


def main() -> None:
    """Wait for the end of stdin, and clear up."""
    folder, keep = Path(sys.argv[1]), "--keep" in sys.argv
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C and the end of the terminal are the conductor's
    sys.stdin.buffer.read()
    kill_members(folder)
    unmount(folder)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
