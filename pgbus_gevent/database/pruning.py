"""The statements of retention: whose turn it is, what is removed, what is forgotten."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import DatabaseError
from ..settings.retention import Retention, keep_longest
from .patience import CHANGE, Patience
from .pool import Pool

_NO_RIGHT = "42501"  # insufficient_privilege
_READ_ONLY = "25006"  # read_only_sql_transaction


class Pruned(NamedTuple):
    """What one statement removed from a stream: so many messages, up to the id ``horizon``."""

    stream: str
    removed: int
    horizon: int


class Stated(NamedTuple):
    """What a server told that it keeps; ``teller`` is one of those who told the same, by host and process id."""

    retention: Retention
    teller: str


_LATELY = 20.0  # seconds


def _read(statement: str, teller: str) -> Retention:
    try:
        return Retention.read(statement)
    except ValueError:
        raise DatabaseError(
            f"what {teller} keeps is told in a way that this release does not understand: {statement!r}; end that server, or"
            " delete the row from pgbus.retentions"
        ) from None


class Pruning:
    """On connections of a pool, one transaction for each statement. Raises the exceptions of :mod:`pgbus_gevent.errors`.

    ``retention`` is what this process keeps. Of what the servers of the database told that they keep, the longest counts, as far
    as :meth:`tell` or :meth:`ask` have come to know of it.
    """

    def __init__(self, pool: Pool, retention: Retention) -> None:
        self._pool = pool
        self.retention = retention
        self._others: list[Stated] = []
        self._patience = Patience(CHANGE)

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
                    f"the server is a standby, or takes no changes ({error}): after a failover this ends with the promotion;"
                    " where it stays so, give the primary's URL",
                    error.sqlstate,
                ) from error
            if error.sqlstate == _NO_RIGHT:
                raise DatabaseError(
                    f"this role may not remove messages ({error}): grant it what docs/retention.md says, or leave it to"
                    " others and set prune_interval=0",
                    error.sqlstate,
                ) from error
            raise

    def tell(self, holds: float) -> list[Stated]:
        """Tell the others what this server keeps, which counts for ``holds`` seconds from now; what :meth:`ask` answers."""
        # The table is written only where that makes a difference, as every worker comes by every few seconds.
        if self._ask() < holds - _LATELY:
            teller = f"{socket.gethostname()} pid {os.getpid()}"
            self._one(
                "select pgbus.tell_retention(%s, %s, make_interval(secs => %s))",
                self.retention.statement,
                teller,
                holds,
            )
        return self._others

    def ask(self) -> list[Stated]:
        """What servers keep that is not what we keep; it counts from now on. Who removes has to know it."""
        self._ask()
        return self._others

    def told(self) -> list[Stated]:
        """What servers keep, one entry for all that keep the same."""
        rows = self._all("select r.kept, r.teller from pgbus.told_retentions() r")
        return [Stated(_read(kept, teller), teller) for kept, teller in rows]

    def _ask(self) -> float:
        """For how long what we keep counts already."""
        ours = self.retention.statement
        rows = self._all("select r.kept, r.teller, r.holds from pgbus.told_retentions() r")
        self._others = [Stated(_read(kept, teller), teller) for kept, teller, _ in rows if kept != ours]
        return max((float(left) for kept, _, left in rows if kept == ours), default=0.0)

    def _keep(self, stream: str) -> tuple[float, int | None]:
        return keep_longest([self.retention, *(other.retention for other in self._others)], stream)

    def turn(self, every: float, limit: int) -> list[str] | None:
        """The next ``limit`` streams of the round that all workers share; None where it is not the time, or not our turn.

        Fewer than ``limit`` are the last of a round; the next one begins ``every`` seconds later.
        """
        found = self._one("select pgbus.prune_turn(make_interval(secs => %s), %s)", every, limit)
        return None if found is None else list(found)

    def below(self, name: str | None, limit: int) -> list[str]:
        """The next ``limit`` streams that have messages, down from ``name``, or from the highest."""
        return [row[0] for row in self._all("select * from pgbus.streams_below(%s, %s)", name, limit)]

    def prune(self, streams: Sequence[str], limit: int) -> list[Pruned]:
        """Remove from these streams what need not be kept, at most ``limit`` messages in all, oldest first.

        Waits for another transaction that removes. Where ``limit`` messages were removed, there may be more.
        """
        kept = [self._keep(stream) for stream in streams]
        rows = self._all(
            "select * from pgbus.prune(%s::text[], array(select make_interval(secs => s) from unnest(%s::float8[])"
            " with ordinality as a(s, n) order by n), %s::bigint[], %s)",
            *(list(streams), [age for age, _ in kept], [count for _, count in kept], limit),
        )
        return [Pruned(*row) for row in rows]

    def forget(self, below: str | None, unused: float, limit: int) -> str | None:
        """Forget streams without messages for ``unused`` seconds, among ``limit`` down from ``below``; where to go on."""
        unused = max([unused, *(other.retention.forget_after for other in self._others)])
        found = self._one("select pgbus.forget(%s, make_interval(secs => %s), %s)", below, unused, limit)
        return None if found is None else str(found)

    def prune_ephemerals(self, limit: int) -> int:
        """Remove ephemeral messages that are older than a minute, at most ``limit``; how many."""
        return int(self._one("select pgbus.prune_ephemerals(%s)", limit))
