"""The process's streamer: one shared :class:`Instance`, which is made at the first call of :func:`current`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from gevent.lock import RLock

from ..core.registry import Registry
from ..core.stream_counter import StreamCounter
from ..errors import DatabaseUnavailable
from ..settings.options import InstanceSettings
from .body_connection import BodyConnection
from .connection import Connection, IoWriter
from .dispatcher import StreamEventDispatcher
from .heartbeat import Heartbeat
from .instance import Instance, instances
from .listener import Listener
from .starting import PAUSE

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..core.events import Events
    from ..core.filters import Filters
    from ..database import Database
    from ..settings.table import Settings

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

# gevent's lock, not Python's: a host may import this module before it patches, and an unpatched lock of the thread would let in
# every greenlet of that thread.
_lock = RLock()
_slot: tuple[int, Instance] | None = None  # with the id of its process, because a forked child has to make its own


class InstanceOptions(InstanceSettings, total=False):
    """The arguments of :class:`Instance`, for type checkers."""

    settings: Settings | None
    database: Database | None
    filters: Filters | None
    counter: StreamCounter | None
    events: Events | None
    on_failure: Callable[[str], None] | None
    read_only: bool


class _Failure(NamedTuple):
    """A call of :func:`current` that failed because the database was away."""

    pid: int
    options: Mapping[str, object]
    at: float
    error: DatabaseUnavailable

    def holds(self, options: Mapping[str, object], asked: float) -> bool:
        """Whether a call with ``options`` that came at the time ``asked`` gets this error too."""
        return self.pid == os.getpid() and options == self.options and asked < self.at + PAUSE


_failure: _Failure | None = None


def current(**options: Unpack[InstanceOptions]) -> Instance:
    """Return the process's Instance. The first call builds it with ``options`` and starts it.

    Greenlets that call it at the same time get the same Instance. The call yields until the Instance has started.

    Raises the exceptions of :class:`Instance` and of :meth:`Instance.start`; a later call then tries again. If the database was
    away, calls that waited meanwhile, or that come within a second, raise the same error. Raises :class:`RuntimeError` if
    options are given when the Instance exists, because they could have no effect.
    """
    global _slot, _failure
    asked = monotonic()
    with _lock:
        if _slot is not None and _slot[0] == os.getpid():
            if options:
                raise RuntimeError("the process's Instance exists already; call reset() before you give other options")
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
    """Make ``instance`` the process's Instance. It is not started, and the Instance before it is not stopped."""
    global _slot
    with _lock:
        _slot = None if instance is None else (os.getpid(), instance)


def reset() -> None:
    """Shut down the process's Instance, if there is one. The next call of :func:`current` makes a new one."""
    global _slot, _failure
    with _lock:
        slot, _slot, _failure = _slot, None, None
    if slot is not None and slot[0] == os.getpid():
        slot[1].shutdown()


def stream_counter() -> StreamCounter:
    """Return the counter of the process's Instance, or an empty counter if there is no Instance."""
    return _slot[1].counter if _slot is not None and _slot[0] == os.getpid() else StreamCounter()
