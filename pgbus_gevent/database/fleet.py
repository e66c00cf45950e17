"""The roll of the workers on all machines, in the table ``pgbus.workers``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from .patience import READ, Patience
from .pool import Pool

EXPIRES = 20.0
"""Seconds of silence after which a worker is taken for dead."""


class Answer(NamedTuple):
    """The answer to a worker's beat: the database's time in Unix seconds, the pace of the doorbell in seconds, and how many
    workers live, as counted within the last seconds."""

    now: float
    pace: float
    workers: int


class Worker(NamedTuple):
    """A worker's last report. ``age`` is the seconds since it started, ``silent`` the seconds since the report."""

    id: str
    host: str
    pid: int
    age: float
    silent: float
    facts: Mapping[str, Any]


_BEAT = """
select b.instant, b.pause, b.workers
from pgbus._beat(%(id)s, %(host)s, %(pid)s, %(started_at)s::float8, %(facts)s::jsonb) b
"""

_ALL = """
select w.id, w.host, w.pid, extract(epoch from clock_timestamp() - w.started_at), extract(epoch from clock_timestamp() - w.seen_at),
       {facts}
from pgbus.workers w
where w.seen_at > clock_timestamp() - make_interval(secs => %(expires)s){condition}
order by w.host, w.pid
"""
_WORKERS = _ALL.format(facts="w.facts - 'samples'", condition="")
_ALL_SAMPLES = _ALL.format(facts="w.facts", condition="")
# The host too, so that the facts of other hosts, which are large, need not be looked at.
_SAMPLES = _ALL.format(facts="w.facts", condition=" and w.host = %(host)s and w.facts->>'service' = %(service)s")


COUNTED = 10_000
"""The most messages of one stream that are counted, because counting reads an index entry for each."""


class Latest(NamedTuple):
    """A stored message as an operator sees it. ``at`` is in Unix seconds, ``size`` in bytes; ``data`` is its beginning."""

    id: int
    at: float
    event: str | None
    size: int
    data: str
    visible_to: str | None
    exclude: str | None


# Neither octet_length() nor left() fetches the whole of a large text. The limit is a subselect to hide it from the planner.
_LATEST = """
select m.msg_id, date_part('epoch', m.created_at), m.event, octet_length(m.data), left(m.data, %(letters)s), m.visible_to, m.exclude
from pgbus.messages m
where m.stream = %(stream)s
      and m.msg_id > coalesce((select h.msg_id from pgbus.horizons h where h.stream = %(stream)s), 0)
order by m.msg_id desc
limit (select %(limit)s)
"""


class Listed(NamedTuple):
    """A stream with messages. ``more`` says that it has more messages than were counted."""

    stream: str
    messages: int
    more: bool
    last_id: int
    last_at: datetime


# From stream to stream, down the names: each step lands on a newest message, which is almost always still there.
_STREAMS = """
with recursive walk(stream) as (
  (select m.stream from pgbus.messages m order by m.stream desc, m.msg_id desc limit 1)
  union all
  select (select m.stream from pgbus.messages m where m.stream < w.stream order by m.stream desc, m.msg_id desc limit 1)
  from walk w where w.stream is not null
)
select w.stream, c.messages, n.msg_id, n.created_at
from walk w
cross join lateral (
  select m.msg_id, m.created_at from pgbus.messages m where m.stream = w.stream order by m.msg_id desc limit 1
) n
cross join lateral (
  select count(*) as messages from (
    select from pgbus.messages m
    where m.stream = w.stream
          and m.msg_id > coalesce((select h.msg_id from pgbus.horizons h where h.stream = w.stream), 0)
    order by m.msg_id desc limit %s) x
) c
order by w.stream
"""


class Fleet:
    """Reads and writes the roll on connections of a pool. Raises only the exceptions of :mod:`pgbus_gevent.errors`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._patience = Patience(READ, waits=True)

    def _all(self, statement: str, parameters: Any) -> list[tuple[Any, ...]]:
        with self._pool.connection(self._patience) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def beat(self, id: str, host: str, pid: int, started_at: float, facts: Mapping[str, Any]) -> Answer:
        """Report that a worker lives. ``started_at`` is in Unix seconds; ``facts`` become JSON."""
        report = {"id": id, "host": host, "pid": pid, "started_at": started_at, "facts": json.dumps(facts)}
        now, pause, workers = self._all(_BEAT, report)[0]
        return Answer(float(now), pause / 1000, int(workers))

    def leave(self, id: str) -> None:
        """Remove a worker that ends."""
        self._all("select pgbus._leave_roll(%s)", (id,))

    def workers(self) -> list[Worker]:
        """Return the workers that live, by host and process id. Their facts are without their metrics."""
        return self._workers(_WORKERS)

    def with_samples(self, host: str | None = None, service: str | None = None) -> list[Worker]:
        """Return the workers that live, with their metrics among their facts: those of a service on one host, or all."""
        return self._workers(_ALL_SAMPLES if host is None else _SAMPLES, host=host, service=service)

    def _workers(self, statement: str, **parameters: str | None) -> list[Worker]:
        rows = self._all(statement, {"expires": EXPIRES, **parameters})
        return [Worker(id, host, pid, float(age), float(silent), facts) for id, host, pid, age, silent, facts in rows]

    def streams(self) -> list[Listed]:
        """Return the streams that have messages, by name. At most :data:`COUNTED` messages of each are counted."""
        rows = self._all(_STREAMS, (COUNTED + 1,))
        return [Listed(str(name), min(count, COUNTED), count > COUNTED, int(id), at) for name, count, id, at in rows]

    def latest(self, stream: str, limit: int, letters: int) -> list[Latest]:
        """Return the newest ``limit`` messages of a stream, newest first, with at most ``letters`` characters of their data."""
        return [Latest(*row) for row in self._all(_LATEST, {"stream": stream, "limit": limit, "letters": letters})]

    def retained(self, stream: str) -> dict[str, Any]:
        """Return how many messages of a stream are kept (``count``), and whether there are ``more`` than were counted."""
        count = int(
            self._all(
                "select count(*) from (select 1 from pgbus.messages where stream = %s limit %s) m",
                (stream, COUNTED + 1),
            )[0][0]
        )
        return {"count": min(count, COUNTED), "more": count > COUNTED}

    def beat_many(self, beats: Mapping[str, Mapping[str, Any]]) -> tuple[set[str], float, int]:
        """Report that several workers live, with their facts by id. Return the ids of those that were on the roll, the pace in
        seconds, and the number of workers."""
        statement = "select b.taken, b.pause, b.workers from pgbus._beat_many(%s::jsonb) b"
        taken, pause, workers = self._all(statement, (json.dumps({id: dict(facts) for id, facts in beats.items()}),))[0]
        return set(taken), pause / 1000, int(workers)

    def redis_names(self) -> tuple[str, str]:
        """Return what the names in Redis are made from: a secret of the database, and its generation."""
        secret, generation = self._all("select n.secret, n.generation from pgbus._redis_names() n", ())[0]
        return str(secret), str(generation)
