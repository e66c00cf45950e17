"""What an application tells psycopg2 about values, for its whole process, changes nothing for our sessions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
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
body = instance.body(StreamRequest((Place("room:1", since=0),)))
got = b""
with gevent.Timeout(20):
    for chunk in body:
        got += chunk
        if got.count(b"data: coalesced"):
            break
    bus.stream("old:1").broadcast_many([str(n) for n in range(5)])
    while len(list(bus.stream("old:1"))) > 1:
        gevent.sleep(0.05)
    while not instance.database.fleet.workers():
        gevent.sleep(0.05)
(worker,) = instance.database.fleet.workers()
assert worker.facts["connections"] >= 0 and worker.age >= 0
assert bus.database.queries.streams()
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
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(hostile=HOSTILE[kind]), pgbus_database],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr[-3000:]
