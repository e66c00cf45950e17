"""The steward's statements: the election, and the messages that did not ring."""

from __future__ import annotations

from typing import Any

from ..core.rows import DutyAnswer
from .patience import LIFE, Patience
from .pool import Pool

_DUTY = """
select d.leads, d.age, d.rings, d.company
from pgbus._duty(%(me)s, %(may_lead)s, %(lease)s, %(hears)s, %(rings)s) d
"""


class Stewardship:
    """Sends these statements on connections of a pool. Raises only the exceptions of :mod:`pgbus_gevent.errors`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def _all(self, statement: str, parameters: Any) -> list[tuple[Any, ...]]:
        with self._pool.connection(Patience(LIFE, waits=True)) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall()

    def duty(self, me: int, *, may_lead: bool, lease: float, hears: bool, rings: bool) -> DutyAnswer:
        """Ask who is the steward. If the worker ``me`` is, this renews its lease; if nobody is and it ``may_lead``, it is elected.

        ``lease`` is after how many seconds without a sign the steward is replaced. ``hears`` says whether this worker hears
        notifications, and ``rings`` whether it rings for messages that did not ring, if it is the steward.
        """
        question = {"me": me, "may_lead": may_lead, "lease": round(lease * 1000), "hears": hears, "rings": rings}
        leads, age, rings, company = self._all(_DUTY, question)[0]
        return DutyAnswer(leads, None if age is None else age / 1000, rings, company)

    def leave_duty(self, me: int) -> None:
        """End the lease of the worker ``me``, if it is the steward."""
        self._all("select pgbus._leave_duty(%s)", (me,))
