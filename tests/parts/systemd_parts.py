"""systemd as the first process of namespaces of its own, in a place, with no units but ours."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from place_parts import Place
from support import PATIENCE, until

GROUPS = Path("/sys/fs/cgroup")
PROGRAM = "/lib/systemd/systemd"

BOOT = """
set -e
group=$1
echo 0 >"$group/cgroup.procs"
exec unshare --pid --fork --kill-child --mount --cgroup --uts --ipc sh -ec '
  mount -t proc proc /proc
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  if [ "$1" = unified ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
  else
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd,xattr cgroup /sys/fs/cgroup/systemd
  fi
  mkdir -p /run/units
  for unit in basic sysinit sockets shutdown; do cp /lib/systemd/system/$unit.target /run/units; done
  export container=test SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/units
  exec /lib/systemd/systemd --system --log-target=console --show-status=no --unit=basic.target
' sh "$2"
"""


class Manager:
    """systemd. :meth:`close` ends it with all of its services."""

    def __init__(self, place: Place) -> None:
        unified = (GROUPS / "cgroup.controllers").exists()
        self._group = (GROUPS if unified else GROUPS / "systemd") / f"pgbus-test-{os.getpid()}"
        if not Path(PROGRAM).exists() or not os.access(self._group.parent, os.W_OK):
            pytest.skip("systemd, or a control group for it, is missing")
        self._group.mkdir()
        self._place = place
        self.running = place.start(
            "systemd", "sh", "-c", BOOT, "sh", str(self._group), "unified" if unified else "legacy"
        )
        self.running.until(lambda: self._first() and self.control("is-system-running") != "", "systemd runs")

    def _first(self) -> int:
        """Return the id of its first process outside, or 0."""
        children: list[Any] = psutil.Process(self.running.process.pid).children()
        return next((child.pid for child in children if child.name() == "systemd"), 0)

    def control(self, *words: str) -> str:
        """Return what systemctl says."""
        command = ["nsenter", "-t", str(self._first()), "--mount", "--pid", "--net", "systemctl", "--no-pager", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE)
        return (done.stdout + (done.stderr if words[0] in ("start", "restart", "daemon-reload") else "")).strip()

    def property(self, name: str, unit: str = "pgbus.service") -> str:
        return self.control("show", "--value", "-p", name, unit)

    def close(self) -> None:
        if self.running.process.poll() is None:
            self.running.process.kill()
        self.running.process.wait(PATIENCE)

        def removed() -> bool:
            with suppress(OSError):
                for folder in sorted(self._group.rglob("*"), reverse=True):
                    if folder.is_dir():
                        folder.rmdir()
                self._group.rmdir()
            return not self._group.exists()

        until(removed, "its groups are empty")
