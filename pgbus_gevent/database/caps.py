"""The statements for caps that hold over all workers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..core.fleet_counts import Report, Sum
from .patience import READ, Patience
from .pool import Pool

_REPORT = """
select c.instant, c.summed_at, c.known, c.totals, c.above, c.kept
from pgbus._report_caps(%s, %s::bigint[], %s::integer[], %s::integer[], %s, %s) c
"""


class CapQueries:
    """Sends these statements on connections of a pool. Raises only the exceptions of :mod:`pgbus_gevent.errors`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._patience = Patience(READ, waits=True)

    def _all(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self._pool.connection(self._patience) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall()

    def report(self, worker: str, report: Report, *, pause: float) -> Sum:
        """Replace the report of a worker. Returns the last sum of all reports, which is at most ``pause`` seconds old."""
        # As texts: PostgreSQL would parse each number of an ARRAY[…] as an expression, which takes several times as long.
        arrays = (f"{{{','.join(map(str, column))}}}" for column in (report.keys, report.counts, report.caps))
        ((instant, summed_at, known, totals, above, kept),) = self._all(_REPORT, worker, *arrays, pause, report.grew)
        return Sum(
            instant,
            summed_at,
            dict(zip(known, totals, strict=True)),
            dict(zip(above, kept, strict=True)),
        )

    def leave(self, worker: str) -> None:
        """Remove the report of a worker that ends."""
        self._all("select pgbus._leave_caps(%s)", worker)

    def others(self, workers: Iterable[str]) -> bool:
        """Return whether a worker other than these has a report that counts."""
        ((found,),) = self._all("select pgbus._other_cap_reports(%s::text[])", list(workers))
        return bool(found)
