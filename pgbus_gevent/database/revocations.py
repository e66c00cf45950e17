"""The statement that reads revocations: what is new since a mark, the last ten minutes, or all that are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.rows import Mark, Revoked

# A transaction that had not ended in this snapshot has at least the number `low`. A revocation below it was visible, or never
# will be. After a crash or a failover, numbers are used again, so they count only for one run of the server; and only for one file
# of the table, because a restore brings rows with the numbers of another server.
_STATEMENT = """
select s.home, s.low, r.id, r.owner
from (select date_part('epoch', pg_postmaster_start_time()) || ' ' || pg_relation_filepath('pgbus.revocations') as home,
             pg_snapshot_xmin(pg_current_snapshot())::text as low) s
left join (select id, owner, revoked_at from pgbus.revocations where {condition}) r on true
order by r.revoked_at
"""
_RECENT = _STATEMENT.format(condition="revoked_at > clock_timestamp() - interval '10 minutes'")
_KEPT = _STATEMENT.format(condition="true")
_NEW = _STATEMENT.format(condition="xid >= %s::xid8")

_Ask = Callable[[str, tuple[str, ...]], list[tuple[Any, ...]]]


def read(ask: _Ask, after: Mark | None, *, recent: bool) -> Revoked:
    """Return the answer of ``Queries.revocations``. ``ask`` runs a statement with its parameters."""
    if after is None:
        return _revoked(ask(_RECENT, ()))
    new = _revoked(ask(_NEW, (str(after.xid),)))
    if new.mark.home != after.home:
        # All that are kept, because the worker may have been cut off for longer than ten minutes.
        return _revoked(ask(_KEPT, ()))
    if recent:
        # The mark is that of the first statement, whose snapshot is the older one.
        return Revoked(new.rows + _revoked(ask(_RECENT, ())).rows, new.mark)
    return new


def _revoked(rows: list[tuple[Any, ...]]) -> Revoked:
    home, xid = rows[0][:2]
    return Revoked([(int(id), str(owner)) for _, _, id, owner in rows if id is not None], Mark(str(home), int(xid)))
