"""Faults of the workers and of the pooler."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time

from .faults import Scene, Skipped, fault
from .parts import Worker
from .processes import until

_STARTING = 120.0


def _some(scene: Scene) -> Worker:
    return scene.chance.choice(scene.parts.workers)


def _started(worker: Worker) -> None:
    if not worker.part.running:
        worker.part.start()
    until(worker.ready, _STARTING, f"the server at {worker.host} is not ready")


@fault
def worker_killed(scene: Scene) -> None:
    """One worker process gets SIGKILL. Its server forks another one, or is started again."""
    worker = _some(scene)
    os.kill(scene.chance.choice(worker.processes), signal.SIGKILL)
    time.sleep(1.0)
    _started(worker)


@fault
def server_killed(scene: Scene) -> None:
    """One server is killed with all of its workers, and started again after half of the outage."""
    worker = _some(scene)
    worker.part.kill()
    time.sleep(scene.outage / 2)
    _started(worker)


@fault
def all_servers_killed(scene: Scene) -> None:
    """All servers are killed at once, and started again."""
    for worker in scene.parts.workers:
        worker.part.kill()
    for worker in scene.parts.workers:
        worker.part.start()
    for worker in scene.parts.workers:
        _started(worker)


@fault
def worker_frozen(scene: Scene) -> None:
    """One worker process is suspended (SIGSTOP)."""
    pid = scene.chance.choice(_some(scene).processes)
    os.kill(pid, signal.SIGSTOP)
    try:
        scene.wait()
    finally:
        os.kill(pid, signal.SIGCONT)


@fault
def server_frozen(scene: Scene) -> None:
    """All processes of one server are suspended (SIGSTOP)."""
    with scene.frozen(_some(scene).part):
        scene.wait()


@fault
def servers_rolled(scene: Scene) -> None:
    """One server after the other gets SIGTERM, drains, ends and is started again."""
    for worker in scene.parts.workers:
        worker.part.stop(signal.SIGTERM, 30.0)
        _started(worker)


@fault
def server_reloaded(scene: Scene) -> None:
    """The server with several workers gets SIGHUP, and replaces them."""
    worker = scene.parts.workers[0]
    before = set(worker.processes)
    worker.part.send(signal.SIGHUP)
    until(lambda: not before & set(worker.processes), _STARTING, "the workers are not replaced")
    _started(worker)


@fault
def descriptors_exhausted(scene: Scene) -> None:
    """One worker process may open no more descriptors."""
    pid = scene.chance.choice(_some(scene).processes)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 2, before[1]))
    try:
        scene.wait()
    finally:
        if os.path.exists(f"/proc/{pid}"):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@fault
def idle_connections(scene: Scene) -> None:
    """Five hundred connections to one server ask for nothing."""
    worker, crowd = _some(scene), []
    try:
        for _ in range(500):
            crowd.append(socket.create_connection((worker.host, worker.port), 5))
        scene.wait()
    except OSError:
        pass  # refused: that is an answer, too
    finally:
        for connection in crowd:
            connection.close()


@fault
def owner_disconnected(scene: Scene) -> None:
    """The connections of ten owners are ended (pgbus.disconnect)."""
    for owner in scene.chance.sample(range(scene.clients), min(10, scene.clients)):
        scene.parts.primary.sql("select pgbus.disconnect(%s)", f"owner-{owner}")


@fault
def pooler_killed(scene: Scene) -> None:
    """PgBouncer is killed, and started again after half of the outage."""
    pooler = scene.parts.pooler
    if pooler is None:
        raise Skipped("PgBouncer is not installed")
    pooler.kill()
    time.sleep(scene.outage / 2)
    pooler.start()


@fault
def pooler_frozen(scene: Scene) -> None:
    """PgBouncer is suspended (SIGSTOP)."""
    pooler = scene.parts.pooler
    if pooler is None:
        raise Skipped("PgBouncer is not installed")
    with scene.frozen(pooler):
        scene.wait()
