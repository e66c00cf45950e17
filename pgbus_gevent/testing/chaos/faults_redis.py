"""Faults of Redis. They are skipped in a run without it (``--wake redis``)."""

from __future__ import annotations

from .faults import Scene, Skipped, fault
from .redis import RedisParts


@fault
def redis_flushed(scene: Scene) -> None:
    """Redis loses all keys (FLUSHALL)."""
    _redis(scene).master().ask("FLUSHALL")


@fault
def redis_cut(scene: Scene) -> None:
    """Redis ends every connection (CLIENT KILL)."""
    for kind in ("normal", "pubsub"):
        _redis(scene).master().ask(f"CLIENT KILL TYPE {kind}")


@fault
def redis_killed(scene: Scene) -> None:
    """The master of Redis is killed, and started again after the outage; a Sentinel may make its replica the master."""
    node = _redis(scene).master()
    node.part.kill()
    scene.wait()
    node.start()


@fault
def redis_frozen(scene: Scene) -> None:
    """The master of Redis is suspended (SIGSTOP)."""
    with scene.frozen(_redis(scene).master().part):
        scene.wait()


@fault
def redis_failed_over(scene: Scene) -> None:
    """The Sentinel makes the replica the master."""
    _redis(scene).fail_over()
    scene.wait()


def _redis(scene: Scene) -> RedisParts:
    if scene.parts.redis is None:
        raise Skipped("this run is without Redis; --wake redis starts it")
    return scene.parts.redis
