"""Faults of the standby, and failovers to it."""

from __future__ import annotations

import signal
import time

from .faults import Scene, Skipped, fault
from .judge import Loss, Row
from .ledger import row_of
from .postgres import Cluster
from .processes import until
from .publishing import SHORT


@fault
def standby_promoted(scene: Scene) -> None:
    """The primary is stopped, and the standby, which has everything, takes its place. A new standby is made."""
    parts = scene.parts
    old, new = parts.primary, _standby(scene)
    until(lambda: old.caught_up(new), 90, "the standby has not what the primary has")
    old.stop(signal.SIGINT)  # in this mode, a primary ends only when its standbys have everything
    new.promote()
    parts.lead_to(new)
    parts.remove(old)
    parts.add_standby()


@fault
def standby_promoted_with_loss(scene: Scene) -> None:
    """The primary is killed, and a standby takes its place that lacks the last commits. A new standby is made."""
    parts = scene.parts
    old, new = parts.primary, _standby(scene)
    until(lambda: old.caught_up(new), 90, "the standby has not what the primary has")
    new.cut_replication()
    time.sleep(min(scene.outage, 3.0))
    old.part.kill()
    ended = time.monotonic()
    new.promote()
    parts.lead_to(new)
    # The former primary is asked, at an address that nobody else knows, what it has that the new one lacks.
    old.start()
    scene.losses.append(Loss(ended, _only_in(old, new)))
    old.stop(signal.SIGQUIT)
    parts.remove(old)
    parts.add_standby()


def _only_in(old: Cluster, new: Cluster) -> list[tuple[str, Row]]:
    recent = (
        "select stream, msg_id, data, visible_to, exclude from pgbus.messages"
        " where created_at > clock_timestamp() - interval '5 minutes'"
    )
    # Messages that are removed after seconds may be in neither table any more, but clients were sent them. The ledger has them.
    noted = "select stream, msg_id, message from chaos.ledger where stream = any(%s) and msg_id is not null"
    arrived = set(new.sql(noted, list(SHORT)))
    kept = {row[:2] for row in [*new.sql("select stream, msg_id from pgbus.messages"), *arrived]}
    taken = [(row[0], row_of(*row[1:])) for row in old.sql(recent) if row[:2] not in kept]
    known = {(stream, row.id) for stream, row in taken}
    gone = [row for row in old.sql(noted, list(SHORT)) if row not in arrived and row[:2] not in known]
    return taken + [(stream, Row(id, message)) for stream, id, message in gone]


@fault
def standby_killed(scene: Scene) -> None:
    """The standby is killed, and started again after the outage."""
    standby = _standby(scene)
    standby.part.kill()
    scene.wait()
    standby.start()


@fault
def standby_frozen(scene: Scene) -> None:
    """All processes of the standby are suspended (SIGSTOP)."""
    with scene.frozen(_standby(scene).part):
        scene.wait()


@fault
def standby_late(scene: Scene) -> None:
    """The standby's replay is paused. Meanwhile the worker that reads from it is killed, so that clients come back to a new one."""
    standby = _standby(scene)
    standby.sql("select pg_wal_replay_pause()")
    try:
        time.sleep(scene.outage / 2)
        reader = scene.parts.workers[1]
        reader.part.kill()
        reader.part.start()
        until(reader.ready, 60, "the worker that reads from the standby is not ready")
        time.sleep(scene.outage / 2)
    finally:
        standby.sql("select pg_wal_replay_resume()")


@fault
def standby_black_hole(scene: Scene) -> None:
    """The way from the workers to the standby takes bytes and passes none on."""
    with scene.held("replica"):
        scene.wait()


def _standby(scene: Scene) -> Cluster:
    if scene.parts.standby is None:
        raise Skipped("there is no standby")
    return scene.parts.standby
