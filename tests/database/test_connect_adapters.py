"""Adapters and casters that an application registers with psycopg2, for its whole process, do not affect our sessions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from database_parts import Session
from program_parts import ROOT

HOSTILE = {
    "what goes in": """
register_adapter(list, Json); register_adapter(tuple, Json); register_adapter(dict, Json)
register_adapter(str, lambda value: AsIs("'other'"))
[register_adapter(kind, lambda value: QuotedString(str(value))) for kind in (int, float, bool)]
""",
    "what comes out": """
register_type(new_type((20, 21, 23), "INTEGERS_AS_TEXT", lambda value, cursor: value))
register_type(new_type((25, 19, 1043), "TEXT_AS_BYTES", lambda value, cursor: value and value.encode()))
register_type(new_type((1009, 1015, 1016, 1007), "ARRAYS_AS_TEXT", lambda value, cursor: value))
register_type(new_type((1700, 701), "DECIMALS_AS_FLOATS", lambda value, cursor: value and float(value)))
register_type(new_type((114, 3802), "JSON_AS_TEXT", lambda value, cursor: value))
register_type(new_type((1184, 1114, 1186), "TIMES_AS_TEXT", lambda value, cursor: value))
register_type(new_type((16,), "BOOLEANS_AS_TEXT", lambda value, cursor: value))
""",
}
PROGRAM = """
from gevent import monkey
monkey.patch_all()
import sys
from psycopg2.extensions import AsIs, QuotedString, new_type, register_adapter, register_type
from psycopg2.extras import Json
{hostile}
import gevent
from pgbus_gevent import Bus, Settings
from pgbus_gevent.core.client import Place, StreamRequest
from pgbus_gevent.streamer import Instance
from pgbus_gevent.web.stream_app import StreamApp

settings = Settings(database_url=sys.argv[1], secret="a secret of the tests", presence=["room:*"],
                    retention_patterns={{"old:*": "1s/1"}}, prune_interval=0.1, catch_up_interval=0.2)
bus = Bus(settings=settings)
room = bus.stream("room:1")
ids = [room.broadcast("one", event="e", key="k"), room.broadcast_many(["two", "three"], keys=["a", None])]
assert room.broadcast("one", key="k") == ids[0]
room.broadcast("coalesced", coalesce=0.01, target="t")
bus.coalescer.close()
assert [(m.data, m.event, type(m.id)) for m in room][:3] == [("one", "e", int), ("two", None, int), ("three", None, int)]
assert room.last_id() > ids[1] and room.read_after(ids[0])[0].created_at.year >= 2026
room.presence.join("7", {{"name": "Ada"}})
(member,) = room.presence.members()
assert (member.member, dict(member.metadata)) == ("7", {{"name": "Ada"}}), member
instance = Instance(settings)
StreamApp(instance)
instance.start()
body = instance.clients.body(StreamRequest((Place("room:1", since=0),)))
got = b""
with gevent.Timeout(60):
    for chunk in body:
        got += chunk
        if got.count(b"data: coalesced"):
            break
    newcomer = instance.clients.body(StreamRequest((Place("room:2"),)))
    assert b"pgbus:connected" in next(iter(newcomer))
    newcomer.close()
    bus.stream("old:1").broadcast_many([str(n) for n in range(5)])
    while len(list(bus.stream("old:1"))) > 1:
        gevent.sleep(0.05)
    while not instance.database.fleet.workers():
        gevent.sleep(0.05)
(worker,) = instance.database.fleet.workers()
assert worker.facts["connections"] >= 0 and worker.age >= 0
assert bus.database.fleet.streams()
with bus.transaction() as cursor:
    assert room.last_id(using=cursor) == room.last_id()
    room.broadcast("in a transaction", using=cursor)
assert list(room)[-1].data == "in a transaction"
body.close()
instance.shutdown(2.0)
bus.close()
print("fine")
"""


@pytest.mark.parametrize("kind", HOSTILE)
def test_our_sessions_are_as_ever_beside(kind: str, pgbus_database: str, tmp_path: Path) -> None:
    check(PROGRAM.format(hostile=HOSTILE[kind]), pgbus_database, tmp_path)


GUCS = {
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "client_encoding": "LATIN1",
    "datestyle": "German, DMY",
    "intervalstyle": "sql_standard",
    "timezone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "xmloption": "document",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "search_path": "public",
    "statement_timeout": "1ms",
    "lock_timeout": "15s",
    "plan_cache_mode": "force_generic_plan",
    "session_replication_role": "origin",
    "row_security": "off",
    "enable_indexscan": "off",
    "synchronous_commit": "off",
    "check_function_bodies": "off",
    "plpgsql.variable_conflict": "use_variable",
    "plpgsql.extra_errors": "all",
    "quote_all_identifiers": "on",
}


def test_our_sessions_are_as_ever_in_a_database_with_settings_of_its_own(pgbus_database: str, tmp_path: Path) -> None:
    session = Session(pgbus_database)
    for name, value in GUCS.items():
        session.run(f"alter database {session.one('select quote_ident(current_database())')} set {name} = '{value}'")
    session.close()
    check(PROGRAM.format(hostile=""), pgbus_database, tmp_path)


def check(program: str, database: str, tmp_path: Path) -> None:
    """Run a program that must exit with status 0."""
    done = subprocess.run(
        [sys.executable, "-c", program, database],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr[-3000:]


WAITING = """
from gevent import monkey
monkey.patch_all()
import sys
import gevent
import psycopg2
from psycogreen.gevent import gevent_wait_callback
from psycopg2.extensions import set_wait_callback
from pgbus_gevent import Bus, Settings

theirs = []
def own(connection):
    theirs.append(type(connection).__module__)
    gevent_wait_callback(connection)

def holds_up_all(work):
    working = gevent.spawn(work)
    for _ in range(10):
        gevent.sleep(0.01)
    found = working.ready()
    working.kill()
    return found

def sleep_on_ours(seconds=0.1):
    with bus.transaction() as cursor:
        cursor.execute("select pg_sleep(%s)", (seconds,))

bus = Bus(settings=Settings(database_url=sys.argv[1]))
bus.stream("orders").broadcast("x")
set_wait_callback(None)
assert not holds_up_all(lambda: sleep_on_ours(20)), "it stops everybody"
set_wait_callback(own)
bus.stream("orders").broadcast("y")
sleep_on_ours()
assert theirs == [], theirs
psycopg2.connect(sys.argv[1]).cursor().execute("select 1")
assert set(theirs) == {"psycopg2.extensions"}, theirs
bus.close()
print("fine")
"""


def test_a_wait_callback_of_the_application_is_for_its_own_connections(pgbus_database: str, tmp_path: Path) -> None:
    check(WAITING, pgbus_database, tmp_path)
