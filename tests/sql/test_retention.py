"""Retention: the SQL functions that remove messages, the horizons, and clients that come back afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import psycopg2.extensions as ext
import pytest
from database_parts import Session, Sessions, is_waiting, raises, until
from support import Serving, connect, gaps, received, serving

from pgbus_gevent.bus import Bus
from pgbus_gevent.database import Database
from pgbus_gevent.database.statements import OPENINGS, PAGES
from pgbus_gevent.errors import DatabaseError, InvalidSetting
from pgbus_gevent.settings.retention import Retention, Rule
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases

EVER = "1000 days"
REMOVING = 1885823598
"""The class of the advisory lock that a transaction holds while it removes messages."""


@pytest.fixture(autouse=True)
def none_left(sql: Session) -> None:
    """Remove the streams of other tests, because some tests here go through all streams."""
    sql.run("truncate pgbus.messages, pgbus.horizons, pgbus.ephemerals")
    sql.run("update pgbus.prune_round set below = null, due = now()")


def publish(sql: Session, stream: str, count: int, *, age: str = "0 s") -> list[int]:
    """Publish ``count`` messages that are ``age`` old, and return their ids."""
    ids = [int(sql.call("broadcast", stream, str(n))) for n in range(count)]
    sql.run("update pgbus.messages set created_at = now() - %s::interval where msg_id = any(%s)", age, ids)
    return ids


def prune(sql: Session, *streams: str, age: str = EVER, count: int | None = None, limit: int = 1000) -> list[Any]:
    size = len(streams)
    found = sql.run(
        "select stream, removed, horizon from pgbus.prune(%s::text[], %s::interval[], %s::bigint[], %s)",
        *(list(streams), [age] * size, [count] * size, limit),
    )
    return sorted(found)


def ids_of(sql: Session, stream: str) -> list[int]:
    return [id for id, _ in sql.read(stream)]


def horizon(sql: Session, stream: str) -> int:
    return int(sql.call("_horizon", stream))


# age and count


def test_messages_older_than_the_age_are_removed(sql: Session, stream: str) -> None:
    old, new = publish(sql, stream, 3, age="2 hours"), publish(sql, stream, 2)
    assert prune(sql, stream, age="1 hour") == [(stream, 3, old[-1])]
    assert ids_of(sql, stream) == new
    assert horizon(sql, stream) == old[-1]
    assert prune(sql, stream, age="1 hour") == []


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6])
def test_messages_beyond_the_count_are_removed(count: int, sql: Session, stream: str) -> None:
    ids = publish(sql, stream, 5)
    prune(sql, stream, count=count)
    assert ids_of(sql, stream) == ids[-count:]


def test_a_message_is_removed_by_either_limit(sql: Session, stream: str) -> None:
    old, new = publish(sql, stream, 3, age="2 hours"), publish(sql, stream, 4)
    prune(sql, stream, age="1 hour", count=5)
    assert ids_of(sql, stream) == new
    prune(sql, stream, age="1 hour", count=2)
    assert ids_of(sql, stream) == new[-2:]
    assert horizon(sql, stream) == new[1] > old[-1]


def test_each_stream_has_its_own_limits_and_no_other_is_touched(sql: Session, stream: str) -> None:
    names = [f"{stream}:{n}" for n in range(4)]
    ids = {name: publish(sql, name, 3, age="2 hours") for name in names}
    found = sql.run(
        "select stream, removed, horizon"
        " from pgbus.prune(%s, array['1 hour', '1 day', '1 day']::interval[], array[null, null, 1])",
        names[:3],
    )
    assert sorted(found) == [(names[0], 3, ids[names[0]][2]), (names[2], 2, ids[names[2]][1])]
    assert [len(ids_of(sql, name)) for name in names] == [0, 3, 1, 3]


def test_one_call_removes_no_more_than_its_limit_oldest_first(sql: Session, stream: str) -> None:
    names = [f"{stream}:{n}" for n in range(3)]
    ids = {name: publish(sql, name, 5, age="2 hours") for name in names}
    assert prune(sql, *names, age="1 hour", limit=7) == [
        (names[0], 5, ids[names[0]][4]),
        (names[1], 2, ids[names[1]][1]),
    ]
    assert [ids_of(sql, name) for name in names] == [[], ids[names[1]][2:], ids[names[2]]]
    assert prune(sql, *names, age="1 hour", limit=7) == [
        (names[1], 3, ids[names[1]][4]),
        (names[2], 4, ids[names[2]][3]),
    ]
    assert prune(sql, *names, age="1 hour", limit=7) == [(names[2], 1, ids[names[2]][4])]


def test_one_call_by_count_removes_no_more_than_its_limit(sql: Session, stream: str) -> None:
    ids = publish(sql, stream, 10)
    assert prune(sql, stream, count=2, limit=3) == [(stream, 3, ids[2])]
    assert ids_of(sql, stream) == ids[3:]


def test_a_message_that_seems_old_is_not_removed_before_the_previous_one(sql: Session, stream: str) -> None:
    new = publish(sql, stream, 1)
    publish(sql, stream, 2, age="2 hours")  # the clock was set back
    assert prune(sql, stream, age="1 hour") == []
    sql.run("update pgbus.messages set created_at = now() - interval '2 hours' where msg_id = %s", new[0])
    assert [removed for _, removed, _ in prune(sql, stream, age="1 hour")] == [3]


def test_a_stream_may_be_named_twice_or_not_exist(sql: Session, stream: str) -> None:
    ids = publish(sql, stream, 3, age="2 hours")
    assert prune(sql, stream, stream, "nowhere", age="1 hour") == [(stream, 3, ids[-1])]


@pytest.mark.parametrize(
    "arguments",
    [
        "array['a'], array['0 s'::interval]", "array['a'], array['-1 s'::interval]", "array['a'], array[null::interval]",
        "array['a', 'b'], array['1 s'::interval]", "array['a'], array['1 s'::interval], array[1, 2]",
        "array['a'], array['1 s'::interval], array[0]", "array['a'], array['1 s'::interval], array[1], 0",
        "array['a'], array['1 s'::interval], array[1], null", "null, array['1 s'::interval]",
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused(arguments: str, sql: Session) -> None:
    with raises("22023"):
        sql.run(f"select * from pgbus.prune({arguments})")


# horizons


def test_ids_keep_rising_on_a_stream_that_was_pruned_empty(sql: Session, stream: str) -> None:
    ids = publish(sql, stream, 3, age="2 hours")
    prune(sql, stream, age="1 hour")
    assert sql.call("last_id", stream) == ids[-1]
    [new] = publish(sql, stream, 1)
    assert new > ids[-1]
    assert sql.column(stream, "prev_id") == [ids[-1]]


def test_a_horizon_never_moves_back(sql: Session, stream: str) -> None:
    ids = publish(sql, stream, 3, age="2 hours")
    sql.run("insert into pgbus.horizons values (%s, %s)", stream, ids[-1] + 5)
    sql.run("update pgbus.messages set msg_id = msg_id + 10 where stream = %s", stream)
    prune(sql, stream, count=2)
    assert horizon(sql, stream) == ids[0] + 10 > ids[-1] + 5


def test_pruning_that_is_rolled_back_leaves_no_trace(sql: Session, stream: str) -> None:
    ids = publish(sql, stream, 3, age="2 hours")
    sql.run("begin")
    prune(sql, stream, age="1 hour")
    sql.run("rollback")
    assert (ids_of(sql, stream), horizon(sql, stream)) == (ids, 0)


def test_a_key_is_valid_within_the_retention_and_no_longer(sql: Session, stream: str) -> None:
    first = sql.call("broadcast", stream, "a", key="k")
    prune(sql, stream)
    assert sql.call("broadcast", stream, "b", key="k") == first
    sql.run("update pgbus.messages set created_at = now() - interval '2 hours' where stream = %s", stream)
    prune(sql, stream, age="1 hour")
    again = sql.call("broadcast", stream, "c", key="k")
    assert again > first
    assert sql.read(stream) == [(again, "c")]


def test_streams_are_forgotten_after_they_were_empty_for_long_enough(sql: Session, stream: str) -> None:
    empty, recent, living = (f"{stream}:{kind}" for kind in ("empty", "recent", "living"))
    for name in (empty, recent, living):
        publish(sql, name, 3, age="2 hours")
        prune(sql, name, age="1 hour")
    last = publish(sql, living, 1)
    sql.run("update pgbus.horizons set pruned_at = now() - interval '31 days' where stream <> %s", recent)
    assert sql.one("select pgbus._forget(null, '30 days')") is None
    assert sorted(row[0] for row in sql.run("select stream from pgbus.horizons")) == sorted([living, recent])
    assert sql.call("last_id", empty) == 0
    assert publish(sql, empty, 1)[0] > last[0], "ids are still not used again"


def test_horizons_are_checked_one_page_at_a_time(sql: Session, stream: str) -> None:
    names = [f"{stream}:{n}" for n in range(5)]
    for name in names:
        sql.run("insert into pgbus.horizons values (%s, 1, now() - interval '31 days')", name)
    assert sql.one("select pgbus._forget(null, '30 days', 2)") == names[3]
    assert sql.one("select pgbus._forget(%s, '30 days', 2)", names[3]) == names[1]
    assert sql.one("select count(*) from pgbus.horizons") == 1
    assert sql.one("select pgbus._forget(%s, '30 days', 2)", names[1]) is None
    assert sql.one("select count(*) from pgbus.horizons") == 0


def test_old_large_ephemeral_messages_are_removed(sql: Session) -> None:
    for n, age in enumerate(("2 minutes", "2 minutes", "1 second")):
        sql.run(
            "insert into pgbus.ephemerals (id, created_at, stream, data) values (%s, now() - %s::interval, 's', 'x')",
            n + 1,
            age,
        )
    assert [sql.one("select pgbus._prune_ephemerals(1)") for _ in range(3)] == [1, 1, 0]
    assert sql.run("select id from pgbus.ephemerals") == [(3,)]


# concurrent transactions


def test_pruning_does_not_disturb_an_open_append(sql: Session, sessions: Sessions, stream: str) -> None:
    ids = publish(sql, stream, 3, age="2 hours")
    publisher, pruner = sessions(), sessions()
    with publisher.transaction():
        new = publisher.call("broadcast", stream, "under way")
        assert prune(pruner, stream, age="1 hour") == [(stream, 3, ids[-1])]
    assert sql.read(stream) == [(new, "under way")]
    assert sql.column(stream, "prev_id") == [ids[-1]]
    assert horizon(sql, stream) == ids[-1]


def test_an_open_pruning_delays_no_append_and_no_key(sql: Session, sessions: Sessions, stream: str) -> None:
    ids = publish(sql, stream, 2, age="2 hours")
    first = sql.call("broadcast", stream, "a", key="k")
    sql.run("update pgbus.messages set created_at = now() - interval '2 hours'")
    pruner = sessions()
    with pruner.transaction():
        prune(pruner, stream, age="1 hour")
        sql.run("set statement_timeout = '15s'")
        assert sql.call("broadcast", stream, "b", key="k") == first
        new = sql.call("broadcast", stream, "c")
    assert sql.read(stream) == [(new, "c")]
    assert sql.column(stream, "prev_id") == [first] and first > ids[-1]


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_transaction_with_an_old_snapshot_can_still_publish(
    isolation: str, sql: Session, sessions: Sessions, stream: str
) -> None:
    publish(sql, stream, 3, age="2 hours")
    old = sessions()
    with old.transaction(isolation):
        seen = old.call("last_id", stream)
        prune(sql, stream, age="1 hour")
        assert old.call("last_id", stream) == seen
        new = old.call("broadcast", stream, "x")
    assert sql.read(stream) == [(new, "x")]
    assert horizon(sql, stream) == seen < new


def test_it_says_by_how_much_the_oldest_message_was_overdue(sql: Session, stream: str) -> None:
    names = [f"{stream} {n}" for n in range(3)]
    for name, age in zip(names, ("3 hours", "61 minutes", "1 minute"), strict=True):
        publish(sql, name, 2, age=age)
    found = sql.run(
        "select stream, round(extract(epoch from overdue) / 60) from pgbus.prune(%s, array_fill('1 hour'::interval, array[3]),"
        " array[null, null, 1])",
        names,
    )
    assert dict(found) == {names[0]: 120, names[1]: 1, names[2]: 0}, "the last one is beyond its number, not its age"


def test_a_patient_worker_leaves_a_round_to_others_until_they_stop(sql: Session) -> None:
    ask = "select pgbus._prune_turn('1 minute', 200, patience => '1 minute')"
    for due, own_turn in [("20 seconds", False), ("-20 seconds", False), ("-61 seconds", True), ("2 hours", True)]:
        sql.run("update pgbus.prune_round set below = null, due = clock_timestamp() + %s::interval", due)
        assert (sql.one(ask) is not None) == own_turn, due
    assert sql.one(ask) is None, "it has just ended the round itself"


def test_only_one_transaction_removes_at_a_time(sql: Session, sessions: Sessions, stream: str) -> None:
    ids = publish(sql, stream, 4, age="2 hours")
    one, other = sessions(), sessions()
    with one.transaction():
        prune(one, stream, age="1 hour", limit=2)
        assert sql.one("select pgbus._prune_turn('0 s')") is None
        job = other.spawn(
            "select stream, removed, horizon from pgbus.prune(array[%s], array['1 hour'::interval], null, 10)", stream
        )
        until(lambda: is_waiting(sql, other), "the other transaction waits")
    assert job.get(timeout=10) == [(stream, 2, ids[3])], "it then uses the current rows"


def test_dead_rows_that_vacuum_cannot_remove_do_not_slow_down_reads_or_pruning(
    sql: Session, sessions: Sessions, stream: str
) -> None:
    """An old transaction still sees the rows that were removed since: nine thousand rows on a thousand blocks."""

    def blocks(statement: str, *arguments: Any) -> int:
        plan = sql.one(f"explain (analyze, buffers, format json) {statement}", *arguments)[0]["Plan"]
        return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

    old = sessions()
    with old.transaction("repeatable read"):
        old.run("select 1")
        for _ in range(3):
            sql.call("broadcast_many", stream, ["x" * 1000] * 3000)
            prune(sql, stream, count=10, limit=10_000)
        page = {"streams": [stream], "after": [0], "limit": 500, "bytes": 10**6}
        opening = {"streams": [stream], "cursors": [0], "replays": [20], "limit": 500, "bytes": 10**6}
        with sql.connection.cursor() as cursor:
            reads = [cursor.mogrify(*asked).decode() for asked in ((PAGES, page), (OPENINGS, opening))]
        assert [blocks(read) < 200 for read in reads] == [True, True]
        assert blocks("select * from pgbus.prune(array[%s], array['1 day'::interval], array[10])", stream) < 200
        assert blocks("select pgbus._streams_below(null, 10)") < 200


# the round


def test_streams_are_listed_from_the_highest_name_down(sql: Session, sessions: Sessions) -> None:
    names = ["\U0010ffff" * 63, "é", "b", "a:2", "a:1", "A"]
    for name in names:
        publish(sql, name, 3)
    walk = "select * from pgbus._streams_below(%s, %s)"
    assert [row[0] for row in sql.run(walk, None, 10)] == names
    assert [row[0] for row in sql.run(walk, None, 2)] == names[:2]
    assert [row[0] for row in sql.run(walk, "b", 2)] == names[3:5]
    assert sql.run(walk, "A", 2) == []


def test_workers_share_one_round_and_the_next_begins_when_it_is_due(
    sql: Session, sessions: Sessions, stream: str
) -> None:
    names = [f"{stream}:{n}" for n in range(5)]
    for name in names:
        publish(sql, name, 1)
    workers = [sessions(), sessions()]
    turns = [workers[n % 2].one("select pgbus._prune_turn('1 hour', 2)") for n in range(4)]
    assert turns == [names[:2:-1], names[2:0:-1], names[:1], None]
    assert sql.one("select pgbus._prune_turn('1 ms', 2)") == names[:2:-1], (
        "the time that another setting gave does not count"
    )


# settings


@pytest.mark.parametrize(
    "given",
    [
        {"audit:*": "7d", "cursor:*": {"age": "1m", "count": 100}},
        "audit:*=7d, cursor:*=1m/100",
        {"audit:*": 7 * 86400, "cursor:*": "60 / 100"},
        (Rule("audit:*", 7 * 86400), Rule("cursor:*", 60, 100)),
    ],
)
def test_rules_can_be_a_table_a_text_or_rule_objects(given: object) -> None:
    settings = Settings(retention_patterns=given)  # type: ignore[arg-type]
    assert settings.retention_patterns == (Rule("audit:*", 604800.0), Rule("cursor:*", 60.0, 100))
    text = settings.__dataclass_fields__["retention_patterns"].metadata["kind"].text(settings.retention_patterns)
    assert Settings.load(environ={"PGBUS_RETENTION_PATTERNS": text}) == Settings.load(
        environ={}, retention_patterns=given
    )


@pytest.mark.parametrize(
    "given",
    [
        {"a": 0}, {"a": "x"}, {"a": None}, {"a": True}, {"": "1m"}, {"a\n": "1m"}, {"a": {"count": 3}}, {"a": "1m/0"},
        {"a": {"age": "1m", "count": 0}}, {"a": {"age": "1m", "size": 3}}, {"a": {"age": "1m", "count": None}},
        {"a": "1m/1000001"}, "a", "a=1m,", "a=1m,a=2m", "=1m", 5, [{"a": "1m"}], ("a=1m",),
    ],
)  # fmt: skip
def test_invalid_rules_are_refused_by_name(given: object) -> None:
    with pytest.raises(InvalidSetting, match=r"retention_patterns=.*as 7d, 1m/100 or"):
        Settings(retention_patterns=given)  # type: ignore[arg-type]


def test_the_error_shows_a_refused_table_but_not_a_url_in_its_place() -> None:
    with pytest.raises(InvalidSetting, match=r"'audit:\*': '9'") as refused:
        Settings(retention_patterns={"audit:*": "9", "b": "0"})  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting) as refused:
        Settings(retention_patterns="postgresql://ada:hunter2@db/app")  # type: ignore[arg-type]
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "given", [{"prune_interval": -1}, {"prune_interval": "2h"}, {"forget_after": "1m"}, {"retention": 0}]
)
def test_invalid_times_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match=next(iter(given))):
        Settings(**given)


def test_the_first_rule_that_matches_counts() -> None:
    retention = Retention(3600, [Rule("a:x", 5, 2), Rule("a:*", 7), Rule("[ab]:?", 9)])
    assert [retention.keep(name) for name in ("a:x", "a:y", "b:x", "b:xy", "A:x")] == [
        (5, 2), (7, None), (9, None), (3600, None), (3600, None),
    ]  # fmt: skip


def test_the_documented_configuration_is_valid(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "retention.md").read_text(encoding="utf-8")
    config = tmp_path / "pgbus.toml"
    config.write_text(page.partition("```toml\n")[2].partition("```")[0], encoding="utf-8")
    settings = Settings.load(environ={}, config=config)
    retention = Retention(settings.retention, settings.retention_patterns)
    assert retention.keep("audit:7") == (30 * 86400, None)
    assert retention.keep("cursor:7") == (60, 100)
    assert retention.keep("orders") == (6 * 3600, None)


# rights


def test_a_role_without_rights_gets_advice_and_the_documented_grants_are_enough(
    sql: Session, sessions: Sessions, database: str, stream: str, pgbus_databases: TestDatabases
) -> None:
    role = f"pgbus_test_pruner_{sql.pid}"
    sql.run(f"create role {role}")
    try:
        publish(sql, stream, 2, age="2 hours")
        base = Database(Settings(database_url=str(ext.make_dsn(database, options=f"-c role={role}"))))
        sql.run(f"grant usage on schema pgbus to {role}")  # without this right, the schema cannot be seen at all
        with pytest.raises(DatabaseError, match=r"docs/retention\.md, or set prune_interval=0"):
            base.pruning.turn(1.0, 10)
        page = (Path(__file__).parents[2] / "docs" / "retention.md").read_text(encoding="utf-8")
        assert "select pgbus.grant_pruner('pruner');" in page
        sql.call("grant_pruner", role)
        assert base.pruning.turn(1.0, 10) == [stream]
        assert [pruned.removed for pruned in base.pruning.prune([stream], 10)] == [2]
        assert base.pruning.forget(None, 1.0, 10) is None
        assert base.pruning.prune_ephemerals(10) == 0
        base.close()
    finally:
        sql.run(f"drop owned by {role}")
        sql.run(f"drop role {role}")


# clients


Take = Callable[[str, int], None]


@pytest.fixture
def keep_newest(pgbus_database: str) -> Take:
    """Return a function that prunes a stream to its newest messages, or to none."""

    def take(stream: str, count: int) -> None:
        one = Session(pgbus_database)
        if count:
            prune(one, stream, count=count)
        else:
            gevent.sleep(0.002)
            prune(one, stream, age="1 ms")
        one.close()

    return take


@pytest.fixture
def published(pgbus_bus: Bus) -> list[int]:
    """The ids of twenty messages of the stream ``orders``."""
    return [pgbus_bus.stream("orders").broadcast(str(n)) or 0 for n in range(20)]


@pytest.fixture(params=["nobody watches", "a client watches"])
def server(request: pytest.FixtureRequest, published: list[int], pgbus_settings: Settings) -> Iterator[Serving]:
    """A server that starts after the messages, with small rings and pages."""
    with serving(pgbus_settings, ring_messages=4, page_size=3) as found:
        if request.param == "a client watches":
            found.live("orders")
        yield found


def test_a_client_with_a_pruned_cursor_gets_a_gap_event_and_the_retained_messages(
    published: list[int], server: Serving, keep_newest: Take
) -> None:
    keep_newest("orders", 9)
    client = server.client("orders", since=published[2])
    until(lambda: client.messages and client.messages[-1].id == str(published[-1]), "it gets the rest")
    assert [id for id, _ in received(client)] == published[11:]
    assert gaps(client) == [
        {
            "stream": "orders",
            "requestedId": published[2],
            "oldestId": published[11],
            "lastId": published[-1],
            "reason": "expired",
        }
    ]
    at_horizon = server.client("orders", since=published[10])
    until(lambda: len(at_horizon.messages) == 9, "it gets the rest")
    assert gaps(at_horizon) == []


def test_a_client_of_a_stream_that_was_pruned_empty_gets_a_gap_event(
    published: list[int], server: Serving, keep_newest: Take, pgbus_bus: Bus
) -> None:
    keep_newest("orders", 0)
    old, current = server.live("orders", since=published[2]), server.live("orders", since=published[-1])
    until(lambda: gaps(old), "it is told")
    assert [(gap["requestedId"], gap["lastId"], gap["reason"]) for gap in gaps(old)] == [
        (published[2], published[-1], "expired")
    ]
    new = pgbus_bus.stream("orders").broadcast("new") or 0
    for client in (old, current):
        until(lambda client=client: client.messages, "the new one comes")  # type: ignore[misc]
        assert received(client) == [(new, "new")]
    assert gaps(current) == []


def test_a_client_of_a_forgotten_stream_gets_a_gap_event_until_a_new_message_comes(
    keep_newest: Take, pgbus_bus: Bus, pgbus_settings: Settings, pgbus_database: str
) -> None:
    id = pgbus_bus.stream("orders").broadcast("x") or 0
    keep_newest("orders", 0)
    one = Session(pgbus_database)
    one.run("select pgbus._forget(null, '0 s')")
    assert one.one("select count(*) from pgbus.horizons") == 0
    one.close()
    with serving(pgbus_settings) as server:
        client = server.live("orders", since=id - 1)
        until(lambda: gaps(client), "it is told")
        assert [(gap["reason"], gap["lastId"]) for gap in gaps(client)] == [("ahead", 0)]


@pytest.mark.parametrize("left", [0, 1])
def test_a_live_client_gets_a_gap_event_for_messages_that_were_pruned_unseen(
    left: int, pgbus_bus: Bus, pgbus_settings: Settings, pgbus_database: str
) -> None:
    first = pgbus_bus.stream("orders").broadcast("first") or 0
    one = Session(pgbus_database)
    with serving(pgbus_settings) as server:
        client = server.live("orders", since=first - 1)
        until(lambda: client.messages, "the first message comes")
        with one.transaction():  # so that no worker sees the messages between
            gone = [int(one.call("broadcast", "orders", text)) for text in ("gone", "gone too")]
            if left:
                gone[1:] = []
            prune(one, "orders", **({"count": 1} if left else {"age": "1 microsecond"}))
        new = pgbus_bus.stream("orders").broadcast("new") or 0
        until(lambda: client.last_id == str(new), "the new one comes")
        got = [id for id, _ in received(client)]
        assert set(got).isdisjoint(gone) and got[0] == first
        assert [gap["requestedId"] for gap in gaps(client)] == [first]
    one.close()


STREAMS = ["busy:0", "busy:1", "busy:2"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_retained_message_is_lost_or_repeated_during_pruning(
    seed: int, pgbus_settings: Settings, pgbus_database: str
) -> None:
    """Clients come and go beside publishers and a pruner. Each message that a client misses was removed, and is in a gap event."""
    choose = random.Random(seed)
    sent: dict[str, list[int]] = {stream: [] for stream in STREAMS}
    stopping = gevent.event.Event()

    def publishes(number: int) -> None:
        one, own = Session(pgbus_database), random.Random(seed * 10 + number)
        for n in range(150):
            stream = own.choice(STREAMS)
            sent[stream].append(int(one.call("broadcast", stream, f"{number}.{n}")))
            gevent.sleep(own.random() * 0.01)
        one.close()

    def prunes() -> None:
        one = Session(pgbus_database)
        while not stopping.wait(choose.random() * 0.02):
            stream = choose.choice(STREAMS)
            if choose.random() < 0.2:
                prune(one, stream, age="1 ms", limit=choose.choice([3, 1000]))
            else:
                prune(one, stream, count=choose.randint(1, 30), limit=choose.choice([1, 5, 1000]))
            known = one.one("select pgbus._horizon(%s)", stream)
            least = one.one("select min(msg_id) from pgbus.messages where stream = %s", stream)
            assert least is None or known < least
        one.close()

    def drops(client: StreamClient, number: int) -> None:
        own = random.Random(seed * 100 + number)
        while not stopping.wait(own.random() * 0.2):
            client.drop()
            gevent.sleep(own.random() * 0.1)
            client.resume()

    with serving(pgbus_settings, ring_messages=5, page_size=4) as server:
        clients = [connect(server.url, STREAMS[n % 3], since=0) for n in range(6)]
        server.clients += clients
        jobs = [gevent.spawn(publishes, n) for n in range(4)]
        others: list[Any] = [
            gevent.spawn(prunes),
            *(gevent.spawn(drops, client, n) for n, client in enumerate(clients[:3])),
        ]
        gevent.joinall(jobs, timeout=90, raise_error=True)
        stopping.set()
        gevent.joinall(others, timeout=40, raise_error=True)
        marks = {}
        one = Session(pgbus_database)
        for stream in STREAMS:
            marks[stream] = int(one.call("broadcast", stream, "the end"))
            sent[stream].append(marks[stream])
        retained = {stream: ids_of(one, stream) for stream in STREAMS}
        one.close()
        for n, client in enumerate(clients):
            stream = STREAMS[n % 3]
            until(lambda c=client, s=stream: c.last_id == str(marks[s]), "the last message comes")  # type: ignore[misc]
            got = [id for id, _ in received(client)]
            assert all(earlier < later for earlier, later in pairwise(got)), "once, and in order"
            told = [(gap["requestedId"], gap["oldestId"]) for gap in gaps(client)]
            missing = sorted(set(sent[stream]) - set(got))
            assert not set(missing) & set(retained[stream])
            first = got[0]
            # Before its first message, a client that asked for all retained messages misses nothing.
            untold = [id for id in missing if id > first and not any(low < id <= high for low, high in told)]
            assert untold == []
