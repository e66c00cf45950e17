"""The questions that ``doctor`` asks a database to find out whether streams will work well on it. Each is one statement."""

from __future__ import annotations

from time import time
from typing import Any, NamedTuple

from .green import Connection
from .pool import Pool
from .rights import MISSING, wanted

ABSURD = 315_360_000_000_000
"""Ten years in microseconds. Ids follow the clock, so pgbus did not make an id that is further ahead. Same limit as in SQL."""

LOCKS = {
    1885823603: "a stream's lock", 1885823596: "the doorbell", 1885823597: "the lock of migrations",
    1885823598: "the lock of pruning", 1885823600: "the lock of a stream's presence",
}  # fmt: skip

# Needs no rights beyond those of a server.
_IDS = """
select (select s.last_value from pgbus.message_ids s),
       greatest((select m.msg_id from pgbus.messages m order by m.msg_id + 0 desc limit 1),
                (select max(h.msg_id) from pgbus.horizons h), 0),
       (extract(epoch from clock_timestamp()) * 1000000)::bigint
"""

_SQUATTERS = """
select s.class, s.number, s.holder, s.role, coalesce(s.application, ''), coalesce(s.state, ''), s.remedy
from pgbus.squatters() s order by s.pid, s.holder
"""

# A role that may not see the sessions of other roles gets no start time for them, so their transactions are left out.
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


class Ids(NamedTuple):
    """The last id that the sequence gave, the highest id in the tables (0: none), and the server's clock in microseconds."""

    given: int
    highest: int
    clock: int

    @property
    def fault(self) -> str | None:
        """The fault and its consequence, as a message; None if the ids are sound."""
        if self.highest > max(self.clock, self.given) + ABSURD:
            return (
                f"the highest id in pgbus.messages or pgbus.horizons is {self.highest}, far above the clock: pgbus did not make it,"
                " and nothing can be appended to its stream until that row is deleted"
            )
        if self.given < self.highest:
            return (
                f"the sequence of ids is at {self.given}, behind the highest id in the tables, {self.highest}, as after a restore"
                " of the rows without the sequence: the next message of such a stream moves it to the clock"
            )
        return None


class Squatter(NamedTuple):
    """A session that holds one of pgbus's locks and does none of the work that the lock protects.

    ``remedy`` is the statement that ends the session.
    """

    lock: str
    holder: str
    role: str
    application: str
    state: str
    remedy: str


class Oldest(NamedTuple):
    """The transaction that has been open longest. ``seconds`` is its age."""

    pid: int
    application: str
    state: str
    seconds: float


class Rows(NamedTuple):
    """The statistics of the table of messages. ``vacuumed`` is the seconds since the last vacuum, None if there was none."""

    live: int
    dead: int
    vacuumed: float | None
    autovacuum: bool


class LastSign(NamedTuple):
    """The steward's number, the age of its last sign in seconds (None: it has given its lease back), and whether it heard."""

    number: int
    age: float | None
    hears: bool


class Pooler(NamedTuple):
    """Whether a pooler stands before the server, and whether it accepts our settings in the startup packet."""

    is_between: bool
    takes_settings: bool


