"""What can be asked of a database to find out whether streams will do well on it; each question is one statement."""

from __future__ import annotations

from time import time
from typing import Any, NamedTuple

from .pool import Pool

_RIGHTS = """
select p.what from (values
  ('pgbus.messages', 'select'), ('pgbus.messages', 'insert'), ('pgbus.messages', 'delete'),
  ('pgbus.horizons', 'select'), ('pgbus.horizons', 'insert'), ('pgbus.horizons', 'update'),
  ('pgbus.outbox', 'select'), ('pgbus.outbox', 'insert'), ('pgbus.outbox', 'delete'),
  ('pgbus.ephemerals', 'select'), ('pgbus.ephemerals', 'insert'), ('pgbus.ephemerals', 'delete'),
  ('pgbus.workers', 'select'), ('pgbus.workers', 'insert'), ('pgbus.workers', 'update'), ('pgbus.workers', 'delete'),
  ('pgbus.operator_sessions', 'select'), ('pgbus.operator_sessions', 'insert'), ('pgbus.operator_sessions', 'delete'),
  ('pgbus.operator_guesses', 'select'), ('pgbus.operator_guesses', 'insert'), ('pgbus.operator_guesses', 'delete')
) as r(relation, wanted)
cross join lateral (select r.wanted || ' on ' || r.relation as what) p
where not has_table_privilege(r.relation, r.wanted)
"""

# Those of other roles have no start here unless this role may see them; they are counted as nothing then.
_OLDEST = """
select a.pid, coalesce(a.application_name, ''), a.state, extract(epoch from clock_timestamp() - a.xact_start)
from pg_stat_activity a
where a.xact_start is not null and a.pid <> pg_backend_pid() and a.backend_type = 'client backend'
  and (a.backend_xmin is not null or a.backend_xid is not null or a.state like 'idle in transaction%%')
order by a.xact_start limit 1
"""

_TABLE = """
select s.n_live_tup, s.n_dead_tup, extract(epoch from clock_timestamp() - greatest(s.last_autovacuum, s.last_vacuum)),
       coalesce((select o.option_value from pg_options_to_table(c.reloptions) o
                 where o.option_name = 'autovacuum_enabled'), 'true')::boolean
       and current_setting('autovacuum')::boolean
from pg_class c join pg_stat_all_tables s on s.relid = c.oid
where c.oid = 'pgbus.messages'::regclass
"""


class Oldest(NamedTuple):
    """The transaction that has been open longest; ``seconds`` since it began."""

    pid: int
    application: str
    state: str
    seconds: float


class Rows(NamedTuple):
    """What the statistics say of the table of messages; ``vacuumed`` is seconds ago, None: never."""

    live: int
    dead: int
    vacuumed: float | None
    autovacuum: bool


class Checks:
    """On connections of a pool. Raises the exceptions of :mod:`pgbus_gevent.errors` alone."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def _all(self, statement: str) -> list[tuple[Any, ...]]:
        with self._pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute(statement, ())
            return cursor.fetchall()

    def _one(self, statement: str) -> Any:
        return self._all(statement)[0][0]

    def server(self) -> tuple[int, str]:
        """The server's version, as a number like 150004 and as a text."""
        ((number, name),) = self._all(
            "select current_setting('server_version_num')::int, current_setting('server_version')"
        )
        return int(number), str(name)

    def encoding(self) -> str:
        """The database's encoding."""
        return str(self._one("select current_setting('server_encoding')"))

    def schema_version(self) -> int | None:
        """The version of the schema; None where there is none."""
        if not self._one("select to_regclass('pgbus.migrations') is not null"):
            return None
        found = self._one("select max(version) from pgbus.migrations")
        return None if found is None else int(found)

    def missing_rights(self) -> list[str]:
        """What this role may not do of what a server that prunes does, such as ``delete on pgbus.messages``."""
        return [str(row[0]) for row in self._all(_RIGHTS)]

    def in_recovery(self) -> bool:
        """Whether it is a standby, where nothing can be published and LISTEN is refused."""
        return bool(self._one("select pg_is_in_recovery()"))

    def connections(self) -> tuple[int, int]:
        """How many sessions there are, and how many there may be of ordinary roles."""
        ((used, most),) = self._all(
            "select (select count(*) from pg_stat_activity where backend_type = 'client backend'),"
            " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        )
        return int(used), int(most)

    def clock_offset(self) -> float:
        """Seconds that the server's clock is ahead of this machine's; right to half the time of an answer."""
        began = time()
        there = float(self._one("select extract(epoch from clock_timestamp())"))
        return there - (began + time()) / 2

    def oldest_transaction(self) -> Oldest | None:
        """The one that holds vacuum up longest."""
        rows = self._all(_OLDEST)
        return Oldest(int(rows[0][0]), str(rows[0][1]), str(rows[0][2]), float(rows[0][3])) if rows else None

    def queue_usage(self) -> float:
        """How full the server's queue of notifications is, from 0 to 1; when it is, commits that notify fail."""
        return float(self._one("select pg_notification_queue_usage()"))

    def rows(self) -> Rows | None:
        """The state of the table of messages; None where there is none."""
        if not self._one("select to_regclass('pgbus.messages') is not null"):
            return None
        ((live, dead, vacuumed, on),) = self._all(_TABLE)
        return Rows(int(live), int(dead), None if vacuumed is None else float(vacuumed), bool(on))
