"""No statement costs more as the table grows. Every statement of the package, and in our functions, is explained as it runs.

auto_explain gives the plan of each, with the pages that it touched. A statement that touches many pages walks through the table.
"""

from __future__ import annotations

import inspect
import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from database_parts import Session, opened_sessions

from pgbus_gevent.core.fleet_counts import Report
from pgbus_gevent.database import batch, using
from pgbus_gevent.database.caps import CapQueries
from pgbus_gevent.database.checks import Checks
from pgbus_gevent.database.fleet import Fleet
from pgbus_gevent.database.operators import OperatorQueries
from pgbus_gevent.database.presence import PresenceQueries
from pgbus_gevent.database.pruning import Pruning
from pgbus_gevent.database.queries import OpenQuestion, Publication, Queries
from pgbus_gevent.database.session_settings import _ALWAYS
from pgbus_gevent.settings.retention import Retention
from pgbus_gevent.testing.databases import TestDatabases

MESSAGES = 40_000
MOST = 400
"""The most pages that one statement may touch. The table has many times this number, each index more than half of it."""

OURS = {name: _ALWAYS[name] for name in ("enable_seqscan", "jit")}
"""The settings of our sessions for the planner. Publishers in SQL have PostgreSQL's defaults."""

Ask = Callable[[Any], object]


