"""The roll of the workers, of all hosts: see sql/0006_workers.sql."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from .patience import READ, Patience
from .pool import Pool

EXPIRES = 20.0
"""Seconds of silence after which a worker is taken for dead."""


class Answer(NamedTuple):
    """What the database answers who tells that it lives: its time, in Unix seconds, and the least distance of two rings of the
    doorbell, in seconds."""

    now: float
    pace: float


class Worker(NamedTuple):
    """What a worker last told of itself; ``age`` and ``silent`` are seconds, of its life and since it told."""

    id: str
    host: str
    pid: int
    age: float
    silent: float
    facts: Mapping[str, Any]


_BEAT = """
select b.instant, b.pause from pgbus.beat(%(id)s, %(host)s, %(pid)s, %(started_at)s::float8, %(facts)s::jsonb) b
"""

_ALL = """
select w.id, w.host, w.pid, extract(epoch from clock_timestamp() - w.started_at), extract(epoch from clock_timestamp() - w.seen_at),
       case when %s then w.facts else w.facts - 'samples' end
from pgbus.workers w
where w.seen_at > clock_timestamp() - make_interval(secs => %s)
order by w.host, w.pid
"""


COUNTED = 10_000
"""Messages of one stream that are counted at the most: each is an entry of the index that has to be read."""


class Fleet:
    """On connections of a pool. Raises the exceptions of :mod:`pgbus_gevent.errors` alone."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._patience = Patience(READ)

    def _all(self, statement: str, parameters: Any) -> list[tuple[Any, ...]]:
        with self._pool.connection(self._patience) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def beat(self, id: str, host: str, pid: int, started_at: float, facts: Mapping[str, Any]) -> Answer:
        """Tell that a worker lives, which was ``started_at``, in Unix seconds."""
        told = {"id": id, "host": host, "pid": pid, "started_at": started_at, "facts": json.dumps(facts)}
        now, pause = self._all(_BEAT, told)[0]
        return Answer(float(now), pause / 1000)

    def leave(self, id: str) -> None:
        """A worker ends."""
        self._all("select pgbus.leave_roll(%s)", (id,))

    def workers(self, *, samples: bool = False) -> list[Worker]:
        """Those that live, as far as they told, by host and process id; with ``samples``, also all that they count."""
        rows = self._all(_ALL, (samples, EXPIRES))
        return [Worker(id, host, pid, float(age), float(silent), facts) for id, host, pid, age, silent, facts in rows]

    def retained(self, stream: str) -> dict[str, Any]:
        """How many messages of a stream are kept (``count``), and whether there are ``more`` than were counted."""
        count = int(
            self._all(
                "select count(*) from (select 1 from pgbus.messages where stream = %s limit %s) m",
                (stream, COUNTED + 1),
            )[0][0]
        )
        return {"count": min(count, COUNTED), "more": count > COUNTED}
