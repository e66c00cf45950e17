"""The steward's statements: the election, and the messages that did not ring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.rows import DutyAnswer, DutyQuestion, IdRow, IdTailRows
from .patience import LIFE, READ, Patience
from .pool import Pool

_ANSWER = """pgbus._duty(%(me)s, %(may_lead)s, %(lease)s, %(hears)s, %(rings)s, %(rank)s) d"""

_DUTY = f"select d.leads, d.age, d.rings, d.company from {_ANSWER}"  # nosec B608 # a constant

# This row renews the lease, and describes the snapshot of the statement. Ids above the last one that was drawn are left out:
# such a message was written by hand, and a tail that moved up to it would miss all others.
_FIRST = f"""
select 0, d.leads, d.age, d.rings, d.company, pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
       (select i.last_value from pgbus.message_ids i), case when %(bind)s then pg_current_xact_id()::text::bigint end,
       null::bigint, null::text
from {_ANSWER}"""  # nosec B608 # a constant

# Left out if there are no holes, which is most of the time: planning it takes a quarter of the whole.
_IN_HOLES = """
union all (
  select 1, null, null, null, null, null, null, null, m.msg_id, m.stream
  from unnest(%(lows)s::bigint[], %(highs)s::bigint[]) as h(low, high)
  cross join lateral (
    select m.msg_id, m.stream from pgbus.messages m
    where m.msg_id + 0 between h.low and h.high order by m.msg_id + 0 limit %(limit)s
  ) m
  limit %(limit)s
)"""

_REST = """
union all (
  select 2, null, null, null, null, null, null, null, m.msg_id, m.stream from pgbus.messages m
  where {range} m.msg_id + 0 <= (select i.last_value from pgbus.message_ids i)
  order by m.msg_id + 0 {order} limit %(limit)s
)"""
_ABOVE = _REST.format(range="m.msg_id + 0 > %(above)s and", order="")
_NEWEST = _REST.format(range="", order="desc")


def _answer(leads: bool, age: int | None, rings: bool, company: bool) -> DutyAnswer:
    return DutyAnswer(leads, None if age is None else age / 1000, rings, company)


class Stewardship:
    """Sends these statements on connections of a pool. Raises only the exceptions of :mod:`pgbus_gevent.errors`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._tails = Patience(READ)
        self._rings = Patience(READ)

    @property
    def answered(self) -> float:
        """The time, on the monotonic clock, at which the database last answered a statement of the pool."""
        return self._pool.answered

    def _all(self, statement: str, parameters: Any, patience: Patience | None = None) -> list[tuple[Any, ...]]:
        patience = patience or Patience(LIFE, waits=True)
        with self._pool.connection(patience) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall()

    def duty(self, question: DutyQuestion) -> DutyAnswer:
        """Ask who is the steward. If it is the worker that asks, this renews its lease."""
        return _answer(*self._all(_DUTY, _parameters(question))[0])

    def leave_duty(self, me: int) -> None:
        """End the lease of the worker ``me``, if it is the steward."""
        self._all("select pgbus._leave_duty(%s)", (me,))

    def ids(
        self,
        question: DutyQuestion,
        above: int | None,
        holes: Sequence[tuple[int, int]],
        *,
        bind: bool,
        limit: int,
    ) -> IdTailRows:
        """Ask the same, and for messages of all streams: at most ``limit`` in ``holes``, ranges of ids with both ends, and the
        first ``limit`` with an id above ``above``, or the newest ``limit`` if it is None. ``bind`` asks for a new transaction id.
        """
        parameters = {
            **_parameters(question),
            "above": above,
            "lows": [low for low, _ in holes],
            "highs": [high for _, high in holes],
            "bind": bind,
            "limit": limit,
        }
        statement = _FIRST + (_IN_HOLES if holes else "") + (_NEWEST if above is None else _ABOVE)
        first, *rows = self._all(statement, parameters, self._tails)
        found: list[list[IdRow]] = [[], []]
        for kind, *_, id, stream in rows:
            found[kind - 1].append(IdRow(id, stream))
        if above is None:
            found[1].reverse()
        _, leads, age, rings, company, ended_below, last, bound, _, _ = first
        return IdTailRows(_answer(leads, age, rings, company), ended_below, last, bound, *found)

    def ring_for(self, ids: Sequence[int]) -> bool:
        """Ring for messages, by their ids. Returns False if the notification queue is too full."""
        return bool(self._all("select pgbus._ring_for(%s::bigint[])", (list(ids),), self._rings)[0][0])

    def ring_everybody(self) -> bool:
        """Have every worker look at all its streams. Returns False if the notification queue is too full."""
        return bool(self._all("select pgbus._ring_everybody()", None, self._rings)[0][0])

    def wakes(self, ids: Sequence[int], *, size: int) -> list[tuple[int, str, str]]:
        """Return (id, stream, wake) of messages, by their ids; the wake has the content if it has at most ``size`` bytes then."""
        return [
            (int(id), str(stream), str(wake))
            for id, stream, wake in self._all(
                "select w.msg_id, w.stream, w.wake from pgbus._wakes(%s::bigint[], %s) w",
                (list(ids), size),
                self._rings,
            )
        ]


def _parameters(question: DutyQuestion) -> dict[str, Any]:
    return {**question._asdict(), "lease": round(question.lease * 1000)}
