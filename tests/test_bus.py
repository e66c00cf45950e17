"""The Bus on a real database, as an application uses it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import parse_qsl

import gevent
import psycopg2
import pytest
from database_parts import Ear, Session, Sessions, opened_sessions, raises, together, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.core.identity import Identities
from pgbus_gevent.core.wakes import parse
from pgbus_gevent.errors import (
    DatabaseError,
    DatabaseUnavailable,
    InvalidArgument,
    InvalidEvent,
    InvalidName,
    InvalidSetting,
    PgbusError,
    RolledBack,
)
from pgbus_gevent.messages import Message
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.databases import TestDatabases

ROOT = Path(__file__).parents[1]
SECRET = "a secret for tests alone"


@pytest.fixture
def bus(database: str) -> Iterator[Bus]:
    with Bus(database, secret=SECRET) as found:
        yield found


@pytest.fixture
def empty(pgbus_databases: TestDatabases) -> Iterator[str]:
    url = pgbus_databases.make_empty()
    yield url
    pgbus_databases.drop(url)


# publishing


def test_broadcast_returns_the_id_and_read_after_gives_the_message(bus: Bus, stream: str) -> None:
    orders = bus.stream(stream)
    id = orders.broadcast("<p>paid</p>", event="order.paid", visible_to="admins", exclude="c7")
    [message] = orders.read_after(0)
    assert message == Message(stream, id, message.created_at, "order.paid", "<p>paid</p>", "admins", "c7")
    assert message.created_at is not None and message.created_at.tzinfo is not None
    assert orders.last_id() == id


def test_a_key_makes_broadcast_idempotent(bus: Bus, stream: str) -> None:
    orders = bus.stream(stream)
    assert orders.broadcast("a", key="k") == orders.broadcast("b", key="k")
    assert [message.data for message in orders] == ["a"]


def test_broadcast_many_returns_the_last_id(bus: Bus, stream: str) -> None:
    orders = bus.stream(stream)
    assert orders.broadcast_many(["a", "b"], event="e", visible_to="v", exclude="x") == orders.last_id()
    assert [message[3:] for message in orders] == [("e", "a", "v", "x"), ("e", "b", "v", "x")]
    assert orders.broadcast_many([]) is None
    assert orders.broadcast_many(text for text in ("c", "d")) == orders.last_id()  # type: ignore[arg-type]


def test_an_ephemeral_message_is_notified_and_not_stored(bus: Bus, ear: Ear, sql: Session, stream: str) -> None:
    assert bus.stream(stream).broadcast("x", event="e", ephemeral=True) is None
    assert [parse(payload)[3] for payload in ear.heard_until(sql)] == ["x"]
    assert bus.stream(stream).last_id() == 0


def test_all_retained_messages_can_be_iterated(bus: Bus, stream: str) -> None:
    data = [str(n) for n in range(1201)]
    bus.stream(stream).broadcast_many(data)
    assert [message.data for message in bus.stream(stream)] == data


def test_read_after_gives_at_most_limit_messages_above_a_cursor(bus: Bus, stream: str) -> None:
    orders = bus.stream(stream)
    ids = [orders.broadcast(str(n)) for n in range(4)]
    assert [message.id for message in orders.read_after(ids[0] or 0, limit=2)] == ids[1:3]


# in the caller's transaction


def test_a_message_with_using_belongs_to_that_transaction(bus: Bus, database: str, stream: str) -> None:
    orders = bus.stream(stream)
    connection = psycopg2.connect(database)
    with connection, connection.cursor() as cursor:
        assert orders.broadcast("kept", event="e", visible_to="v", exclude="x", key="k", using=cursor) is None
        assert orders.last_id() == 0
    with pytest.raises(ZeroDivisionError), connection, connection.cursor() as cursor:
        orders.broadcast("gone", using=cursor)
        _ = 1 / 0
    connection.close()
    assert [message[3:] for message in orders] == [("e", "kept", "v", "x")]


def test_an_ephemeral_message_with_using_belongs_to_that_transaction(
    bus: Bus, ear: Ear, sql: Session, stream: str
) -> None:
    with pytest.raises(ZeroDivisionError), bus.transaction() as cursor:
        bus.stream(stream).broadcast("gone", ephemeral=True, using=cursor)
        _ = 1 / 0
    with bus.transaction() as cursor:
        bus.stream(stream).broadcast("kept", ephemeral=True, using=cursor)
        assert ear.heard_until(sql) == []
    assert [parse(payload)[3] for payload in ear.heard_until(sql)] == ["kept"]


def test_the_watermark_belongs_to_the_snapshot_of_the_transaction(bus: Bus, stream: str) -> None:
    orders = bus.stream(stream)
    first = orders.broadcast("a")
    with bus.transaction("repeatable read") as cursor:
        assert orders.last_id(using=cursor) == first
        second = orders.broadcast("b")
        assert orders.last_id(using=cursor) == first
        assert f'since-id="{first}"' in bus.stream_tag(stream, using=cursor)
    assert orders.last_id() == second


def test_the_tag_has_the_identity_of_its_user_if_it_is_known(bus: Bus, stream: str) -> None:
    ada, bob = Subscriber(owner="ada"), Subscriber(owner="bob")
    assert "identity" not in bus.stream_tag(stream)
    tags = [bus.stream_tag(stream, subscriber=each) for each in (ada, ada, bob)]
    assert tags[0] == tags[1] != tags[2]
    assert f' identity="{Identities(bus.settings.secret).of(ada)}"' in tags[0]
    assert f' identity="{Identities(bus.settings.secret).of(ada)}"' in bus.stream_tag(stream, "other", subscriber=ada)
    assert '.."' in bus.stream_tag(stream, subscriber=Subscriber(context=object()))


def test_a_tag_takes_whatever_an_authorize_hook_may_answer(bus: Bus, stream: str) -> None:
    anybody: Any = True
    assert bus.stream_tag(stream, subscriber=anybody) == bus.stream_tag(stream, subscriber=Subscriber())
    nobody: Any = False
    assert "identity" not in bus.stream_tag(stream, subscriber=nobody)
    for wrong in (7, "ada", {}, object(), ("ada", None, None, None, frozenset()), Subscriber()._replace(owner="")):
        with pytest.raises(InvalidArgument, match=r"^(subscriber|owner) is a"):
            bus.stream_tag(stream, subscriber=wrong)  # type: ignore[arg-type]


def test_a_transaction_does_not_seem_committed_if_the_error_of_a_statement_was_caught(bus: Bus, stream: str) -> None:
    with pytest.raises(RolledBack, match=r"nothing was committed.* savepoint"), bus.transaction() as cursor:
        bus.stream(stream).broadcast("gone", using=cursor)
        with raises("22012"):
            cursor.execute("select 1 / 0")
    with bus.transaction() as cursor:
        bus.stream(stream).broadcast("kept", using=cursor)
        cursor.execute("savepoint before")
        with raises("22012"):
            cursor.execute("select 1 / 0")
        cursor.execute("rollback to before")
    assert [message.data for message in bus.stream(stream)] == ["kept"]


def test_errors_with_using_stay_those_of_psycopg2(bus: Bus, database: str, stream: str) -> None:
    connection = psycopg2.connect(database)
    with raises("25P02"), connection.cursor() as cursor:
        with raises("22012"):
            cursor.execute("select 1 / 0")
        bus.stream(stream).broadcast("x", using=cursor)
    connection.close()


# refusals


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", "\0", "\ud800", None, 7])
def test_a_bad_name_is_refused_before_anything_is_opened(name: Any) -> None:
    with pytest.raises(InvalidName):
        Bus("postgresql://u@127.0.0.1:1/d").stream(name)


@pytest.mark.parametrize("event", ["a\nb", "a\rb", "pgbus:x", "\0", "\ud800"])
def test_a_bad_event_is_refused(event: str, bus: Bus, stream: str) -> None:
    with pytest.raises(InvalidEvent):
        bus.stream(stream).broadcast("x", event=event)
    with pytest.raises(InvalidEvent):
        bus.stream(stream).broadcast_many(["x"], event=event)


@pytest.mark.parametrize("data", [None, b"x", 7, "a\0b", "\ud800"])
def test_bad_data_is_refused(data: Any, bus: Bus, stream: str) -> None:
    for publish in (
        lambda: bus.stream(stream).broadcast(data),
        lambda: bus.stream(stream).broadcast(data, ephemeral=True),
        lambda: bus.stream(stream).broadcast_many(["x", data]),
    ):
        with pytest.raises(InvalidArgument, match="data"):
            publish()
    assert bus.stream(stream).last_id() == 0


@pytest.mark.parametrize("field", ["visible_to", "exclude", "key"])
def test_a_bad_label_is_refused(field: str, bus: Bus, stream: str) -> None:
    for label in (7, b"x", "a\0b", "\ud800"):
        with pytest.raises(InvalidArgument, match=field):
            bus.stream(stream).broadcast("x", **{field: label})


def test_other_invalid_arguments_are_refused(bus: Bus, stream: str) -> None:
    orders = bus.stream(stream)
    for ask in (
        lambda: orders.broadcast_many("text"),
        lambda: orders.broadcast("x", ephemeral=True, key="k"),
        lambda: orders.broadcast("x", key=""),
        lambda: orders.read_after(-1),
        lambda: orders.read_after(0, limit=0),
        lambda: Bus("postgresql://u@h/d", settings=Settings()),
    ):
        with pytest.raises(InvalidArgument):
            ask()


# the database


def test_the_schema_is_made_at_the_first_use(empty: str) -> None:
    with Bus(empty) as bus:
        assert bus.stream("orders").broadcast("x") == bus.stream("orders").last_id()


def test_many_greenlets_may_make_the_first_use_at_once(empty: str) -> None:
    with Bus(empty, pool_size=2) as bus:
        ids = together(*[lambda: bus.stream("orders").broadcast("x")] * 10)
        assert [message.id for message in bus.stream("orders")] == sorted(ids)


def test_the_schema_must_exist_without_migrate(empty: str) -> None:
    with Bus(empty, migrate=False) as bus, pytest.raises(DatabaseError) as failed:
        bus.stream("orders").broadcast("x")
    assert failed.value.sqlstate == "3F000"


def test_a_bus_without_a_database_says_what_to_set() -> None:
    with pytest.raises(InvalidSetting, match=r"PGBUS_DATABASE_URL.*serve prints the URL of its embedded database"):
        _ = Bus(settings=Settings()).database


def test_the_next_use_tries_a_database_that_was_away_again(database: str) -> None:
    bus = Bus("postgresql://u@127.0.0.1:1/d")
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable, match="cannot connect"):
            bus.stream("orders").last_id()
    bus.close()


def test_a_closed_bus_opens_again_at_the_next_use(bus: Bus, stream: str) -> None:
    id = bus.stream(stream).broadcast("x")
    bus.close()
    bus.close()
    assert bus.stream(stream).last_id() == id


def test_all_that_use_a_new_bus_at_once_share_its_database(database: str, sql: Session, stream: str) -> None:
    with Bus(database) as bus:
        found = together(*[lambda: bus.database] * 4)
        for one in found:
            one.queries.last_id(stream)
        assert {id(one) for one in found} == {id(bus.database)}
    pooled = "pg_stat_activity where application_name = 'pgbus-pool' and datname = current_database()"
    until(lambda: not sql.one(f"select count(*) from {pooled}"), "the sessions are gone")


def test_a_bus_works_again_after_its_sessions_were_ended(bus: Bus, sql: Session, stream: str) -> None:
    together(*[lambda: bus.stream(stream).broadcast("x")] * 4)
    pooled = "pg_stat_activity where application_name = 'pgbus-pool' and datname = current_database()"
    sql.run(f"select pg_terminate_backend(pid) from {pooled}")
    until(lambda: not sql.one(f"select count(*) from {pooled}"), "the sessions are gone")
    together(*[lambda: bus.stream(stream).broadcast("x")] * 4)
    assert len(list(bus.stream(stream))) == 8


def test_a_killed_publisher_costs_no_connection(database: str, sessions: Sessions, stream: str) -> None:
    holder = sessions()
    with Bus(database, pool_size=1, pool_timeout=30.0) as bus:
        bus.stream(stream).last_id()
        with holder.transaction():
            holder.call("broadcast", stream, "a")
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
                bus.stream(stream).broadcast("b")  # waits for the holder's commit
        assert bus.stream(stream).broadcast("c")


def test_two_buses_share_their_streams(bus: Bus, database: str, stream: str) -> None:
    with Bus(database) as other:
        id = other.stream(stream).broadcast("x")
    assert bus.stream(stream).last_id() == id


def test_all_errors_of_the_bus_have_one_base_class(bus: Bus, stream: str) -> None:
    for wrong in (lambda: bus.stream(""), lambda: bus.stream(stream).read_after(-1), lambda: bus.sign("")):
        with pytest.raises(PgbusError):
            wrong()


THREADS = """
import sys, threading
from pgbus_gevent import Bus
bus = Bus(sys.argv[1], pool_size=3)
def publish(n):
    for m in range(25):
        bus.stream("threads").broadcast(f"{n}.{m}", key=f"{n}.{m}")
