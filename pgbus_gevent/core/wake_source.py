"""Where a worker hears of new messages: PostgreSQL, a Redis, or the origin of an edge. The listener uses all of them alike."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from ..errors import RedisUnavailable
from .work import Flag


class Leaving(RedisUnavailable):
    """A session with PostgreSQL ends because Redis is of use again, which is no trouble."""


class Session(Protocol):
    """A session that hears wakes; :class:`pgbus_gevent.database.notifications.ListenSession` is one.

    It hears control wakes, and those of the streams that it follows, perhaps among others. ``follow`` adds streams, or all streams
    with None: from its return on, each of their wakes is heard; or, if it returns a flag, from the moment on at which the session
    sets it and makes ``receive`` return. ``narrow`` says which streams are needed from now on; the others
    need not be followed any more. ``receive`` waits, and returns the payloads that came and whether others may be lost.
    ``interrupt`` makes it return early, or the next one if none waits; only this method is for other greenlets, and it never
    yields. ``hears`` says whether a wake that is sent now arrives, ``cause`` the likely reason if not. ``ping`` returns if the
    session lives. All methods but ``interrupt`` and ``close`` raise :class:`DatabaseError`.
    """

    @property
    def cause(self) -> str: ...
    def follow(self, streams: Collection[str] | None) -> Flag | None: ...
    def narrow(self, streams: Collection[str]) -> None: ...
    def receive(self, timeout: float) -> tuple[list[str], bool]: ...
    def interrupt(self) -> None: ...
    def hears(self) -> bool: ...
    def ping(self) -> None: ...
    def close(self) -> None: ...


class WakeSource(Protocol):
    """Opens sessions; :class:`pgbus_gevent.database.Database` is one."""

    def listen(self) -> Session: ...
    def discard_idle(self) -> None: ...
