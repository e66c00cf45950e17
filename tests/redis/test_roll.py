"""The roll through Redis: one statement for the reports of all workers."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from redis_parts import KEYS, RedisServer, fresh_session, needs_redis

from pgbus_gevent.errors import RedisUnavailable
from pgbus_gevent.redis import hashes, roll
from pgbus_gevent.redis.roll import RedisRoll
from pgbus_gevent.redis.urls import parse

pytestmark = [needs_redis, pytest.mark.program, pytest.mark.usefixtures("patient")]


class Fleet:
    """The roll in the database, in memory."""

    def __init__(self) -> None:
        self.rows: dict[str, Mapping[str, Any]] = {}
        self.beats = 0
        self.statements = 0

    def beat(
        self, id: str, host: str, pid: int, started_at: float, facts: Mapping[str, Any]
    ) -> tuple[float, float, int]:
        self.beats += 1
        self.rows[id] = facts
        return 1000.0, 0.0, len(self.rows)

    def beat_many(self, beats: Mapping[str, Mapping[str, Any]]) -> tuple[set[str], float, int]:
        self.statements += 1
        known = beats.keys() & self.rows.keys()
        self.rows.update({id: beats[id] for id in known})
        return set(known), 0.25, len(self.rows)

    def leave(self, id: str) -> None:
        del self.rows[id]


def worker(server: RedisServer, fleet: Fleet, *, on_redis: bool = True, **clock: Any) -> RedisRoll:
    wakes: Any = SimpleNamespace(session=fresh_session() if on_redis else None)
    return RedisRoll(parse(server.url), fleet, wakes, **clock)


def beat(one: RedisRoll, id: str, count: int) -> int:
    return one.beat(id, "h", 1, 0.0, {"count": count})[2]


def test_reports_of_many_workers_are_one_statement(server: RedisServer) -> None:
    fleet = Fleet()
    workers = {f"w{n}": worker(server, fleet) for n in range(20)}
    for id, one in workers.items():
        beat(one, id, 1)
    assert fleet.beats == 20
    steward = next(iter(workers.values()))
    for count in range(2, 6):
        steward.collect()
        for id, one in workers.items():
            assert one.beat(id, "h", 1, 0.0, {"count": count})[1:] == (0.25, 20)
    steward.collect()
    assert (fleet.beats, fleet.statements) == (20, 5)
    assert all(facts == {"count": 5} for facts in fleet.rows.values())


def test_without_answers_a_worker_reports_to_the_database(server: RedisServer) -> None:
    fleet = Fleet()
    one = worker(server, fleet)
    beat(one, "w", 1)
    one.collect()
    for count in range(2, 8):
        beat(one, "w", count)
    assert fleet.beats == 1 + 7 - 1 - roll.BELATED
    assert fleet.rows["w"] == {"count": 7}


def test_a_worker_that_the_database_does_not_know_reports_there(server: RedisServer) -> None:
    now = [0.0]
    fleet = Fleet()
    one = worker(server, fleet, clock=lambda: now[0])
    beat(one, "w", 1)
    fleet.leave("w")
    one.collect()
    now[0] += roll.TRUSTED
    beat(one, "w", 2)
    assert fleet.beats == 2 and "w" in fleet.rows


def test_a_new_worker_waits_for_its_first_answer(server: RedisServer) -> None:
    fleet = Fleet()
    one = worker(server, fleet, on_redis=False)
    beat(one, "w", 1)
    one._wakes = worker(server, fleet)._wakes  # it hears the relay now, and has no report in Redis yet
    beat(one, "w", 2)
    one.collect()
    beat(one, "w", 3)
    one.collect()
    assert fleet.beats == 1 and fleet.rows["w"] == {"count": 3}


def test_without_redis_the_database_is_used(server: RedisServer) -> None:
    fleet = Fleet()
    beat(worker(server, fleet, on_redis=False), "w", 1)
    gone = worker(server, fleet)
    server.kill()
    beat(gone, "v", 1)
    assert fleet.beats == 2


def test_a_worker_that_ends_is_not_reported_again_and_its_report_is_removed(server: RedisServer) -> None:
    now = [0.0]
    fleet = Fleet()
    one = worker(server, fleet, clock=lambda: now[0])
    beat(one, "w", 1)
    one.collect()
    one.leave("w")
    now[0] += roll.FORGOTTEN + 1
    one.collect()
    assert fleet.statements == 1 and server.client.hlen(KEYS.roll) == server.client.hlen(KEYS.answers) == 0


def test_a_forged_report_is_ignored(server: RedisServer) -> None:
    fleet = Fleet()
    one = worker(server, fleet)
    beat(one, "w", 1)
    other = worker(server, fleet)
    beat(other, "v", 1)
    server.client.hset(KEYS.roll, "w", server.client.hget(KEYS.roll, "v"))
    server.client.hset(KEYS.roll, "x", b"forged")
    wake = KEYS.seal("r", 1, '["message","a",1,0,1.5,null,"data",null,null]')  # published, and so known to everybody
    server.client.hset(KEYS.roll, "y", wake)
    one.collect()
    server.client.hset(KEYS.answers, "v", wake)
    gevent.sleep(0)
    assert fleet.statements == 1 and fleet.rows == {"w": {"count": 1}, "v": {"count": 1}}
    beat(other, "v", 2)


def test_what_no_worker_has_written_is_removed(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "FIELDS", 100)
    fleet = Fleet()
    one, client = worker(server, fleet), server.client
    beat(one, "w", 1)
    one.collect()
    beat(one, "w", 2)
    client.hset(KEYS.roll, "v", client.hget(KEYS.roll, "w"))  # the report of another worker
    client.hset(KEYS.roll, mapping={b"\xff\xfe": b"", "x": b"forged"})
    one.collect()
    assert client.hkeys(KEYS.roll) == [b"w"] and fleet.rows == {"w": {"count": 2}}
    client.hset(KEYS.roll, mapping={f"x{n}": "x" for n in range(200)})
    with pytest.raises(RedisUnavailable, match="201 fields"):
        one.collect()
    beat(one, "w", 3)
    one.collect()
    assert client.hkeys(KEYS.roll) == [b"w"] and fleet.rows == {"w": {"count": 3}}


def test_an_answer_that_is_too_long_is_not_read(server: RedisServer) -> None:
    fleet = Fleet()
    one, client = worker(server, fleet), server.client
    beat(one, "w", 1)
    client.hset(KEYS.answers, "w", b"x" * 20 * roll.SIZE)
    before = client.info("stats")["total_net_output_bytes"]
    beat(one, "w", 2)
    assert client.info("stats")["total_net_output_bytes"] - before < 10 * roll.SIZE
    one.collect()
    beat(one, "w", 3)
    assert client.hstrlen(KEYS.answers, "w") < 1000


def test_a_roll_of_another_type_is_removed(server: RedisServer) -> None:
    fleet = Fleet()
    one = worker(server, fleet)
    server.client.set(KEYS.roll, "x")
    beat(one, "w", 1)
    beat(one, "w", 2)
    one.collect()
    assert server.client.hkeys(KEYS.roll) == [b"w"] and fleet.rows == {"w": {"count": 2}}


def test_a_right_that_is_missing_is_told_once_and_the_worker_reports_to_the_database(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Fleet()
    one = worker(server, fleet)
    with server.client as admin:
        beat(one, "w", 1)
        one.collect()
        beat(one, "w", 2)
        one.collect()
        assert fleet.beats == 1
        admin.execute_command("ACL", "SETUSER", "default", "-hset")
        for count in range(3, 6):  # the last answer is recent
            beat(one, "w", count)
        assert (fleet.beats, fleet.rows["w"]) == (4, {"count": 5})
        (told,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert "'hset'" in told and "docs/redis.md" in told
        admin.execute_command("ACL", "SETUSER", "default", "+hset")
        beat(one, "w", 6)
        one.collect()
        beat(one, "w", 7)
        assert fleet.beats == 5
