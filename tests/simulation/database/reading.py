"""The reads, each about one snapshot, as the statements of ``pgbus_gevent/database/queries.py`` answer them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timezone
from itertools import islice
from typing import TYPE_CHECKING

from pgbus_gevent.core import rows
from pgbus_gevent.errors import InvalidArgument
from pgbus_gevent.messages import Message

from . import publishing
from .doorbell import notify, notify_moved, notify_stream, wake
from .tables import MessageRow
from .transactions import Snapshot, Transaction

if TYPE_CHECKING:
    from .server import Server

LARGE = 8000
"""Bytes of data from which on a tail leaves it out."""
RECENT = 600.0
"""Seconds for which a revocation counts as recent."""


def last_id(server: Server, snapshot: Snapshot, stream: str) -> int:
    publishing.check_stream(stream)
    return server.head(stream, snapshot)


def read_after(server: Server, snapshot: Snapshot, stream: str, after: int, limit: int) -> list[Message]:
    publishing.check_stream(stream)
    if after < 0 or limit < 1:
        raise InvalidArgument(f"bad cursor {after} or limit {limit}")
    found = server.messages.above(stream, max(after, server.horizon(stream, snapshot)), snapshot)
    return [
        Message(stream, row.id, _time(row), row.event, row.data, row.visible_to, row.exclude)
        for row in islice(found, limit)
    ]


def _time(row: MessageRow) -> datetime:
    return datetime.fromtimestamp(row.created_at, timezone.utc)


def moved(
    server: Server, snapshot: Snapshot, heads: dict[str, int], pruned: Collection[str]
) -> tuple[int, dict[str, int]]:
    newest_of_all = next((row.id for row in server.messages.newest_of_all(snapshot)), 0)
    found = {}
    for stream, head in heads.items():
        horizon = server.horizon(stream, snapshot)
        newest = next((row.id for row in server.messages.newest(stream, horizon, snapshot)), 0)
        if newest > head or (newest < head and stream not in pruned):
            found[stream] = newest
    return newest_of_all, found


def inventory(server: Server, snapshot: Snapshot, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[int, int, int]]:
    found = []
    for stream, floor, head in ranges:
        horizon = server.horizon(stream, snapshot)
        ids = [row.id for row in server.messages.above(stream, max(floor, horizon), snapshot) if row.id <= head]
        found.append((horizon, len(ids), sum(ids)))
    return found


def tail(
    server: Server, snapshot: Snapshot, above: int, holes: Sequence[int], streams: Collection[str] | None, limit: int
) -> list[rows.TailRow]:
    found = [row for id in sorted(set(holes)) for row in server.messages.with_id(id, snapshot)]
    found += islice(server.messages.of_all_above(above, snapshot), limit)

    def with_data(row: MessageRow) -> bool:
        return row.size < LARGE and (streams is None or row.stream in streams)

    return [
        rows.TailRow(
            *(row.id, row.stream, row.prev_id, row.event, row.data if with_data(row) else None),
            *(row.visible_to, row.exclude),
        )
        for row in found
    ]


def _row(row: MessageRow) -> rows.Row:
    return rows.Row(row.id, row.event, row.data, row.visible_to, row.exclude, row.prev_id)


def _bounded(found: Iterable[MessageRow], limit: int, size: int) -> tuple[list[MessageRow], MessageRow | None, bool]:
    """Take messages while there are fewer than ``limit`` with less than ``size`` bytes.

    Returns them, the first one that is beyond the limit, if it was looked at, and whether the bytes are full.
    """
    taken: list[MessageRow] = []
    total = 0
    for row in found:
        if total >= size:
            return taken, None, True
        if len(taken) == limit:
            return taken, row, False
        taken.append(row)
        total += row.size
    return taken, None, total >= size


def pages(
    server: Server, snapshot: Snapshot, after: Sequence[tuple[str, int]], limit: int, size: int
) -> list[rows.PageRows]:
    found = []
    for stream, cursor in after:
        horizon = server.horizon(stream, snapshot)
        taken, beyond, full = _bounded(server.messages.above(stream, max(cursor, horizon), snapshot), limit, size)
        anchor = next((row.id for row in server.messages.newest(stream, horizon, snapshot) if row.id <= cursor), 0)
        more = full or beyond is not None
        found.append(rows.PageRows(list(map(_row, taken)), horizon, more, anchor, server.forgotten.last or 0))
    return found


def openings(
    server: Server, snapshot: Snapshot, questions: Sequence[rows.OpenQuestion], limit: int, size: int
) -> list[rows.Opening]:
    return [_opening(server, snapshot, question, limit, size) for question in questions]


def _opening(server: Server, snapshot: Snapshot, question: rows.OpenQuestion, limit: int, size: int) -> rows.Opening:
    stream, cursor, replay = question
    horizon, head = server.horizon(stream, snapshot), server.head(stream, snapshot)
    oldest = next((row.id for row in server.messages.above(stream, horizon, snapshot)), 0)
    # An offset of null is one of 0.
    start = next((row.id for row in islice(server.messages.newest(stream, horizon, snapshot), replay or 0, None)), 0)
    if cursor is None:
        return rows.Opening(head, horizon, oldest, start, head, [])
    floor = max(cursor, horizon)
    taken, beyond, full = _bounded(server.messages.newest(stream, floor, snapshot), limit, size)
    if beyond is not None:
        floor = max(floor, beyond.id)
    elif full:
        floor = max(floor, taken[-1].id - 1)
    return rows.Opening(head, horizon, oldest, start, floor, [_row(row) for row in reversed(taken)])


def ephemerals(server: Server, snapshot: Snapshot, ids: Sequence[int]) -> dict[int, rows.EphemeralRow]:
    found = {}
    for id in ids:
        row = server.ephemerals.get(id, snapshot)
        if row is not None:
            found[id] = rows.EphemeralRow(row.stream, row.event, row.data, row.visible_to, row.exclude)
    return found


def revocations(server: Server, snapshot: Snapshot, after: rows.Mark | None, recent: bool) -> rows.Revoked:
    mark = rows.Mark(f"{server.started_at} {server.file}", snapshot.xmin)
    kept = sorted((row for _, row in server.revocations.items(snapshot)), key=lambda row: row.revoked_at)
    young = [(row.id, row.owner) for row in kept if row.revoked_at > server.clock() - RECENT]
    if after is None:
        return rows.Revoked(young, mark)
    if after.home != mark.home:
        return rows.Revoked([(row.id, row.owner) for row in kept], mark)
    new = [(row.id, row.owner) for row in kept if row.xid >= after.xid]
    return rows.Revoked(new + young if recent else new, mark)


# the steward


def in_ranges(server: Server, snapshot: Snapshot, holes: Sequence[tuple[int, int]], limit: int) -> list[rows.IdRow]:
    found: list[rows.IdRow] = []
    for low, high in holes:
        within = (row for row in server.messages.of_all_above(low - 1, snapshot) if row.id <= high)
        found += [rows.IdRow(row.id, row.stream) for row in islice(within, limit)]
    return found[:limit]


def ids_above(server: Server, snapshot: Snapshot, above: int | None, limit: int) -> list[rows.IdRow]:
    """Return the first rows above an id, or the newest if it is None; none that lies above the sequence."""
    last = server.message_ids.last_value
    if above is None:
        newest = (row for row in server.messages.newest_of_all(snapshot) if row.id <= last)
        return [rows.IdRow(row.id, row.stream) for row in islice(newest, limit)][::-1]
    found = (row for row in server.messages.of_all_above(above, snapshot) if row.id <= last)
    return [rows.IdRow(row.id, row.stream) for row in islice(found, limit)]


def wakes(server: Server, snapshot: Snapshot, ids: Sequence[int], size: int) -> list[tuple[int, str, str]]:
    found = []
    for id in sorted(set(ids)):
        for row in server.messages.with_id(id, snapshot):
            text = wake(row)
            if row.size > size or len(text.encode()) > size:
                text = publishing.json_text(["moved", row.stream])
            found.append((id, row.stream, text))
    return found


def ring_for(server: Server, transaction: Transaction, ids: Sequence[int]) -> bool:
    """Ring for messages that did not ring; ``pgbus._ring_for``."""
    if not server.can_notify:
        return False
    room = min(400_000, server.queue_pages * 512)
    names: list[str] = []
    for _, stream, text in wakes(server, server.snapshot(transaction), ids, 7900):
        if len(text.encode()) <= room:
            room -= len(text.encode())
            notify_stream(server, transaction, stream, text)
        elif stream not in names:
            room = 0
            names.append(stream)
    if len(names) > 100:
        return ring_everybody(server, transaction)
    if names:
        notify_moved(server, transaction, names[0], "\n".join(names) + "\n")
    return True


def ring_everybody(server: Server, transaction: Transaction) -> bool:
    if server.can_notify:
        notify(transaction, server.control, '["moved"]')
    return server.can_notify
