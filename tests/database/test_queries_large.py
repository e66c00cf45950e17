"""No statement of the package reads more of a large table than it needs, with or without statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from database_parts import opened_sessions

from pgbus_gevent.core.rows import OpenQuestion
from pgbus_gevent.database.pruning import Pruning
from pgbus_gevent.database.queries import Publication, Queries
from pgbus_gevent.settings.retention import Retention, Rule
from pgbus_gevent.testing.databases import TestDatabases

LOTS = 1_000_000
"""A limit of bytes that no page here reaches."""


class OneConnection:
    """The part of a pool that Queries needs. It always lends the same connection, so that its counters can be read."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @contextmanager
    def connection(self, *_: object) -> Iterator[Any]:
        yield self._connection


@pytest.fixture(scope="module", params=["known", "unknown"])
def large(request: pytest.FixtureRequest, pgbus_databases: TestDatabases) -> Iterator[str]:
    """200,000 messages, half of them in one stream, with or without the planner's statistics."""
    url = pgbus_databases.make()
    rows = "insert into pgbus.messages (stream, msg_id, prev_id, data) select {}, n, n - 1, repeat('x', 100) from {}"
    with opened_sessions(url) as opener:
        sql = opener()
        sql.run(rows.format("'small ' || n % 1999", "generate_series(1, 200000, 2) n"))
        if request.param == "unknown":
            sql.run("analyze pgbus.messages")
        sql.run(rows.format("'large'", "generate_series(2, 200000, 2) n"))
        if request.param == "known":
            sql.run("analyze pgbus.messages")
    yield url
    pgbus_databases.drop(url)


SMALL = [f"small {n}" for n in range(1999)]


@pytest.mark.parametrize(
    "ask",
    [
        lambda asking: asking.pages([("large", 0)], limit=500, size=LOTS),
        lambda asking: asking.pages([("large", 199_000)], limit=500, size=LOTS),
        lambda asking: asking.pages([(name, 0) for name in SMALL[:64]], limit=500, size=LOTS),
        lambda asking: asking.openings([OpenQuestion("large", 0, 100)], limit=1000, size=LOTS),
        lambda asking: asking.openings([OpenQuestion("large", None, None)], limit=1000, size=LOTS),
        lambda asking: asking.openings([OpenQuestion(name, 0, 3) for name in SMALL[:64]], limit=500, size=LOTS),
        lambda asking: asking.moved({"large": 199_999}),
        lambda asking: asking.moved(dict.fromkeys(SMALL, 0)),
        lambda asking: asking.moved(dict.fromkeys([*SMALL, *(f"none {n}" for n in range(8000))], 200_000)),
        lambda asking: asking.inventory([("large", 199_000, 199_999), *((name, 0, 10**6) for name in SMALL[:100])]),
        lambda asking: asking.tail(199_900, [], None, limit=1000),
        lambda asking: asking.tail(199_900, list(range(100)), SMALL[:200], limit=1000),
        lambda asking: asking.last_id("large"),
        lambda asking: asking.last_id("none"),
        lambda asking: asking.read_after("large", 100, 500),
        lambda asking: asking.broadcast("large", "x", Publication()),
        lambda asking: asking.broadcast("large", "x", Publication(key="k")),
        lambda asking: asking.broadcast_many("large", ["x"] * 10, Publication()),
    ],
    ids=[
        "page from 0", "page near the head", "pages of 64", "opening", "opening of new", "openings of 64", "moved",
        "moved of 1999", "moved of 10,000", "inventory", "tail", "tail and holes",
        "last_id", "last_id of none", "read_after", "broadcast", "with a key",
        "many",
    ],
)  # fmt: skip
def test_no_statement_reads_the_whole_table(ask: Any, large: str) -> None:
    with opened_sessions(large) as opener:
        sql = opener()
        sql.connection.autocommit = False
        ask(Queries(OneConnection(sql.connection)))  # type: ignore[arg-type]
        scans, rows = sql.run(
            "select seq_scan, idx_tup_fetch + seq_tup_read from pg_stat_xact_user_tables"
            " where relid = 'pgbus.messages'::regclass"
        )[0]
        sql.connection.rollback()
    assert scans == 0
    assert rows < 10_000


def test_a_page_near_the_head_reads_no_more_than_it_gives(large: str) -> None:
    with opened_sessions(large) as opener:
        sql = opener()
        sql.connection.autocommit = False
        asking = Queries(OneConnection(sql.connection))  # type: ignore[arg-type]
        assert len(asking.pages([("large", 0)], limit=50, size=LOTS)[0].rows) == 50
        assert len(asking.openings([OpenQuestion("large", 0, None)], limit=50, size=LOTS)[0].rows) == 50
        fetched = sql.one("select idx_tup_fetch from pg_stat_xact_user_tables where relid = 'pgbus.messages'::regclass")
        sql.connection.rollback()
    assert fetched < 300


@pytest.mark.parametrize(
    ("kept", "ask", "most"),
    [
        ((3600.0, None), lambda pruning: pruning.prune(SMALL[:200], 1000), 500),
        ((0.001, None), lambda pruning: pruning.prune(SMALL[:200], 1000), 30_000),
        ((0.001, None), lambda pruning: pruning.prune(["large", *SMALL[:199]], 1000), 30_000),
        ((3600.0, None), lambda pruning: pruning.prune(["large"], 1000), 10),
        ((3600.0, 100), lambda pruning: pruning.prune(["large", *SMALL[:199]], 1000), 20_000),
        ((3600.0, None), lambda pruning: pruning.below(None, 200), 500),
        ((3600.0, None), lambda pruning: pruning.turn(1.0, 200), 500),
        ((3600.0, None), lambda pruning: pruning.forget(None, 0.001, 1000), 2000),
        ((3600.0, None), lambda pruning: pruning.forget("small 5", 0.001, 1000), 2000),
    ],
    ids=[
        "nothing",
        "all of 200",
        "of a large one",
        "nothing of a large one",
        "by count",
        "walk",
        "turn",
        "forget",
        "forget on",
    ],
)
def test_no_pruning_reads_the_whole_table(kept: tuple[float, int | None], ask: Any, most: int, large: str) -> None:
    with opened_sessions(large) as opener:
        sql = opener()
        sql.connection.autocommit = False
        sql.run("insert into pgbus.horizons select 'small ' || n, 0 from generate_series(1, 1998) n")
        sql.run("insert into pgbus.horizons select 'empty ' || n, 1 from generate_series(1, 20000) n")
        sql.run("analyze pgbus.horizons")
        before = sql.run("select relname, seq_scan from pg_stat_xact_user_tables where schemaname = 'pgbus'")
        ask(Pruning(OneConnection(sql.connection), Retention(kept[0], [Rule("*", *kept)])))  # type: ignore[arg-type]
        scans = dict(sql.run("select relname, seq_scan from pg_stat_xact_user_tables where schemaname = 'pgbus'"))
        rows = sql.one(
            "select idx_tup_fetch + seq_tup_read from pg_stat_xact_user_tables where relid = 'pgbus.messages'::regclass"
        )
        sql.connection.rollback()
    assert scans["messages"] == dict(before).get("messages", 0)
    assert scans["horizons"] == dict(before)["horizons"]
    assert rows <= most
