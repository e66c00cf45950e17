"""The sockets of clients: what a worker sends is handed to the client at once, as far as the client reads."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

from . import clock

_READ, _WRITE = 1, 2


class Line:
    """The worker's end of a client's connection. It stands in for a plain non-blocking socket.

    ``take`` is called with what the worker has begun to send, once for each piece, even if the client does not read it yet;
    ``ended`` when the worker has closed. ``room`` is how many bytes fit before the worker is blocked, None for no bound.
    """

    family = socket.AF_INET

    def __init__(self, descriptor: int, take: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._take = take
        self._ended = ended
        self.room: int | None = None
        self.accepted = 0
        self.closed = False
        self.hung_up = False
        self._owed = 0  # bytes that were handed to `take` already, and will be sent again
        clock.loop().levels[descriptor] = self._level

    def _level(self) -> int:
        if self.hung_up:
            return _READ | _WRITE
        return _WRITE if self.room is None or self.room > 0 else 0

    # the client's end

    def stall(self, room: int) -> None:
        """Read nothing from now on; ``room`` more bytes fit on the way."""
        self.room = room

    def flow(self) -> None:
        """Read again."""
        self.room = None
        clock.loop().changed(self._descriptor)

    def hang_up(self) -> None:
        """Leave."""
        self.hung_up = True
        clock.loop().changed(self._descriptor)

    # the worker's end

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def setblocking(self, flag: bool) -> None:
        """Do nothing."""

    def setsockopt(self, *_: Any) -> None:
        """Do nothing."""

    def recv(self, size: int) -> bytes:
        """Return what the client sends: nothing, but at the end."""
        if self.hung_up:
            return b""
        raise BlockingIOError

    def send(self, data: bytes) -> int:
        """Take bytes."""
        size = len(data)
        if self.hung_up:
            raise ConnectionResetError
        owed = self._owed
        if owed < size:
            self._take(data if not owed else data[owed:])
        room = self.room
        if room is None:
            self.accepted += size
            self._owed = 0
            return size
        sent = min(size, room)
        self.room = room - sent
        self.accepted += sent
        self._owed = max(owed, size) - sent
        if not sent:
            raise BlockingIOError
        return sent

    def sendmsg(self, parts: Sequence[bytes | bytearray | memoryview]) -> int:
        """Take bytes in several pieces."""
        return self.send(b"".join(parts))

    def close(self) -> None:
        """Close."""
        if not self.closed:
            self.closed = True
            clock.loop().levels.pop(self._descriptor, None)
            self._ended()
