"""The rights that each grant of docs/sql.md gives, so that ``doctor`` can name those that a role lacks.

``test_rights`` compares them with what the functions in 0007_rights.sql grant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_READER = ("last_id", "read_after", "presence_members", "presence_count")


class Grant(NamedTuple):
    """The rights of one grant: SELECT on tables and sequences, all of SELECT, INSERT and DELETE on others, EXECUTE on functions."""

    selects: tuple[str, ...]
    writes: tuple[str, ...]
    functions: tuple[str, ...]


# fmt: off
GRANTS = {
    "publisher": Grant((), (), (
        "broadcast", "broadcast_many", "broadcast_on_commit", "broadcast_ephemeral", "last_id",
        "presence_join", "presence_leave", "presence_touch", "presence_touch_many",
        "watch_table", "unwatch_table", "_watch_drop", "_watch", "_watch_columns", "_watch_missing", "_watch_expression",
        "_watch_stream", "_watch_message", "_watch_rows", "_queue_many", "_good_stream")),
    "reader": Grant((), (), _READER),
    "server": Grant(
        ("messages", "horizons", "ephemerals", "revocations", "workers", "message_ids", "forgotten", "mark"),
        ("operator_sessions", "token_guesses"),
        (*_READER, "channels", "_head", "_horizon", "_beat", "_leave_roll", "_ring_control",
         "_duty", "_leave_duty", "_steward", "_report_caps", "_leave_caps", "_wakes", "_ring_for", "_ring_everybody",
         "_presence_record", "_presence_flush", "presence_touch_many", "presence_sweep", "squatters",
         "_mark", "_redis_names", "_beat_many", "_other_cap_reports")),
    "pruner": Grant((), (), (
        "_streams_below", "_prune_turn", "prune", "_forget", "_prune_ephemerals", "_tell_retention", "_told_retentions")),
    "operator": Grant(("workers", "revocations"), (), ("disconnect", "squatters", "_steward")),
}
# fmt: on
"""By the name of the grant: ``pgbus.grant_server`` gives the rights of ``server``."""

MISSING = """
with schema as (select n.oid from pg_namespace n where n.nspname = 'pgbus')
select 'usage on schema pgbus' from schema s where not has_schema_privilege(s.oid, 'usage')
union all
select w.kind || ' on pgbus.' || c.relname
from schema s join pg_class c on c.relnamespace = s.oid
     join unnest(%s::text[], %s::text[]) w(relation, kind) on w.relation = c.relname::text
where not has_table_privilege(c.oid, w.kind)
union all
select 'execute on ' || p.oid::regprocedure::text
from schema s join pg_proc p on p.pronamespace = s.oid
where p.proname::text = any (%s::text[]) and not has_function_privilege(p.oid, 'execute')
"""
"""The rights that the current role lacks. Asks the catalogs alone, which any role may read."""


def wanted(grants: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the parameters of :data:`MISSING` for these grants."""
    tables, functions = {("migrations", "select")}, set[str]()
    for grant in map(GRANTS.__getitem__, grants):
        tables |= {(name, "select") for name in grant.selects}
        tables |= {(name, kind) for name in grant.writes for kind in ("select", "insert", "delete")}
        functions |= set(grant.functions)
    ordered = sorted(tables)
    return [name for name, _ in ordered], [kind for _, kind in ordered], sorted(functions)
