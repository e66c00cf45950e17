"""Sessions that LISTEN. A notification reaches them when the transaction that sent it has become visible, in this order."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from pgbus_gevent.core.buckets import ALL_BUCKETS, buckets_of, channel

if TYPE_CHECKING:
    from .server import Server


class Ear:
    """A session that LISTENs on ``channels``. ``inbox`` has what it has heard: the channels and the payloads.

    ``on_arrival`` is called after each notification that came. ``lost`` is set when the server has ended the session;
    ``on_arrival`` is called then too.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.channels: set[str] = set()
        self.inbox: list[tuple[str, str]] = []
        self.on_arrival: Callable[[], object] = lambda: None
        self.lost: Exception | None = None

    def hear(self, name: str, payload: str) -> None:
        if name in self.channels:
            self.inbox.append((name, payload))
            self.on_arrival()

    def take(self) -> list[tuple[str, str]]:
        """Return what came since the last call."""
        found, self.inbox = self.inbox, []
        return found

    def lose(self, error: Exception) -> None:
        """Notice that the server has ended the session."""
        self.lost = error
        self.close()
        self.on_arrival()

    def close(self) -> None:
        """End the session. Idempotent."""
        if self in self.server.ears:
            self.server.ears.remove(self)


class WakeSession:
    """A session as :class:`pgbus_gevent.core.wake_source.Session` describes it, over an ear that nothing disturbs.

    ``wait`` is called with a number of seconds; it returns after them, or after :meth:`interrupt` or an arrival.
    """

    cause = "notifications do not arrive"

    def __init__(self, server: Server, wait: Callable[[float], None], wake: Callable[[], None]) -> None:
        self.ear = server.listen()
        self.ear.channels.add(server.control)
        self.ear.on_arrival = wake
        self._server, self._wait, self.interrupt = server, wait, wake

    def follow(self, streams: Collection[str] | None) -> None:
        self._check()
        buckets = ALL_BUCKETS if streams is None else buckets_of(streams)
        self.ear.channels |= {channel(self._server.doorbell, bucket) for bucket in buckets}

    def narrow(self, streams: Collection[str]) -> None:
        self._check()
        needed = {channel(self._server.doorbell, bucket) for bucket in buckets_of(streams)}
        self.ear.channels &= {self._server.control, *needed}

    def receive(self, timeout: float) -> tuple[list[str], bool]:
        self._check()
        if not self.ear.inbox:
            self._wait(timeout)
            self._check()
        return [payload for _, payload in self.ear.take()], False

    def hears(self) -> bool:
        self._check()
        return True

    def ping(self) -> None:
        self._check()

    def close(self) -> None:
        self.ear.close()

    def _check(self) -> None:
        if self.ear.lost is not None:
            raise self.ear.lost
