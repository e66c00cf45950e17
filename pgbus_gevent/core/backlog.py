"""The bytes that wait for clients which do not take them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from typing import Any

MAX_BYTES = 256 * 1024 * 1024
"""The most bytes that may wait for the clients of a worker. Beyond that, the clients that have waited longest are closed."""

HURRY = 2.0
"""Seconds for which bytes may wait for a client before it is closed because too many bytes wait for all."""

Part = memoryview | bytearray


class Backlog:
    """Counts the bytes in memory that wait for the blocked clients of a worker. A piece that many of them share counts once.

    Clients with the same cursor share what waits for them. Clients with cursors of their own may each keep a chunk of the ring, or
    a whole message if that is larger. Nothing here yields.
    """

    __slots__ = ("_holders", "_waiting", "bytes")

    def __init__(self) -> None:
        self.bytes = 0
        self._waiting: dict[
            Any, tuple[float, list[object]]
        ] = {}  # by client: since when, and the pieces; the oldest first
        self._holders: dict[int, int] = {}  # by the id of the piece, which cannot be used again while somebody holds it

    @property
    def is_full(self) -> bool:
        """Whether more bytes wait than may."""
        return self.bytes > MAX_BYTES

    def longest(self, now: float) -> list[Any]:
        """Return the clients for which bytes have waited for :data:`HURRY` seconds, the longest first."""
        return list(takewhile(lambda client: now - self._waiting[client][0] >= HURRY, self._waiting))

    def hold(self, client: Any, parts: Iterable[Part], now: float) -> None:
        """Note that ``parts`` wait for a client, for which nothing waited."""
        pieces: list[object] = [part.obj if isinstance(part, memoryview) else part for part in parts]
        self._waiting[client] = now, pieces
        for piece in pieces:
            holders = self._holders.get(id(piece), 0)
            self._holders[id(piece)] = holders + 1
            if not holders:
                self.bytes += _size(piece)

    def release(self, client: Any) -> None:
        """Note that nothing waits for a client any more. May be called again."""
        for piece in self._waiting.pop(client, (0.0, []))[1]:
            left = self._holders.pop(id(piece)) - 1
            if left:
                self._holders[id(piece)] = left
            else:
                self.bytes -= _size(piece)


def _size(piece: object) -> int:
    # A farewell, the only piece that is no bytes, may grow while it waits.
    return len(piece) if isinstance(piece, bytes) else 0
