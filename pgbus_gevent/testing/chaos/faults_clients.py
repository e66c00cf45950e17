"""Faults of the ways between clients and workers, and of the clients."""

from __future__ import annotations

import time

from .faults import Scene, fault


@fault
def clients_cut(scene: Scene) -> None:
    """Every connection of every client is reset."""
    for worker in scene.parts.workers:
        scene.parts.lines.cut(worker.line)


@fault
def clients_cut_often(scene: Scene) -> None:
    """A third of the clients' connections is reset, five times within the outage."""
    for _ in range(5):
        for worker in scene.parts.workers:
            scene.parts.lines.cut(worker.line, 1 / 3)
        time.sleep(scene.outage / 5)


@fault
def clients_half_open(scene: Scene) -> None:
    """Nothing passes through half of the clients' connections any more, and neither side is told for 12 seconds."""
    for worker in scene.parts.workers:
        scene.parts.lines.half_open(worker.line, 0.5)
    scene.wait()


@fault
def clients_black_hole(scene: Scene) -> None:
    """The way between all clients and one server takes bytes and passes none on."""
    with scene.held(scene.chance.choice(scene.parts.workers).line):
        scene.wait()


@fault
def clients_throttled(scene: Scene) -> None:
    """Each client's connection carries at most 100 bytes a second."""
    _slow(scene, rate=100.0)


@fault
def clients_frozen(scene: Scene) -> None:
    """The program of the clients is suspended, so that nobody reads."""
    with scene.frozen(scene.programs["clients"]):
        scene.wait()


@fault
def clients_slow(scene: Scene) -> None:
    """Every byte between clients and workers is delayed by 250 ms each way."""
    _slow(scene, delay=0.25)


def _slow(scene: Scene, delay: float = 0.0, rate: float = 0.0) -> None:
    for worker in scene.parts.workers:
        scene.parts.lines.slow(worker.line, delay, rate)
    try:
        scene.wait()
    finally:
        for worker in scene.parts.workers:
            scene.parts.lines.slow(worker.line)
