"""Faults of the machine: its disk and its clock."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psycopg2

from .faults import Scene, Skipped, fault
from .postgres import Cluster
from .processes import ChaosFailed, until


@fault
def disk_full(scene: Scene) -> None:
    """The file system of the primary's data has no room any more. PostgreSQL ends, and is started when there is room."""
    primary = scene.parts.primary
    disk = primary.data.parent
    if not os.path.ismount(disk):
        raise Skipped("no file system could be mounted for the data, which needs root")
    used = os.statvfs(disk)
    kilobytes = (used.f_blocks - used.f_bfree) * used.f_frsize // 1024 + 64
    _resize(disk, f"{kilobytes}k")
    try:
        _use_up_the_log(primary)
        ending = time.monotonic() + 10
        while primary.answers():
            if time.monotonic() > ending:
                raise Skipped("PostgreSQL needs no more room")
            time.sleep(0.1)
        scene.wait()
    finally:
        _resize(disk, scene.parts.disk_size)


def _use_up_the_log(primary: Cluster) -> None:
    """Begin new segments of the log until there is no file left that can be used again. PostgreSQL ends then."""
    try:
        for _ in range(60):
            primary.sql("select pg_logical_emit_message(false, 'chaos', 'x'), pg_switch_wal()")
    except psycopg2.Error:
        pass  # it has ended


def _resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True, timeout=20)


@fault
def worker_clock_back(scene: Scene) -> None:
    """The server with one worker is started again with its wall clock an hour behind, and later with the right one."""
    worker = scene.parts.workers[-1]  # under faketime, time.sleep() fails in Python 3.11, which gunicorn's master uses
    clock = _an_hour_ago()
    for extra in (clock, {}):
        worker.part.stop(signal.SIGTERM, 30.0)
        worker.part.start(extra)
        until(worker.ready, 120, f"the server at {worker.host} is not ready")
        if extra:
            _check_clock(worker.clock())
            scene.wait()


@fault
def postgres_clock_back(scene: Scene) -> None:
    """PostgreSQL is started again with its wall clock an hour behind, and later with the right one."""
    primary = scene.parts.primary
    clock = _an_hour_ago()
    for extra in (clock, {}):
        primary.stop(signal.SIGINT)
        primary.start(extra)
        if extra:
            ((now,),) = primary.sql("select extract(epoch from clock_timestamp())::float8")
            _check_clock(now)
            scene.wait()


def _check_clock(now: float) -> None:
    """Check that a part takes the time for an hour ago. If not, faketime has no effect on it."""
    if now > time.time() - 3000:
        raise ChaosFailed("faketime is installed, and has no effect")


def _an_hour_ago() -> dict[str, str]:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        raise Skipped("faketime is not installed")
    # The monotonic clock stays as it is, as it does if somebody sets the wall clock.
    return {"LD_PRELOAD": str(found[0]), "FAKETIME": "-1h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