class OneConnection:
    """A replacement for a pool."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @contextmanager
    def connection(self, *_: object, **__: object) -> Iterator[Any]:
        yield self._connection

    def ask(self, question: Callable[[Any], None]) -> None:
        question(self._connection)


BUSY, QUIET, NONE, PRUNED, GROWN = "s 1", "quiet", "none", "pruned", "grown"
EACH = [BUSY, QUIET, NONE, PRUNED, GROWN]
# The first append to a stream that was pruned empty steps over its removed rows until a vacuum, so that later statements need
# not look at the horizon. Later appends find the first one.
APPENDED = [BUSY, QUIET, NONE]
PUBLIC = Publication()

FROM_STREAM_TO_STREAM = {"turn", "below"}
"""These read a few pages for each stream, once in a round of the fleet, and step over removed rows until a vacuum."""
EACH_STREAM = 5

# All methods of each class of statements. None: it reads everything on purpose, or is not a statement.
STATEMENTS: dict[type[Any], dict[str, Ask | None]] = {
    Queries: {
        "transaction": None,
        "broadcast": lambda q: [q.broadcast(s, "x", PUBLIC) for s in APPENDED] + [q.broadcast(BUSY, "x", Publication(key="k"))],
        "broadcast_many": lambda q: [q.broadcast_many(s, ["x", "y"], PUBLIC, keys) for s in EACH for keys in (None, ["a", None])],
        "broadcast_ephemeral": lambda q: [q.broadcast_ephemeral(BUSY, size * "x", PUBLIC) for size in (1, 9000)],
        "broadcast_batch": lambda q: q.broadcast_batch([batch.Outgoing(s, "x") for s in APPENDED]),
        "last_ids": lambda q: q.last_ids(EACH),
        "last_id": lambda q: [q.last_id(s) for s in EACH],
        "read_after": lambda q: [q.read_after(s, after, 30) for s in EACH for after in (0, 2**50)],
        "ping": lambda q: q.ping(),
        "disconnect": lambda q: q.disconnect("ada"),
        "revocations": lambda q: q.revocations(q.revocations().mark, recent=True),
        "ring_control": lambda q: q.ring_control(),
        "moved": lambda q: [q.moved(dict.fromkeys(EACH, head)) for head in (0, 2**50)],
        "inventory": lambda q: q.inventory([(s, q.newest - 30, q.newest) for s in EACH]),
        "tail": lambda q: [q.tail(q.newest - 20, holes, EACH, limit=30) for holes in ([], [q.newest - 25, q.newest + 7])],
        "pages": lambda q: [q.pages([(s, after)], limit=30, size=10**6) for s in EACH for after in (0, q.newest - 20, 2**50)],
        "openings": lambda q: [
            q.openings([OpenQuestion(s, cursor, replay)], limit=30, size=10**6)
            for s in EACH for cursor, replay in ((None, None), (0, None), (0, 20), (2**50, None))
        ],
        "ephemerals": lambda q: q.ephemerals([1, 2, 3]),
    },
    Pruning: {
        "turn": lambda p: p.turn(5.0, 200),
        "tell": lambda p: p.tell(5.0),
        "ask": lambda p: p.ask(),
        "stated": lambda p: p.stated(),
        "below": lambda p: [p.below(None, 200), p.below("s 1", 5)],
        "prune": lambda p: [p.prune([s], 30) for s in EACH],
        "forget": lambda p: [p.forget(None, 0.001, 20), p.forget("s", 0.001, 20)],
        "overdue": lambda p: p.overdue(20, 1),
        "prune_ephemerals": lambda p: p.prune_ephemerals(20),
    },
    PresenceQueries: {
        "join": lambda p: p.join(BUSY, "ada", "{}", "c1", 30.0),
        "touch": lambda p: p.touch(BUSY, "ada", "c1", 30.0),
        "members": lambda p: p.members("here 7"),
        "count": lambda p: p.count("here 7"),
        "record": lambda p: p.record([(BUSY, "bob", "c2", "{}"), ("here 7", "cyd", "c3", None)], ttl=30.0, grace=1.0),
        "touch_many": lambda p: p.touch_many([(BUSY, "ada", "c1"), ("here 7", "m7", "c")], ttl=30.0),
        "leave": lambda p: p.leave(BUSY, "ada", "c1"),
        "flush": lambda p: p.flush(),
        "sweep": lambda p: p.sweep(),  # reads all members that are present, and nothing else
    },
    CapQueries: {
        "report": lambda c: c.report("w1", Report([1], [2], [3]), pause=2.0),
        "others": lambda c: c.others(["w1"]),
        "leave": lambda c: c.leave("w1"),
    },
    Fleet: {
        "beat": lambda f: f.beat("w1", "host", 1, 1.0, {}),
        "beat_many": lambda f: f.beat_many({"w1": {}, "w2": {}}),
        "workers": lambda f: f.workers(),
        "with_samples": lambda f: [f.with_samples(), f.with_samples("host", "service")],
        "leave": lambda f: f.leave("w1"),
        "retained": lambda f: f.retained(QUIET),
        "latest": lambda f: [f.latest(s, 20, 500) for s in EACH],
        "redis_names": lambda f: f.redis_names(),
        "streams": None,  # the command that lists all streams
    },
    Checks: {
        **dict.fromkeys(("server", "pooler", "encoding", "in_recovery", "connections", "clock_offset", "oldest_transaction",
                         "cluster", "position", "has_replayed",
                         "queue_usage", "rows"), None),  # reads none of our tables
        "schema_version": lambda c: c.schema_version(),
        "role": lambda c: c.role(),
        "missing_rights": lambda c: c.missing_rights("server", "publisher"),
        "ids": lambda c: c.ids(),  # reads all horizons, at the start of a server
        "squatters": lambda c: c.squatters(),
        "steward": lambda c: c.steward(),
    },
    OperatorQueries: {
        "open_session": lambda o: o.open_session(b"id", b"token", 60.0),
        "session_is_open": lambda o: o.session_is_open(b"id", b"token", 60.0),
        "end_session": lambda o: o.end_session(b"id"),
        "note_guess": lambda o: o.note_guess("operator", "127.0.0.1", 7, 60.0),
    },
}  # fmt: skip

BY_SQL = [
    *(f"pgbus.{call}" for s in APPENDED for call in (
        f"broadcast('{s}', 'x')", f"broadcast('{s}', 'x', key => 'k')", f"broadcast_on_commit('{s}', 'x')",
        f"broadcast_many('{s}', '{{a,b}}')")),
    *(f"pgbus.{call}" for s in EACH for call in (
        f"last_id('{s}')", f"read_after('{s}', 0, 30)", f"_head('{s}')", f"_jump('{s}', 0)")),
    "pgbus._horizon('s 1')", "pgbus.channels()", "pgbus._pace_rings()", "pgbus._tend_fleet()",
    "pgbus._leave_roll('w')", "pgbus._ring_control()",
    "pgbus.broadcast_on_commit('s 1', n.n) from (values ('1'), ('2')) n(n)",
]  # fmt: skip


def test_no_statement_is_forgotten() -> None:
    for kind, known in STATEMENTS.items():
        public = {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
        assert set(known) == public, kind
    assert using  # except last_ids, its statements only call our functions


@pytest.fixture(scope="module", params=[1, 20, 1000], ids=lambda count: f"{count} streams")
def filled(request: pytest.FixtureRequest, pgbus_databases: TestDatabases) -> Iterator[tuple[str, int]]:
    """Most messages are in a given number of streams; a few streams are quiet, and one was pruned empty."""
    url = pgbus_databases.make()
    with opened_sessions(url) as opener:
        sql = opener()
        for table in ("messages", "horizons", "presence", "revocations"):
            # Its snapshot would keep the test's own vacuum from removing rows.
            sql.run(f"alter table pgbus.{table} set (autovacuum_enabled = off)")
        sql.run("set session_replication_role = replica")
        sql.run(
            "insert into pgbus.messages (stream, msg_id, prev_id, data)"
            " select 's ' || 1 + n %% %s, pgbus_ids.start + n, null, repeat('x', 200)"
            " from generate_series(1, %s) n cross join (select last_value as start from pgbus.message_ids) pgbus_ids",
            request.param, MESSAGES,
        )  # fmt: skip
        sql.run("select setval('pgbus.message_ids', (select max(msg_id) from pgbus.messages))")
        sql.run("set session_replication_role = origin")
        sql.call("broadcast", QUIET, "x")
        sql.run("insert into pgbus.horizons select 'gone ' || n, n from generate_series(1, 20000) n")
        sql.run(
            "insert into pgbus.presence (stream, member, connection, metadata, joined_at, connected_at, expires_at)"
            " select 'here ' || n, 'm' || n, 'c', '{}', now(), now(), now() + interval '1 hour' from generate_series(1, 5000) n"
        )
        sql.run("insert into pgbus.revocations (owner, revoked_at)"
                " select 'o' || n, now() - interval '30 minutes' from generate_series(1, 5000) n")  # fmt: skip
    yield url, request.param
    pgbus_databases.drop(url)


def grow(url: str) -> None:
    """A stream with many messages that are not in the statistics yet."""
    with opened_sessions(url) as opener:
        opener().run(
            "insert into pgbus.messages (stream, msg_id, data)"
            " select %s, last_value - n, repeat('x', 300) from pgbus.message_ids cross join generate_series(1, 20000) n",
            GROWN,
        )


def prune_empty(url: str) -> None:
    """A stream whose many messages were removed but not vacuumed."""
    with opened_sessions(url) as opener:
        sql = opener()
        sql.run("delete from pgbus.messages where stream = %s", PRUNED)
        sql.run(
            "insert into pgbus.messages (stream, msg_id, data) select %s, last_value - n, repeat('x', 300)"
            " from pgbus.message_ids cross join generate_series(1, 20000) n",
            PRUNED,
        )
        sql.run("insert into pgbus.horizons select stream, max(msg_id) from pgbus.messages where stream = %s group by stream"
                " on conflict (stream) do update set msg_id = excluded.msg_id", PRUNED)  # fmt: skip
        sql.run("delete from pgbus.messages where stream = %s", PRUNED)


class Explained(Session):
    """A session that records the plans of its statements."""

    def __init__(self, url: str, options: dict[str, str]) -> None:
        super().__init__(url)
        self.notices: deque[str] = deque()  # psycopg2 keeps only fifty notices in a list
        self.connection.notices = self.notices
        for name, value in options.items():
            self.run(f"set {name} = {value}")
        self.run("load 'auto_explain'")
        for name, value in {
            "log_min_duration": "0", "log_nested_statements": "on", "log_analyze": "on", "log_buffers": "on", "log_timing": "off",
            "log_format": "json", "log_level": "notice",
        }.items():  # fmt: skip
            self.run(f"set auto_explain.{name} = '{value}'")

    def costly(self, most: int = MOST) -> list[tuple[int, str]]:
        """Return the statements since the last call that touched more pages than allowed."""
        found = []
        for notice in self.notices:
            _, brace, text = notice.partition("{")
            if brace and "plan:" in notice:
                plan = json.loads(brace + text)
                pages = plan["Plan"].get("Shared Hit Blocks", 0) + plan["Plan"].get("Shared Read Blocks", 0)
                if pages > most and not nested(plan["Query Text"]):
                    found.append((pages, plan["Query Text"]))
        assert any("plan:" in notice for notice in self.notices) or not self.notices
        self.notices.clear()
        return found


def nested(text: str) -> bool:
    """Whether a statement only touches the pages of its nested statements, which are explained separately."""
    words = " ".join(text.split())
    # Besides, the first call of `_beat` or `_report_caps` in a session reads the catalog for all that it calls.
    return (text.startswith("select pgbus.") and "from" not in text) or any(
        f" from pgbus.{function}(" in words for function in ("squatters", "_beat", "_report_caps")
    )


@pytest.mark.parametrize("state", ["after a burst", "beside an old snapshot", "vacuumed"])
def test_no_statement_walks(state: str, filled: tuple[str, int]) -> None:
    walks = []
    url, streams = filled
    with opened_sessions(url) as opener:
        keeper = opener()
        if state == "vacuumed":
            prune_empty(url)
            for table in ("messages", "horizons", "presence", "revocations"):
                keeper.run(f"vacuum analyze pgbus.{table}")
            grow(url)
        elif state == "beside an old snapshot":
            keeper.run("begin isolation level repeatable read; select count(*) from pgbus.horizons")
            prune_empty(url)
        # By default, PostgreSQL chooses one of these two, the generic plan from the sixth call on.
        for mode in ("force_generic_plan", "force_custom_plan"):
            walks += [(mode, *walk) for walk in looked(url, mode, streams, vacuumed=state != "beside an old snapshot")]
    told = {f"{mode}: {pages} pages, {' '.join(text.split())[:200]}" for mode, pages, text in walks}
    assert not told, "\n".join(sorted(told))


def looked(url: str, mode: str, streams: int, vacuumed: bool) -> list[tuple[int, str]]:
    """Run everything, each in a transaction that is rolled back."""
    found = []
    ours, theirs = Explained(url, OURS), Explained(url, {})
    try:
        for session in (ours, theirs):
            session.run(f"set plan_cache_mode = {mode}")
        pool = OneConnection(ours.connection)
        newest = ours.one("select last_value from pgbus.message_ids")
        for kind, statements in STATEMENTS.items():
            asking = kind(pool, Retention(3600.0)) if kind is Pruning else kind(pool)
            asking.newest = newest
            for name, ask in statements.items():
                if ask is None or (name in FROM_STREAM_TO_STREAM and not vacuumed):
                    continue
                ours.run("begin")
                ask(asking)
                ours.run("rollback")
                found += ours.costly(MOST + EACH_STREAM * streams if name in FROM_STREAM_TO_STREAM else MOST)
        for call in BY_SQL:
            theirs.run("begin")
            theirs.run(f"select {call}")
            theirs.run("set constraints all immediate")
            theirs.run("rollback")
        found += theirs.costly()
    finally:
        ours.close()
        theirs.close()
    return found
