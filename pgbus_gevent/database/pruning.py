"""The statements of retention: whose turn it is, what is removed, what is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..errors import DatabaseError
from .pool import Pool

_FORBIDDEN = ("42501", "25006")  # insufficient_privilege, read_only_sql_transaction


class Pruned(NamedTuple):
    """What one statement removed from a stream: so many messages, up to the id ``horizon``."""

    stream: str
    removed: int
    horizon: int


class Pruning:
    """On connections of a pool, one transaction for each statement. Raises the exceptions of :mod:`pgbus_gevent.errors`.

    ``keep`` tells of each stream how long its messages are kept, in seconds, and how many of them, None for any number.
    """

    def __init__(self, pool: Pool, keep: Callable[[str], tuple[float, int | None]]) -> None:
        self._pool = pool
        self._keep = keep

    def _one(self, statement: str, *parameters: Any) -> Any:
        return self._all(statement, *parameters)[0][0]

    def _all(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        try:
            with self._pool.connection() as connection, connection.cursor() as cursor:
                cursor.execute(statement, parameters)
                return cursor.fetchall()
        except DatabaseError as error:
            if error.sqlstate in _FORBIDDEN:
                raise DatabaseError(
                    f"this role may not remove messages ({error}): grant it what docs/retention.md says, or leave it to"
                    " others and set prune_interval=0",
                    error.sqlstate,
                ) from error
            raise

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
        found = self._one("select pgbus.forget(%s, make_interval(secs => %s), %s)", below, unused, limit)
        return None if found is None else str(found)

    def prune_ephemerals(self, limit: int) -> int:
        """Remove ephemeral messages that are older than a minute, at most ``limit``; how many."""
        return int(self._one("select pgbus.prune_ephemerals(%s)", limit))