threads = [threading.Thread(target=publish, args=(n,)) for n in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ids = [message.id for message in bus.stream("threads")]
assert ids == sorted(set(ids))
print(len(ids))
"""


def test_threads_of_a_process_that_is_not_patched_can_publish(empty: str) -> None:
    done = subprocess.run([sys.executable, "-c", THREADS, empty], cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert done.stdout.strip() == "200", done.stderr
    with opened_sessions(empty) as opener:
        assert opener().one("select count(distinct data) from pgbus.messages") == 200


def test_a_bus_alone_in_a_patched_process_lets_other_greenlets_run(pgbus_database: str) -> None:
    program = """
from gevent import monkey; monkey.patch_all()
import sys, gevent
from pgbus_gevent import Bus
bus, ticks = Bus(sys.argv[1], migrate=False), []
LOCK = "select pg_advisory_xact_lock(7)"

def tick():
    for _ in range(5):
        gevent.sleep(0.01)
        ticks.append(1)

# The statement of this transaction waits until the other one has ended, and that waits for the ticks.
with bus.transaction() as holder:
    holder.execute(LOCK)
    def wait():
        with bus.transaction() as cursor:
            cursor.execute(LOCK)
            return len(ticks)

    waiting = gevent.spawn(wait)
    gevent.sleep(0)
    tick()
print(waiting.get())
"""
    found = subprocess.run(
        [sys.executable, "-c", program, pgbus_database], capture_output=True, text=True, timeout=90, check=True
    )
    assert int(found.stdout) >= 5


# tags


def test_tags_of_many_streams_cost_one_query(bus: Bus, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{stream} {n}" for n in range(3)]
    heads = [bus.stream(name).broadcast("x") for name in names[:2]] + [0]
    asked: list[str] = []
    ask = bus.database.queries._all
    monkeypatch.setattr(
        bus.database.queries, "_all", lambda statement, *rest: asked.append(statement) or ask(statement, *rest)
    )
    tags = bus.stream_tags(*names)
    assert len(asked) == 1
    assert [f'since-id="{head}"' in tag for tag, head in zip(tags, heads, strict=True)] == [True] * 3
    tag = bus.stream_tag(*names)
    assert len(asked) == 2
    source = unescape(re.findall('src="([^"]*)"', tag)[0])
    path, _, query = source.partition("?")
    assert path == "/pgbus/streams"
    fields = parse_qsl(query)
    assert [value for key, value in fields if key == "since"] == [str(head) for head in heads]
    assert [bus.signer.verify(value, time())[0] for key, value in fields if key == "stream"] == names
    with bus.transaction() as cursor:
        assert bus.stream_tags(*names, using=cursor) == tags


def test_a_tag_of_no_stream_is_refused(bus: Bus) -> None:
    with pytest.raises(InvalidArgument):
        bus.stream_tag()
    assert bus.stream_tags() == []
