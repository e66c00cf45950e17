"""Ids: each is above all that anybody may have seen, also if the sequence or the commits have gone back."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from pgbus_gevent.errors import DatabaseError

from .transactions import Transaction

if TYPE_CHECKING:
    from .server import Server

LEAP = 100_000
"""How far a jump moves the ids at least."""
TOO_FAR = 315_360_000_000_000
"""Ten years, in microseconds: an id that lies so far ahead was written by hand."""


def lock_number(stream: str) -> int:
    """Return the number of a stream's lock. PostgreSQL has another hash; which streams share a lock may differ."""
    return zlib.crc32(stream.encode()) & 2047


def epoch(server: Server) -> int:
    """Return the number of the epoch: one run of this server on these files."""
    return zlib.crc32(f"{server.file} {server.started_at}".encode())


def is_good(server: Server, id: int) -> bool:
    """Whether an id belongs to this epoch, and so is above all ids of earlier ones."""
    floor = server.floor.last
    return server.jumped.last == epoch(server) and floor is not None and floor < id


def draw(server: Server, transaction: Transaction, stream: str, size: int) -> tuple[list[int], int]:
    """Draw ids for a stream that is locked. Returns them, and the stream's last id before."""
    given = server.highest.last or 0
    ids = [server.draw(server.message_ids, transaction) for _ in range(size)]
    head = server.head(stream, server.snapshot(transaction))
    if ids[0] <= head or ids[0] <= given or not is_good(server, ids[0]):
        ids = [jump(server, stream, head, transaction)]
        ids += [server.draw(server.message_ids, transaction) for _ in range(1, size)]
    server.highest.set(ids[-1])
    return ids, head


def jump(server: Server, stream: str, head: int, transaction: Transaction) -> int:
    """Return an id above all ids that anybody may have seen; ``pgbus._jump``."""
    for _ in range(20):
        clock, last = round(server.clock() * 1e6), server.message_ids.last_value
        highest = max(head, server.floor.last or 0)
        if highest > max(clock, last) + TOO_FAR:
            raise DatabaseError(f"stream {stream!r} has a message or a horizon with the id {head}", "55000")
        given = server.highest.last or 0
        if given > max(clock, last) + TOO_FAR:
            given = server.highest.set(last)
        if last <= highest or last < given or not is_good(server, last):
            last = server.message_ids.set(max(clock, last + LEAP, highest + LEAP, given + LEAP))
            server.floor.set(last)
            server.highest.set(last)
            server.jumped.set(epoch(server))
            server.jumps += 1
        id = server.draw(server.message_ids, transaction)
        if id > max(head, given) and is_good(server, id):
            return id
    raise DatabaseError(f"the sequence pgbus.message_ids gives no id above {head}", "55000")
