"""Faults of the primary, and of the way to it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psycopg2
import psycopg2.errors

from .faults import Scene, Skipped, fault

_TAKING = 30.0
"""Seconds within which all connections must be taken."""


@fault
def backends_terminated(scene: Scene) -> None:
    """Every session of workers and publishers is terminated."""
    scene.parts.primary.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
    )


@fault
def listen_terminated(scene: Scene) -> None:
    """The sessions that LISTEN are terminated."""
    scene.parts.primary.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'pgbus-listen%'"
    )


@fault
def postgres_fast(scene: Scene) -> None:
    """PostgreSQL is restarted in the mode "fast"."""
    scene.parts.primary.stop(signal.SIGINT)
    scene.parts.primary.start()


@fault
def postgres_immediate(scene: Scene) -> None:
    """PostgreSQL is restarted in the mode "immediate", which is a crash with recovery."""
    scene.parts.primary.stop(signal.SIGQUIT)
    scene.parts.primary.start()


@fault
def backend_killed(scene: Scene) -> None:
    """One backend of PostgreSQL gets SIGKILL, so all others end too, and the server recovers."""
    backends = scene.parts.primary.backends()
    if not backends:
        raise Skipped("there is no backend")
    os.kill(scene.chance.choice(backends), signal.SIGKILL)
    time.sleep(0.5)  # the server needs a moment to notice


@fault
def postgres_away(scene: Scene) -> None:
    """PostgreSQL is stopped, and started after the outage."""
    scene.parts.primary.stop(signal.SIGINT)
    scene.wait()
    scene.parts.primary.start()


@fault
def postgres_frozen(scene: Scene) -> None:
    """All processes of PostgreSQL are suspended (SIGSTOP), so that sessions hang and nothing is refused."""
    with scene.frozen(scene.parts.primary.part):
        scene.wait()


@fault
def postgres_black_hole(scene: Scene) -> None:
    """The way from the workers to PostgreSQL takes bytes and passes none on."""
    with scene.held("database"):
        scene.wait()


@fault
def everything_black_hole(scene: Scene) -> None:
    """The ways from workers and publishers to PostgreSQL take bytes and pass none on."""
    with scene.held("database", "publishers"):
        scene.wait()


@fault
def postgres_slow(scene: Scene) -> None:
    """Every byte to and from PostgreSQL is delayed by 250 ms, so that a round trip takes 500 ms longer."""
    lines = scene.parts.lines
    for line in ("database", "publishers"):
        lines.slow(line, delay=0.25)
    scene.wait()
    for line in ("database", "publishers"):
        lines.slow(line)


@fault
def postgres_cut(scene: Scene) -> None:
    """Every connection to PostgreSQL is reset."""
    for line in ("database", "publishers"):
        scene.parts.lines.cut(line)


@fault
def read_only(scene: Scene) -> None:
    """New transactions are read-only (default_transaction_read_only), as on a server that is being moved."""
    primary = scene.parts.primary
    primary.sql("alter system set default_transaction_read_only = on")
    primary.sql("select pg_reload_conf()")
    scene.wait()
    primary.sql("alter system reset default_transaction_read_only")
    primary.sql("select pg_reload_conf()")


@fault
def connections_exhausted(scene: Scene) -> None:
    """Other sessions take all of PostgreSQL's connections, after those of the workers were terminated."""
    primary, taken = scene.parts.primary, []
    backends_terminated(scene)
    ending, is_full = time.monotonic() + _TAKING, False
    try:
        while time.monotonic() < ending:
            try:
                taken.append(primary.connect(application_name="chaos-crowd"))
            except psycopg2.Error:
                if not is_full:
                    is_full, ending = True, time.monotonic() + scene.outage
                time.sleep(0.1)
    finally:
        for connection in taken:
            connection.close()
    if not is_full:
        raise Skipped(f"not all connections could be taken within {_TAKING:g} s")


@fault
def notify_queue_full(scene: Scene) -> None:
    """A session that listens in an open transaction blocks the queue of notifications, and it is filled."""
    primary = scene.parts.primary
    if not primary.sql("select 1 from pg_settings where name = 'max_notify_queue_pages'"):
        raise Skipped("before version 17 of PostgreSQL, the queue is too large")
    blocker = primary.connect(application_name="chaos-blocker")
    filler = primary.connect(application_name="chaos-filler")
    try:
        with blocker.cursor() as cursor:
            cursor.execute("listen chaos_blocker")
            cursor.execute("begin")
            cursor.execute("select 1")
        if not _fill_the_queue(filler):
            raise Skipped("the queue could not be filled")
        scene.wait()
    finally:
        blocker.close()
        filler.close()


def _fill_the_queue(filler: Any) -> bool:
    """Notify until that is an error, which is when nothing fits into the queue any more."""
    ending = time.monotonic() + 10
    with filler.cursor() as cursor:
        while time.monotonic() < ending:
            try:
                cursor.execute("select pg_notify('chaos_filler', i || repeat('x', 7000)) from generate_series(1, 8) i")
            except psycopg2.errors.ProgramLimitExceeded:
                return True
    return False


@fault
def table_locked(scene: Scene) -> None:
    """A transaction holds an exclusive lock on the table of messages, as a migration might."""
    _hold(scene, "begin; lock table pgbus.messages in access exclusive mode")


@fault
def locks_squatted(scene: Scene) -> None:
    """A session holds the advisory locks of the doorbell, without a reason."""
    _hold(scene, "select pg_advisory_lock(1885823596, bell) from generate_series(0, 1) bell")


def _hold(scene: Scene, statement: str) -> None:
    """Take a lock in a session, which keeps it until it ends."""
    session = scene.parts.primary.connect(application_name="chaos-locker")
    try:
        with session.cursor() as cursor:
            cursor.execute(statement)
            scene.wait()
    finally:
        session.close()


@fault
def channels_changed(scene: Scene) -> None:
    """The names of the channels are changed (pgbus.change_channels), as after a leak."""
    scene.parts.primary.sql("select pgbus.change_channels()")


@fault
def sequence_set_back(scene: Scene) -> None:
    """The sequence of the ids is set back by a thousand, as by a dump that was restored in part."""
    scene.parts.primary.sql("select setval('pgbus.message_ids', last_value - 1000) from pgbus.message_ids")