class Checks:
    """Asks the questions on connections of a pool. Raises only the exceptions of :mod:`pgbus_gevent.errors`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def _all(self, statement: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall()

    def _one(self, statement: str) -> Any:
        return self._all(statement)[0][0]

    def server(self) -> tuple[int, str]:
        """Return the server's version, as a number such as 150004 and as text."""
        ((number, name),) = self._all(
            "select current_setting('server_version_num')::int, current_setting('server_version')"
        )
        return int(number), str(name)

    def pooler(self) -> Pooler:
        """Find out whether a pooler is in between: then the server's process id differs from the one that the startup gave."""
        with self._pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute("select pg_backend_pid()")
            ((pid,),) = cursor.fetchall()
            has_settings = not isinstance(connection, Connection) or connection.prefix is None
            return Pooler(pid != connection.info.backend_pid, has_settings)

    def encoding(self) -> str:
        """Return the database's encoding."""
        return str(self._one("select current_setting('server_encoding')"))

    def schema_version(self) -> int | None:
        """Return the version of the schema, or None if there is no schema."""
        if not self._one("select to_regclass('pgbus.migrations') is not null"):
            return None
        found = self._one("select max(version) from pgbus.migrations")
        return None if found is None else int(found)

    def role(self) -> tuple[str, str | None]:
        """Return the name of the current role, and that of the schema's owner; None if there is no schema."""
        ((role, owner),) = self._all(
            "select current_user::text, (select pg_get_userbyid(n.nspowner) from pg_namespace n where n.nspname = 'pgbus')"
        )
        return str(role), None if owner is None else str(owner)

    def missing_rights(self, *grants: str) -> list[str]:
        """Return the rights of these grants that this role lacks, such as ``select on pgbus.messages``, sorted."""
        return sorted(str(row[0]) for row in self._all(MISSING, wanted(grants)))

    def ids(self) -> Ids | None:
        """Compare the sequence of ids with the tables. Returns None if there is no schema."""
        if not self._one("select to_regclass('pgbus.horizons') is not null"):
            return None
        return Ids(*map(int, self._all(_IDS)[0]))

    def squatters(self) -> list[Squatter]:
        """Return the sessions that hold a lock without need. A single look may also find a session that is about to publish."""
        return [Squatter(LOCKS[int(row[0])], *row[2:]) for row in self._all(_SQUATTERS)]

    def in_recovery(self) -> bool:
        """Whether the server is a standby, on which nothing can be published and LISTEN is refused."""
        return bool(self._one("select pg_is_in_recovery()"))

    def connections(self) -> tuple[int, int]:
        """Return how many client sessions there are, and how many ordinary roles may have."""
        ((used, most),) = self._all(
            "select (select count(*) from pg_stat_activity where backend_type = 'client backend'),"
            " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        )
        return int(used), int(most)

    def clock_offset(self) -> float:
        """Return by how many seconds the server's clock is ahead of this machine's, exact to half the round-trip time.

        It is the quickest of three answers that counts. A single one may be late, as on a busy machine.
        """
        answers = [self._clock_offset() for _ in range(3)]
        return min(answers)[1]

    def _clock_offset(self) -> tuple[float, float]:
        began = time()
        there = float(self._one("select extract(epoch from clock_timestamp())"))
        ended = time()
        return ended - began, there - (began + ended) / 2

    def steward(self) -> LastSign:
        """Return the last sign of the steward."""
        ((number, age, hears),) = self._all("select s.number, s.age, s.hears from pgbus._steward() s")
        return LastSign(int(number), None if age is None else age / 1000, bool(hears))

    def oldest_transaction(self) -> Oldest | None:
        """Return the transaction that has held back vacuum longest, or None."""
        rows = self._all(_OLDEST)
        return Oldest(int(rows[0][0]), str(rows[0][1]), str(rows[0][2]), float(rows[0][3])) if rows else None

    def queue_usage(self) -> float:
        """Return how full the server's notification queue is, from 0 to 1. Once it is full, commits that notify fail."""
        return float(self._one("select pg_notification_queue_usage()"))

    def cluster(self) -> tuple[str, str]:
        """Return the system identifier, which a standby has from its primary, and the name of the database."""
        ((system, name),) = self._all("select (pg_control_system()).system_identifier::text, current_database()::text")
        return str(system), str(name)

    def position(self) -> str:
        """Return a primary's position in the WAL."""
        return str(self._one("select pg_current_wal_lsn()::text"))

    def has_replayed(self, position: str) -> bool:
        """Whether a standby has replayed the WAL up to ``position``."""
        ((replayed,),) = self._all("select pg_last_wal_replay_lsn() >= %s::pg_lsn", (position,))
        return bool(replayed)

    def rows(self) -> Rows | None:
        """Return the statistics of the table of messages, or None if there is no such table."""
        if not self._one("select to_regclass('pgbus.messages') is not null"):
            return None
        ((live, dead, vacuumed, on),) = self._all(_TABLE)
        return Rows(int(live), int(dead), None if vacuumed is None else float(vacuumed), bool(on))
