"""What takes a database back, or interrupts it: a restart, a crash, a promotion, a restored backup, a changed sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pgbus_gevent.errors import DatabaseUnavailable

from .tables import HorizonRow, Keyed, MessageRow, RevocationRow
from .transactions import GENESIS, Transaction, Version

if TYPE_CHECKING:
    from .server import Server

_Key = TypeVar("_Key")
_Row = TypeVar("_Row", bound=Version)


class Backup(NamedTuple):
    """The committed rows of a moment, and the values of the sequences."""

    messages: list[MessageRow]
    horizons: list[tuple[str, int, float]]
    revocations: list[RevocationRow]
    values: dict[str, int]
    next_xid: int


def end_sessions(server: Server, why: str) -> None:
    """End all sessions. What they heard and did not take is lost to them."""
    error = DatabaseUnavailable(f"PostgreSQL is not available: {why}")
    for session in list(server.sessions):
        server.end(session, error)
    for ear in list(server.ears):
        ear.lose(error)


def restart(server: Server) -> None:
    """Stop the server in order, and start it again."""
    end_sessions(server, "the server was restarted")
    server.started_at = server.clock()


def crash(server: Server, position: int | None = None, *, same_start: bool = False) -> None:
    """Crash, and recover from the WAL up to ``position`` (None: all of it).

    Commits behind it are lost; so are the values of the sequences, the unlogged tables and all notifications on their way.
    ``same_start`` says that only the backends were restarted, as after the death of one of them.
    """
    position = server.wal.end if position is None else position
    assert server.wal.first <= position <= server.wal.end, "the WAL does not go back so far"
    _complete_commits(server)
    end_sessions(server, "the server has crashed")
    server.wal.cut(position)
    values = server.wal.values(position)
    for sequence in server.sequences.values():
        sequence.recover(values)
    server.next_xid = values.get("", 0) + 1
    _take_back(server, position)
    server.ephemerals.clear()
    if not same_start:
        server.started_at = server.clock()


def promote(server: Server, position: int) -> None:
    """Go on with a standby that has replayed the WAL up to ``position``."""
    crash(server, position)


def _complete_commits(server: Server) -> None:
    """Complete the commits that are in the WAL, without their notifications."""
    for transaction in list(server.open_transactions):
        # Those that waited for the locks of one may end with it.
        if transaction.logged is not None and transaction in server.open_transactions:
            transaction.notifications.clear()
            server.finish(transaction)


def _is_lost(transaction: Transaction, position: int) -> bool:
    return transaction.logged is None or transaction.logged > position


def _take_back(server: Server, position: int) -> None:
    def survives(row: Version) -> bool:
        if row.died is not None and _is_lost(row.died, position):
            row.died = None
        return not _is_lost(row.born, position)

    server.messages.keep([row for row in server.messages if survives(row)])
    _keep(server.horizons, survives)
    _keep(server.revocations, survives)


def _keep(table: Keyed[_Key, _Row], is_kept: Callable[[Version], bool]) -> None:
    for key, row in table.all():
        if not is_kept(row):
            table.remove(key, row)


def backup(server: Server) -> Backup:
    """Return a copy of what is committed."""
    now = server.now(None)
    return Backup(
        [row.copy() for row in server.messages if now.sees(row)],
        [(name, row.id, row.pruned_at) for name, row in server.horizons.items(now)],
        [row for _, row in server.revocations.items(now)],
        server.wal.values(server.wal.end),
        server.next_xid,
    )


def restore(server: Server, copy: Backup) -> None:
    """Replace everything by a backup. Clients and workers may know ids that are not in it."""
    end_sessions(server, "a backup is restored")
    server.messages.keep([row.copy() for row in copy.messages])
    server.horizons.clear()
    for name, id, pruned_at in copy.horizons:
        server.horizons.add(name, HorizonRow(GENESIS, id, pruned_at))
    server.revocations.clear()
    for row in copy.revocations:
        server.revocations.add(row.id, RevocationRow(GENESIS, row.id, row.owner, row.revoked_at, row.xid))
    server.ephemerals.clear()
    server.wal.restart(copy.values)
    for sequence in server.sequences.values():
        sequence.recover(copy.values)
    server.next_xid = copy.next_xid
    server.started_at = server.clock()


def vacuum(server: Server, position: int) -> None:
    """Remove dead rows that nobody can see any more, and the WAL up to ``position``: no crash goes further back."""
    oldest = min((one.snapshot.csn for one in server.open_transactions if one.snapshot is not None), default=server.csn)

    def is_needed(row: Version) -> bool:
        died = row.died
        if died is None or died.csn is None or died.csn > oldest:
            return True
        return died.logged is not None and died.logged > position

    if any(not is_needed(row) for row in server.messages):
        server.messages.keep([row for row in server.messages if is_needed(row)])
    _keep(server.horizons, is_needed)
    _keep(server.revocations, is_needed)
    _keep(server.ephemerals, is_needed)
    server.wal.forget(position)
