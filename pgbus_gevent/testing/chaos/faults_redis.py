"""Faults of Redis. They are skipped in a run without it (``--wake redis``)."""

from __future__ import annotations

import time

from .faults import Scene, Skipped, fault
from .redis import Node, RedisParts

_FAILING_OVER = 30.0


@fault
def redis_flushed(scene: Scene) -> None:
    """Redis loses all keys (FLUSHALL)."""
    _tell(_redis(scene).master(), "FLUSHALL")


@fault
def redis_cut(scene: Scene) -> None:
    """Redis ends every connection (CLIENT KILL)."""
    for kind in ("normal", "pubsub"):
        _tell(_redis(scene).master(), f"CLIENT KILL TYPE {kind}")


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
    redis = _redis(scene)
    before, ending, begun = redis.master(), time.monotonic() + _FAILING_OVER, False
    while redis.master() is before:
        if time.monotonic() > ending:
            raise Skipped("the Sentinel does not make the replica the master")
        begun = begun or redis.fail_over().startswith("+OK")  # it refuses while it takes the replica for unfit
        time.sleep(0.2)
    scene.wait()


def _tell(node: Node, command: str) -> None:
    answer = node.ask(command)
    if not answer.startswith(("+", ":")):
        raise Skipped(f"Redis answered {answer[:60]!r}")


def _redis(scene: Scene) -> RedisParts:
    if scene.parts.redis is None:
        raise Skipped("this run is without Redis; --wake redis starts it")
    return scene.parts.redis
