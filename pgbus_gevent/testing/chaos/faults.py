"""The register of faults, and those of PostgreSQL.

A fault is a function with a docstring that says in one line what is broken. It breaks it, waits, and puts it right. The modules
``faults_*`` have the others.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psycopg2

from .judge import Row
from .ledger import row_of
from .parts import Parts
from .postgres import Cluster
from .processes import Part, until

FAULTS: dict[str, Fault] = {}
"""All faults by name, in the order in which they are defined."""


class Skipped(Exception):
    """A fault cannot be brought about here. The message says why."""


class Scene:
    """What a fault may use: the parts, a source of chance, and for how many seconds an outage lasts."""

    def __init__(self, parts: Parts, chance: random.Random, outage: float) -> None:
        self.parts, self.chance, self.outage = parts, chance, outage
        self.programs: dict[str, Part] = {}
        """The programs of the clients and the publishers, by name."""
        self.clients = 0
        self.losses: list[float] = []
        """When a server took committed messages along."""
        self.taken: list[tuple[str, Row]] = []
        """These messages, with their streams."""

    def wait(self) -> None:
        """Wait while it is broken."""
        time.sleep(self.outage)


class Fault(NamedTuple):
    """A fault: ``bring`` breaks something, and puts it right."""

    name: str
    bring: Callable[[Scene], None]

    @property
    def description(self) -> str:
        """What it does, in one line."""
        return " ".join((self.bring.__doc__ or "").split())


def fault(function: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """Register a function as a fault, under its own name."""
    name = function.__name__.strip("_").replace("_", "-")
    FAULTS[name] = Fault(name, function)
    return function


# PostgreSQL


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


@fault
def postgres_away(scene: Scene) -> None:
    """PostgreSQL is stopped, and started after the outage."""
    scene.parts.primary.stop(signal.SIGINT)
    scene.wait()
    scene.parts.primary.start()


@fault
def postgres_frozen(scene: Scene) -> None:
    """All processes of PostgreSQL are suspended (SIGSTOP), so that sessions hang and nothing is refused."""
    part = scene.parts.primary.part
    part.send_all(signal.SIGSTOP)
    try:
        scene.wait()
    finally:
        part.send_all(signal.SIGCONT)


@fault
def postgres_black_hole(scene: Scene) -> None:
    """The way from the workers to PostgreSQL takes bytes and passes none on."""
    with _held(scene, "database"):
        scene.wait()


@fault
def everything_black_hole(scene: Scene) -> None:
    """The ways from workers and publishers to PostgreSQL take bytes and pass none on."""
    with _held(scene, "database"), _held(scene, "publishers"):
        scene.wait()


@contextmanager
def _held(scene: Scene, line: str) -> Iterator[None]:
    scene.parts.lines.hold(line, True)
    try:
        yield
    finally:
        scene.parts.lines.hold(line, False)


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
    ending = time.monotonic() + scene.outage
    try:
        while time.monotonic() < ending:
            try:
                taken.append(primary.connect(application_name="chaos-crowd"))
            except psycopg2.Error:
                time.sleep(0.1)
    finally:
        for connection in taken:
            connection.close()


@fault
def notify_queue_full(scene: Scene) -> None:
    """A session that listens in an open transaction blocks the queue of notifications, and it is filled."""
    primary = scene.parts.primary
    blocker = primary.connect(application_name="chaos-blocker")
    filler = primary.connect(application_name="chaos-filler")
    try:
        with blocker.cursor() as cursor:
            cursor.execute("listen chaos_blocker")
            cursor.execute("begin")
            cursor.execute("select 1")
        with filler.cursor() as cursor:
            ending = time.monotonic() + 10
            while time.monotonic() < ending:
                cursor.execute("select pg_notification_queue_usage()")
                if cursor.fetchone()[0] > 0.9:
                    break
                try:
                    cursor.execute(
                        "select pg_notify('chaos_filler', i || repeat('x', 7000)) from generate_series(1, 8) i"
                    )
                except psycopg2.Error:
                    break  # it is full
        scene.wait()
    finally:
        blocker.close()
        filler.close()


@fault
def standby_promoted(scene: Scene) -> None:
    """The primary is stopped, and the standby, which has everything, takes its place. A new standby is made."""
    parts = scene.parts
    old, new = parts.primary, parts.standby
    if new is None:
        raise Skipped("there is no standby")
    until(lambda: old.caught_up(new), 30, "the standby has not what the primary has")
    old.stop(signal.SIGINT)  # in this mode, a primary ends only when its standbys have everything
    new.promote()
    parts.lead_to(new)
    parts.add_standby()


@fault
def standby_promoted_with_loss(scene: Scene) -> None:
    """The primary is killed, and a standby takes its place that lacks the last commits. A new standby is made."""
    parts = scene.parts
    old, new = parts.primary, parts.standby
    if new is None:
        raise Skipped("there is no standby")
    until(lambda: old.caught_up(new), 30, "the standby has not what the primary has")
    new.cut_replication()
    time.sleep(min(scene.outage, 3.0))
    old.part.kill()
    scene.losses.append(time.monotonic())
    new.promote()
    parts.lead_to(new)
    # The former primary is asked, at an address that nobody else knows, what it has that the new one lacks.
    old.start()
    scene.taken += _only_in(old, new)
    old.stop(signal.SIGQUIT)
    parts.add_standby()


def _only_in(old: Cluster, new: Cluster) -> list[tuple[str, Row]]:
    recent = (
        "select stream, msg_id, data, visible_to, exclude from pgbus.messages"
        " where created_at > clock_timestamp() - interval '5 minutes'"
    )
    kept = {row[:2] for row in new.sql("select stream, msg_id from pgbus.messages")}
    return [(row[0], row_of(*row[1:])) for row in old.sql(recent) if row[:2] not in kept]
