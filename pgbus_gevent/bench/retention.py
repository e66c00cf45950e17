"""The scenario about long runs: messages come steadily and are kept for a minute. Does anything grow?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from statistics import median
from time import monotonic, sleep
from typing import Any, NamedTuple

import psycopg2

from ..database import Database
from ..settings.table import Settings
from .lab import Run, Server
from .scenarios import Metrics, Rows, Scenario

RATE = 1000.0
_PUBLISHERS = 8
_RETENTION, _STEP, _WARM_UP = 60.0, 10.0, 300.0
_ASKED = 20  # reads of each kind for one sample
_PAGE = 500

_SIZES = """
select pg_table_size('pgbus.messages') / 1e6, pg_indexes_size('pgbus.messages') / 1e6,
       (select n_live_tup from pg_stat_user_tables where relid = 'pgbus.messages'::regclass),
       (select n_dead_tup from pg_stat_user_tables where relid = 'pgbus.messages'::regclass),
       (select pg_table_size('pgbus.horizons') / 1e3)
"""


class Sample(NamedTuple):
    """The figures at one time. ``…_batches`` and ``…_seconds`` count from the start of the server."""

    published_per_second: float
    table_mb: float
    index_mb: float
    horizons_kb: float
    rows: float
    dead_rows: float
    page_ms: float
    last_id_ms: float
    prune_batches: float
    prune_seconds: float


def retention(run: Run) -> Rows:
    seconds = run.seconds(1800.0)
    # A shorter run has a shorter retention and shorter steps.
    kept, step = max(1.0, min(_RETENTION, seconds / 5)), min(_STEP, seconds / 6)
    streams = [f"bench:{n}" for n in range(run.clients(200))]
    server = run.serve(retention=kept, prune_interval=kept / 6)
    database = Database(Settings(database_url=run.database_url))
    samples = []
    try:
        began = monotonic()
        while monotonic() - began < seconds:
            samples.append(_step(run, server, database, streams, step))
        warm = samples[int(len(samples) * min(_WARM_UP / seconds, 0.4)) :]
    finally:
        database.close()
        _empty(run)
    third = max(1, len(warm) // 3)
    first, last = _medians(warm[:third]), _medians(warm[-third:])
    ratio = {name: last[name] / first[name] for name in last if first[name]}
    return {"first third": first, "last third": last, "ratio": ratio}


def _step(run: Run, server: Server, database: Database, streams: Sequence[str], step: float) -> Sample:
    """Publish for ``step`` seconds, and take a sample in the middle."""
    messages = max(1, round(RATE * step / _PUBLISHERS))
    jobs = [
        {**server.job(streams[n::_PUBLISHERS] or streams, messages, rate=RATE / _PUBLISHERS), "delay": n / RATE}
        for n in range(_PUBLISHERS)
    ]
    publisher = run.program("publisher")
    publisher.send(do="publish", jobs=jobs)
    sleep(step / 2)
    with closing(psycopg2.connect(run.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute(_SIZES)
        table, index, rows, dead, horizons = map(float, cursor.fetchone() or ())
    asked = [streams[n * len(streams) // _ASKED] for n in range(_ASKED)]
    queries = database.queries
    page = _time(lambda stream: queries.pages([(stream, 0)], limit=_PAGE, size=1_000_000), asked)
    last_id = _time(queries.last_id, asked)
    counters = server.counters()
    published = publisher.receive(step + 120.0)
    return Sample(
        published["published"] / published["seconds"],
        *(table, index, horizons, rows, dead, page, last_id, counters["prune_batches"], counters["prune_seconds"]),
    )


def _time(ask: Callable[[str], Any], streams: Sequence[str]) -> float:
    """Return the median duration, in milliseconds, of ``ask`` for one stream."""
    found = []
    for stream in streams:
        began = monotonic()
        ask(stream)
        found.append((monotonic() - began) * 1000)
    return median(found)


def _medians(samples: Sequence[Sample]) -> Metrics:
    found = {
        name: median(getattr(sample, name) for sample in samples)
        for name in Sample._fields
        if name not in ("prune_batches", "prune_seconds")
    }
    batches = samples[-1].prune_batches - samples[0].prune_batches
    found["prune_ms"] = (samples[-1].prune_seconds - samples[0].prune_seconds) / batches * 1000 if batches else 0.0
    return found


def _empty(run: Run) -> None:
    with closing(psycopg2.connect(run.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("delete from pgbus.messages where stream like 'bench:%'")
        connection.commit()


RETENTION = Scenario(
    "retention",
    "1,000 messages a second, each kept for a minute, for half an hour: does anything grow? (runs only if it is named)",
    retention,
    (
        *("published_per_second", "rows", "dead_rows", "table_mb", "index_mb", "horizons_kb"),
        *("page_ms", "last_id_ms", "prune_ms"),
    ),
    usual=False,
)
