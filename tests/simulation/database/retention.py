"""Retention, as in ``pgbus_gevent/database/sql/0005_retention.sql``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from .locks import PRUNING
from .statements import Work
from .tables import HorizonRow, MessageRow
from .transactions import Snapshot, Transaction

if TYPE_CHECKING:
    from .server import Server

HIGHEST = 2**63 - 1


class Pruned(NamedTuple):
    """What was removed from a stream, as :class:`pgbus_gevent.database.pruning.Pruned`."""

    stream: str
    removed: int
    horizon: int
    overdue: float


def prune(
    server: Server,
    transaction: Transaction,
    streams: Sequence[str],
    ages: Sequence[float],
    counts: Sequence[int | None] | None,
    limit: int,
) -> Work:
    """Remove the messages that are older than the age of their stream, or beyond its newest ``counts``, at most ``limit``."""
    assert not transaction.has_one_snapshot, (
        "the model does not know what another pruner has removed since the snapshot"
    )
    if not server.locks.take(PRUNING, transaction):
        yield PRUNING
    now = server.clock()
    snapshot = server.snapshot(transaction)
    found: list[Pruned] = []
    left = limit
    for n, stream in enumerate(streams):
        count = None if counts is None else counts[n]
        since = now - ages[n]
        size = 0
        gone: list[MessageRow] = []
        for row in islice(_beyond(server, snapshot, stream, since, count, limit), limit):
            size += 1
            if len(gone) < left:
                gone.append(row)
        left -= size
        for row in gone:
            server.remove(row, transaction)
        if gone:
            _note_horizon(server, transaction, stream, gone[-1].id, now)
            overdue = max(0.0, since - min(row.created_at for row in gone))
            found.append(Pruned(stream, len(gone), gone[-1].id, overdue))
    return found


def _beyond(
    server: Server, snapshot: Snapshot, stream: str, since: float, count: int | None, limit: int
) -> list[MessageRow]:
    """Return the messages of a stream that are to be removed: all those below the first one that is young, or among the newest."""
    horizon = server.horizon(stream, snapshot)
    oldest = islice(server.messages.above(stream, horizon, snapshot), limit + 1)
    below = next((row.id for row in oldest if row.created_at >= since), HIGHEST)
    if count is not None:
        surplus = next(islice(server.messages.newest(stream, horizon, snapshot), count, None), None)
        below = max(below, 0 if surplus is None else surplus.id + 1)
    return [row for row in server.messages.above(stream, horizon, snapshot) if row.id < below]


def _note_horizon(server: Server, transaction: Transaction, stream: str, id: int, now: float) -> None:
    old = server.horizons.get(stream, server.snapshot(transaction))
    if old is not None:
        id, now = max(id, old.id), max(now, old.pruned_at)
        server.remove(old, transaction)
    server.add(server.horizons, stream, HorizonRow(transaction, id, now), transaction)


def forget(server: Server, transaction: Transaction, below: str | None, unused: float, limit: int) -> Work:
    """Remove the horizons of streams that have had no messages for ``unused`` seconds. Returns the name to go on from."""
    if not server.locks.take(PRUNING, transaction):
        yield PRUNING
    snapshot = server.snapshot(transaction)
    known = dict(server.horizons.items(snapshot))
    names = sorted((name for name in known if below is None or name.encode() < below.encode()), key=str.encode)
    names = names[::-1][:limit]
    empty = [
        name
        for name in names
        if known[name].pruned_at < server.clock() - unused and server.head(name, snapshot) == known[name].id
    ]
    highest = max((known[name].id for name in empty), default=0)
    if highest > (server.forgotten.last or 0):
        server.forgotten.set(highest)
    for name in empty:
        server.remove(known[name], transaction)
    return names[-1] if len(names) == limit else None


def below(server: Server, snapshot: Snapshot, name: str | None, limit: int) -> list[str]:
    """Return the streams that have messages, downwards from a name."""
    names = server.messages.streams(snapshot)[::-1]
    return [found for found in names if name is None or found.encode() < name.encode()][:limit]
