"""The process's streamer: one :class:`Instance` for all, made when it is first asked for."""

from __future__ import annotations

import os
from typing import Any

from gevent.lock import RLock

from ..core.registry import Registry
from ..core.stream_counter import StreamCounter
from .body_connection import BodyConnection
from .connection import Connection
from .dispatcher import StreamEventDispatcher
from .heartbeat import Heartbeat
from .instance import Instance, instances
from .io_writer import IoWriter
from .listener import Listener

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


def current(**options: Any) -> Instance:
    """The process's Instance, built with ``options`` and started on the first call; greenlets that race get the same one.

    Raises what :class:`Instance` and its ``start`` raise, and then the next call tries again. Options of a later call
    are an error: they could have no effect.
    """
    global _slot
    with _lock:
        if _slot is not None and _slot[0] == os.getpid():
            if options:
                raise RuntimeError("the process's Instance is there already; reset() it before giving other options")
            return _slot[1]
        instance = Instance(**options).start()
        _slot = (os.getpid(), instance)
        return instance


def set_current(instance: Instance | None) -> None:
    """Make ``instance`` the process's own; it is neither started nor is the one before it stopped."""
    global _slot
    with _lock:
        _slot = None if instance is None else (os.getpid(), instance)


def reset() -> None:
    """Shut the process's Instance down, if there is one, and forget it."""
    global _slot
    with _lock:
        slot, _slot = _slot, None
    if slot is not None and slot[0] == os.getpid():
        slot[1].shutdown()


def stream_counter() -> StreamCounter:
    """The counter of the process's Instance; one without counts where there is none."""
    return _slot[1].counter if _slot is not None and _slot[0] == os.getpid() else StreamCounter()
