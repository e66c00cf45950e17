"""The renewal of leases through Redis: workers ask, and the steward renews the leases of all in one statement."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from redis_parts import KEYS, RedisServer, fresh_session, needs_redis, redis_cluster
from support import Serving, run, serving, session, until

from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.errors import RedisUnavailable
from pgbus_gevent.redis import hashes, leases, wakes
from pgbus_gevent.redis.keys import Keys
from pgbus_gevent.redis.leases import Lease, RedisLeases
from pgbus_gevent.redis.urls import parse
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.web.stream_app import StreamApp

pytestmark = [needs_redis, pytest.mark.program, pytest.mark.usefixtures("patient")]

ADA, BOB = ("room", "ada", "1"), ("room", "bob", "2")
CYD, DAN = ("hall", "cyd", "3"), ("hall", "dan", "4")


class Presence:
    """The table in memory: the leases that there are, and what each statement renewed."""

    def __init__(self, *there: Lease) -> None:
        self.there = set(there)
        self.statements: list[tuple[list[Lease], float]] = []

    def touch_many(self, places: Sequence[Lease], *, ttl: float) -> list[int]:
        self.statements.append((list(places), ttl))
        return [index for index, place in enumerate(places) if place not in self.there]


def worker(url: str, presence: Presence, keys: Keys = KEYS) -> RedisLeases:
    found: Any = SimpleNamespace(session=fresh_session(keys))
    return RedisLeases(parse(url), presence, found)


def touch(one: RedisLeases, *places: Lease, ttl: float = 45.0) -> list[Lease]:
    """Renew, and return the leases that are gone."""
    return [places[index] for index in one.touch_many(places, ttl=ttl)]


def test_leases_of_many_workers_are_renewed_in_one_statement(server: RedisServer) -> None:
    places = [("room", f"m{n}", str(n)) for n in range(40)]
    presence = Presence(*places)
    workers = [worker(server.url, presence) for _ in range(20)]
    for _ in range(4):
        for n, one in enumerate(workers):
            assert touch(one, *places[2 * n : 2 * n + 2]) == []
        workers[7].collect()
    own, renewed = presence.statements[:20], presence.statements[20:]
    assert [len(some) for some, _ in own] == [2] * 20  # the first time
    assert [(sorted(some), ttl) for some, ttl in renewed] == [(sorted(places), 45.0)] * 4


def test_a_worker_learns_which_leases_are_gone(server: RedisServer) -> None:
    presence = Presence(ADA, BOB, CYD, DAN)
    one, other = worker(server.url, presence), worker(server.url, presence)
    touch(one, ADA, BOB)
    touch(other, CYD, DAN)
    presence.there.discard(BOB)
    one.collect()
    assert touch(one, BOB, ADA) == [BOB]  # in another order than before
    assert touch(other, CYD, DAN) == []


def test_without_an_answer_a_worker_renews_its_leases_itself(server: RedisServer) -> None:
    presence = Presence(ADA)
    one = worker(server.url, presence)
    touch(one, ADA)
    one.collect()
    touch(one, ADA)
    assert len(presence.statements) == 2  # its first one, and the steward's
    for _ in range(3):
        touch(one, ADA)
    assert len(presence.statements) == 5


def test_leases_that_the_steward_has_renewed_are_renewed_again_only_if_they_are_asked_for(server: RedisServer) -> None:
    presence = Presence(ADA)
    one = worker(server.url, presence)
    touch(one, ADA)
    one.collect()
    one.collect()
    assert len(presence.statements) == 2


@pytest.mark.parametrize("reason", ["many leases", "a short ttl", "no session", "not fresh", "killed", "full"])
def test_otherwise_the_database_renews(reason: str, server: RedisServer) -> None:
    presence = Presence(ADA)
    one = worker(server.url, presence)
    found: Any = one._wakes
    places, ttl = [ADA], 45.0
    if reason == "many leases":
        places = [("room", "ada", str(n)) for n in range(leases.MOST + 1)]
        presence.there.update(places)
    elif reason == "a short ttl":
        ttl = leases.LEAST_TTL - 1
    elif reason == "no session":
        found.session = None
    elif reason == "not fresh":
        found.session.fresh = False
    elif reason == "killed":
        server.kill()
    else:
        server.client.config_set("maxmemory", 1)
    for n in range(3):
        assert touch(one, *places, ttl=ttl) == []
        if found.session is not None and reason not in {"killed", "full"}:
            one.collect()
        assert presence.statements == [(places, ttl)] * (n + 1)


def test_a_new_session_does_not_take_an_answer_of_the_former_one(server: RedisServer) -> None:
    presence = Presence(ADA)
    one = worker(server.url, presence)
    touch(one, ADA)
    one.collect()
    found: Any = one._wakes
    found.session = fresh_session()
    touch(one, ADA)
    assert len(presence.statements) == 3


def test_a_statement_of_the_steward_is_bounded_and_has_one_ttl(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "AT_ONCE", 4)
    places = [("room", f"m{n}", str(n)) for n in range(10)]
    presence = Presence(*places)
    workers = [worker(server.url, presence) for _ in range(5)]
    for n, one in enumerate(workers):
        touch(one, *places[2 * n : 2 * n + 2], ttl=60.0 if n == 4 else 45.0)
    del presence.statements[:]
    workers[0].collect()
    assert sorted((len(some), ttl) for some, ttl in presence.statements) == [(2, 60.0), (4, 45.0), (4, 45.0)]
    for n, one in enumerate(workers):
        assert touch(one, *places[2 * n : 2 * n + 2], ttl=60.0 if n == 4 else 45.0) == []
    assert len(presence.statements) == 3


def test_requests_that_no_worker_has_made_lately_renew_nothing(server: RedisServer) -> None:
    presence = Presence(ADA)
    one = worker(server.url, presence)
    client, name = server.client, KEYS.leases
    now = client.time()[0]
    text = json.dumps([now, 45.0, [ADA]])
    old = json.dumps([now - leases.COUNTED - 1, 45.0, [ADA]])
    client.hset(name, "a", b"forged")
    client.hset(name, "b", Keys("another secret", "g", sharded=False).seal("r", 1, text, place=f"{name} b"))
    client.hset(name, "c", KEYS.seal("r", 1, text))  # published, and so known to everybody
    client.hset(name, "d", KEYS.seal("r", 1, text, place=f"{name} x"))  # of another worker
    client.hset(name, "e", KEYS.seal("r", 1, old, place=f"{name} e"))  # repeated
    one.collect()
    assert presence.statements == [] and client.hlen(name) == 0
    client.hset(name, "f", KEYS.seal("r", 1, text, place=f"{name} f"))
    one.collect()
    assert presence.statements == [([ADA], 45.0)]


def test_an_answer_that_the_steward_has_not_made_is_not_believed(server: RedisServer) -> None:
    presence = Presence(ADA)
    one = worker(server.url, presence)
    for n in range(1, 4):
        touch(one, ADA)
        place = KEYS.lease_answer(one._worker)
        forged = [b"forged", KEYS.seal("r", n, "[0]"), KEYS.seal("r", n, "[0]", place=KEYS.lease_answer("x"))][n - 1]
        server.client.set(place, forged)
    assert touch(one, ADA) == []
    assert len(presence.statements) == 4


def test_what_is_too_large_for_requests_or_an_answer_is_not_read(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "FIELDS", 100)
    presence = Presence(ADA)
    one, client = worker(server.url, presence), server.client
    touch(one, ADA)
    client.hset(KEYS.leases, mapping={f"x{n}": "x" for n in range(200)})
    with pytest.raises(RedisUnavailable, match="201 fields"):
        one.collect()
    assert not client.exists(KEYS.leases)
    client.set(KEYS.lease_answer(one._worker), b"x" * 20 * leases.SIZE)
    before = client.info("stats")["total_net_output_bytes"]
    assert touch(one, ADA) == [] and len(presence.statements) == 2
    assert client.info("stats")["total_net_output_bytes"] - before < 10 * leases.SIZE
    one.collect()
    assert touch(one, ADA) == [] and len(presence.statements) == 3  # the steward's


def test_an_answer_about_as_many_leases_as_there_can_be_is_not_too_long() -> None:
    text = json.dumps(list(range(leases.MOST)))
    assert len(KEYS.seal("r" * 32, 10**9, text)) < leases.SIZE / 4


def test_what_is_kept_in_redis_expires(server: RedisServer) -> None:
    one = worker(server.url, Presence(ADA))
    touch(one, ADA)
    (name,) = server.client.keys("*")
    assert name == KEYS.leases.encode() and 0 < server.client.ttl(name) <= leases.KEPT
    one.collect()
    (name,) = server.client.keys("*")
    assert name == KEYS.lease_answer(one._worker).encode() and 0 < server.client.ttl(name) <= leases.KEPT


def test_a_cluster_has_requests_and_answers_on_one_node() -> None:
    with redis_cluster() as cluster:
        presence = Presence(ADA)
        one = worker(cluster.url, presence, Keys("secret", "g", sharded=True))
        for _ in range(3):
            touch(one, ADA)
            one.collect()
        assert len(presence.statements) == 4


# whole workers


def app(instance: Instance) -> StreamApp:
    return StreamApp(instance, authorize=lambda environ, stream: Subscriber(member=environ.get("HTTP_X_MEMBER")))


def test_members_of_several_workers_stay_though_only_the_steward_renews(
    pgbus_settings: Settings, pgbus_database: str, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakes, "RETURN", 1.0)
    options = {"wake": server.url, "presence": ("*",), "presence_ttl": 400.0}  # no renewals but ours

    def expiry() -> list[Any]:
        with session(pgbus_database) as connection:
            return [each for (each,) in run(connection, "select expires_at from pgbus.presence order by member")]

    def renew(one: Serving) -> None:
        one.instance.presence._touch_at = 0.0
        one.instance.presence._flag.set()
        until(lambda: one.instance.presence._touch_at > 0.0, "its leases are renewed")

    with ExitStack() as stack:
        workers = [stack.enter_context(serving(pgbus_settings, app=app, **options)) for _ in range(2)]
        until(lambda: all(one.instance.redis.wakes.session for one in workers), "both use Redis")  # type: ignore[union-attr]
        for n, one in enumerate(workers):
            one.live("orders", headers={"X-Member": f"m{n}"})
        until(lambda: len(expiry()) == 2, "both members are there")
        answers: list[Any] = []
        for one in workers:
            found: Any = one.instance.redis
            plain = found.leases._through_redis

            def noted(places: Any, ttl: float, plain: Any = plain) -> Any:
                answers.append(plain(places, ttl))
                return answers[-1]

            monkeypatch.setattr(found.leases, "_through_redis", noted)

        def all_are_answered() -> bool:
            held = server.client.keys("*:{leases}:*")
            return len([key for key in held if b":answer:" in key]) == 2 and not any(
                b":requests" in key for key in held
            )

        for one in workers:
            renew(one)
        assert answers == [None, None]  # each has renewed its own in the database
        until(all_are_answered, "the steward renews them too")
        before = expiry()
        for one in workers:
            renew(one)
        assert answers[2:] == [set(), set()]  # and now in Redis only
        until(lambda: all(new > old for new, old in zip(expiry(), before, strict=True)), "the steward renews them")


def test_a_right_that_is_missing_is_told_once_and_the_database_renews(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    presence = Presence(ADA)
    one = worker(server.url, presence)
    with server.client as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-hset")
        for _ in range(3):
            touch(one, ADA)
    assert len(presence.statements) == 3
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "'hset'" in told and "docs/redis.md" in told
