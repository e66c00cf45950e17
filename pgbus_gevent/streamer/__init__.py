"""The process's streamer: one :class:`Instance` for all, made when it is first asked for."""

from __future__ import annotations

import os
from time import monotonic
from typing import Any, NamedTuple

from gevent.lock import RLock

from ..core.registry import Registry
from ..core.stream_counter import StreamCounter
from ..errors import DatabaseUnavailable
from .body_connection import BodyConnection
from .connection import Connection, IoWriter
from .dispatcher import StreamEventDispatcher
from .heartbeat import Heartbeat
from .instance import Instance, instances
from .listener import Listener
from .starting import PAUSE

__all__ = [
    "BodyConnection",
    "Connection",
    "Heartbeat",
    "Instance",
    "IoWriter",
    "Listener",
    "Registry",
    "StreamCounter",
    "StreamEventDispatcher",
    "current",
    "instances",
    "reset",
    "set_current",
    "stream_counter",
]

# gevent's own: a host may import this before it patches, and Python's would let any greenlet of the thread in then.
_lock = RLock()
_slot: tuple[int, Instance] | None = None  # with the process that it was made in: a fork has to make its own


class _Failure(NamedTuple):
    """An attempt of :func:`current` that found the database away."""

    pid: int
    options: dict[str, Any]
    at: float
    error: DatabaseUnavailable

    def holds(self, options: dict[str, Any], asked: float) -> bool:
        """Whether who ``asked`` then would find nothing else."""
        return self.pid == os.getpid() and options == self.options and asked < self.at + PAUSE


_failure: _Failure | None = None


def current(**options: Any) -> Instance:
    """The process's Instance, built with ``options`` and started on the first call; greenlets that race get the same one.

    Raises what :class:`Instance` and its ``start`` raise, and then a later call tries again: for those who waited meanwhile, and
    for a moment where the database was away, the outcome is the same. Options of a later call are an error: they could have no
    effect.
    """
    global _slot, _failure
    asked = monotonic()
    with _lock:
        if _slot is not None and _slot[0] == os.getpid():
            if options:
                raise RuntimeError("the process's Instance is there already; reset() it before giving other options")
            return _slot[1]
        if _failure is not None and _failure.holds(options, asked):
            raise _failure.error
        try:
            instance = Instance(**options).start()
        except DatabaseUnavailable as error:
            _failure = _Failure(os.getpid(), options, monotonic(), error)
            raise
        _slot, _failure = (os.getpid(), instance), None
        return instance


def set_current(instance: Instance | None) -> None:
    """Make ``instance`` the process's own; it is neither started nor is the one before it stopped."""
    global _slot
    with _lock:
        _slot = None if instance is None else (os.getpid(), instance)


def reset() -> None:
    """Shut the process's Instance down, if there is one, and forget it."""
    global _slot, _failure
    with _lock:
        slot, _slot, _failure = _slot, None, None
    if slot is not None and slot[0] == os.getpid():
        slot[1].shutdown()


def stream_counter() -> StreamCounter:
    """The counter of the process's Instance; one without counts where there is none."""
    return _slot[1].counter if _slot is not None and _slot[0] == os.getpid() else StreamCounter()
