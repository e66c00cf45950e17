"""The statements of retention: sharing the round among workers, pruning messages, forgetting streams."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import NO_RIGHT, DatabaseError
from ..settings.retention import Retention, keep_longest
from .patience import CHANGE, Patience
from .pool import Pool

_READ_ONLY = "25006"  # read_only_sql_transaction


class Pruned(NamedTuple):
    """The result for one stream: how many messages were removed, and the highest id among them, its new ``horizon``.

    ``overdue`` is by how many seconds the oldest of them was beyond its retention.
    """

    stream: str
    removed: int
    horizon: int
    overdue: float


_OLDEST = """
select s.stream, extract(epoch from clock_timestamp() - o.created_at)
from pgbus._streams_below(%s, %s) as s(stream)
left join lateral (
  select m.created_at from pgbus.messages m
  where m.stream = s.stream and m.msg_id > (select pgbus._horizon(s.stream)) order by m.msg_id limit 1) o on true
"""


class Overdue(NamedTuple):
    """The stream that pruning is most behind with, and by how many seconds.

    ``streams`` is how many streams have been looked at, and ``all`` says that there are no others.
    """

    stream: str
    seconds: float
    streams: int
    all: bool


class Stated(NamedTuple):
    """A retention that servers have stated. ``teller`` names one of these servers, by host and process id."""

    retention: Retention
    teller: str


_LATELY = 20.0  # seconds


def _read(statement: str, teller: str) -> Retention:
    try:
        return Retention.read(statement)
    except ValueError:
        raise DatabaseError(
            f"this release does not understand the retention that {teller} has stated: {statement!r}; stop that server, or delete"
            " the row from pgbus.retentions"
        ) from None


class Pruning:
    """Uses connections of a pool, with one transaction for each statement. Raises the exceptions of :mod:`pgbus_gevent.errors`.

    ``retention`` is this process's. All servers of a database state theirs, and the longest applies. :meth:`tell` and
    :meth:`ask` read the others'; the latest reading is used.
    """

    def __init__(self, pool: Pool, retention: Retention) -> None:
        self._pool = pool
        self.retention = retention
        self._others: list[Stated] = []
        self._patience = Patience(CHANGE, waits=True)

    def _one(self, statement: str, *parameters: Any) -> Any:
        return self._all(statement, *parameters)[0][0]

    def _all(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        try:
            with self._pool.connection(self._patience) as connection, connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                return cursor.fetchall()
        except DatabaseError as error:
            if error.sqlstate == _READ_ONLY:
                raise DatabaseError(
                    f"the server is a standby, or read-only ({error}): after a failover this ends with the promotion; if it does"
                    " not end, give the primary's URL",
                    error.sqlstate,
                ) from error
            if error.sqlstate == NO_RIGHT:
                raise DatabaseError(
                    f"this role may not remove messages ({error}): grant it the rights in docs/retention.md, or set"
                    " prune_interval=0 to leave pruning to other servers",
                    error.sqlstate,
                ) from error
            raise

    def tell(self, holds: float) -> list[Stated]:
        """State this server's retention for the next ``holds`` seconds. Returns the others', as :meth:`ask` does."""
        # Every worker calls this every few seconds, so the table is written only if the statement would soon lapse.
        if self._ask() < holds - _LATELY:
            teller = f"{socket.gethostname()} pid {os.getpid()}"
            self._one(
                "select pgbus._tell_retention(%s, %s, make_interval(secs => %s))",
                self.retention.statement,
                teller,
                holds,
            )
        return self._others

    def ask(self) -> list[Stated]:
        """Read the retentions of other servers that differ from ours, and apply them from now on. Call this before pruning."""
        self._ask()
        return self._others

    def stated(self) -> list[Stated]:
        """Return the retentions that servers have stated, with one entry for all servers that state the same."""
        rows = self._all("select r.kept, r.teller from pgbus._told_retentions() r")
        return [Stated(_read(kept, teller), teller) for kept, teller in rows]

    def overdue(self, limit: int = 1000, statements: int = 20) -> Overdue | None:
        """Return the stream that pruning is most behind with. Each of at most ``statements`` looks at ``limit`` streams.

        The retentions that servers have stated apply. Returns None if no server has stated one, or there are no messages.
        """
        retentions = [stated.retention for stated in self.stated()]
        if not retentions:
            return None
        worst: tuple[float, str] | None = None
        below: str | None = None
        streams, is_end = 0, False
        while not is_end and streams < statements * limit:
            found = self._all(_OLDEST, below, limit)
            streams, is_end = streams + len(found), len(found) < limit
            below = min((str(stream) for stream, _ in found), default=None)
            late = [(float(age) - keep_longest(retentions, name)[0], name) for name, age in found if age is not None]
            worst = max(late if worst is None else [*late, worst], default=None)
        return None if worst is None else Overdue(worst[1], worst[0], streams, is_end)

    def _ask(self) -> float:
        """Read the stated retentions. Returns for how many more seconds ours is stated."""
        ours = self.retention.statement
        rows = self._all("select r.kept, r.teller, r.holds from pgbus._told_retentions() r")
        self._others = [Stated(_read(kept, teller), teller) for kept, teller, _ in rows if kept != ours]
        return max((float(left) for kept, _, left in rows if kept == ours), default=0.0)

    def _keep(self, stream: str) -> tuple[float, int | None]:
        return keep_longest([self.retention, *(other.retention for other in self._others)], stream)

    def turn(self, every: float, limit: int, patience: float = 0.0) -> list[str] | None:
        """Take the next ``limit`` streams of the round that all workers share. Returns None if it is not time, or not our turn.

        Fewer than ``limit`` streams end the round. The next round begins ``every`` seconds later. With ``patience``, it is our
        turn only if no worker has gone on with the round for that many seconds.
        """
        found = self._one(
            "select pgbus._prune_turn(make_interval(secs => %s), %s, make_interval(secs => %s))", every, limit, patience
        )
        return None if found is None else list(found)

    def below(self, name: str | None, limit: int) -> list[str]:
        """Return the next ``limit`` streams with messages in descending order below ``name``, or from the highest."""
        return [row[0] for row in self._all("select * from pgbus._streams_below(%s, %s)", name, limit)]

    def prune(self, streams: Sequence[str], limit: int) -> list[Pruned]:
        """Remove messages past the retention from these streams, oldest first, at most ``limit`` in all.

        Waits for other transactions that prune. If ``limit`` messages were removed, more may remain.
        """
        kept = [self._keep(stream) for stream in streams]
        rows = self._all(
            "select p.stream, p.removed, p.horizon, extract(epoch from p.overdue)::float8"
            " from pgbus.prune(%s::text[], array(select make_interval(secs => s) from unnest(%s::float8[])"
            " with ordinality as a(s, n) order by n), %s::bigint[], %s) p",
            *(list(streams), [age for age, _ in kept], [count for _, count in kept], limit),
        )
        return [Pruned(*row) for row in rows]

    def forget(self, below: str | None, unused: float, limit: int) -> str | None:
        """Forget streams that had no messages for ``unused`` seconds, among the ``limit`` streams below ``below``.

        Returns the name below which to go on, None at the end.
        """
        unused = max([unused, *(other.retention.forget_after for other in self._others)])
        found = self._one("select pgbus._forget(%s, make_interval(secs => %s), %s)", below, unused, limit)
        return None if found is None else str(found)

    def prune_ephemerals(self, limit: int) -> int:
        """Remove at most ``limit`` ephemeral messages that are older than a minute. Returns how many were removed."""
        return int(self._one("select pgbus._prune_ephemerals(%s)", limit))
