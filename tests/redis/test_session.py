"""What a publisher writes, and what a session hears, on real servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from time import monotonic

import gevent
import pytest
from redis_parts import (
    RedisCluster,
    RedisServer,
    beating,
    collected,
    needs_redis,
    redis_cluster,
    redis_sentinels,
    redis_server,
)
from support import until

import pgbus_gevent.redis.session as session_module
from pgbus_gevent.errors import RedisUnavailable
from pgbus_gevent.redis.keys import Keys
from pgbus_gevent.redis.publisher import Outgoing, Publisher
from pgbus_gevent.redis.session import RedisSession
from pgbus_gevent.redis.urls import parse

pytestmark = [needs_redis, pytest.mark.program, pytest.mark.usefixtures("patient")]

SECRET = "a secret of the database"


@pytest.fixture(params=["single", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param).url)


def keys_for(url: str, generation: str = "g") -> Keys:
    return Keys(SECRET, generation, sharded=url.startswith("redis+cluster"))


def publishing(url: str, generation: str = "g", **options: int) -> closing[Publisher]:
    return closing(Publisher(parse(url), keys_for(url, generation), **options))


def hearing(url: str, generation: str = "g") -> closing[RedisSession]:
    return closing(RedisSession(parse(url), keys_for(url, generation)))


def message(stream: str, id: int, prev_id: int) -> Outgoing:
    return Outgoing(stream, json.dumps(["message", stream, id, prev_id, 1.5, None, f"data {id}", None, None]), id)


def test_a_session_hears_the_streams_that_it_follows_in_order(url: str) -> None:
    with publishing(url) as publisher, hearing(url) as session:
        session.follow(["a"])
        sent = [message("a", n, n - 1) for n in range(1, 501)]
        publisher.publish(sent)
        assert collected(session.receive, 500) == [wake.payload for wake in sent]


def test_streams_that_are_no_longer_followed_are_heard_no_more(url: str) -> None:
    with publishing(url) as publisher, hearing(url) as session:
        session.follow([f"s{n}" for n in range(600)])
        session.follow(["a"])
        session.narrow(["a"])
        publisher.publish([*(Outgoing(f"s{n}", '["moved"]') for n in range(600)), Outgoing("a", '["moved","a"]')])
        found: list[str] = []
        until(lambda: found.extend(session.receive(0.1)[0]) or '["moved","a"]' in found, "the followed stream is heard")
        assert len(found) < 60  # in a cluster, streams of the same shard are heard too


def test_everything_can_be_followed_and_nothing_comes_twice(url: str) -> None:
    with publishing(url) as publisher, hearing(url) as session:
        session.follow(["s1"])
        session.follow(None)
        publisher.publish(Outgoing(f"s{n}", f'["moved","s{n}"]') for n in range(300))
        assert sorted(collected(session.receive, 300)) == sorted(f'["moved","s{n}"]' for n in range(300))
        session.narrow(["s1"])
        publisher.publish([Outgoing("s2000", '["moved","s2000"]')])
        publisher.publish([Outgoing("s1", '["moved","s1"]')])
        assert collected(session.receive, 1) == ['["moved","s1"]']
        assert session.receive(0.1) == ([], False)


def test_everybody_hears_control(url: str) -> None:
    with publishing(url) as publisher, hearing(url) as session:
        publisher.publish([Outgoing(None, '["control"]')])
        assert collected(session.receive, 1) == ['["control"]']


def test_a_session_without_a_relay_hears_nothing(url: str) -> None:
    with hearing(url) as session:
        assert not session.hears(0.3)
        with publishing(url) as publisher, beating(publisher):
            assert session.hears()
            assert session.reign == publisher.reign and session.logs


def test_silence_of_the_beacons_ends_the_session(url: str) -> None:
    now = [monotonic()]
    with publishing(url) as publisher:
        session = RedisSession(parse(url), keys_for(url), clock=lambda: now[0])
        try:
            publisher.beacon()
            assert session.hears()
            session.ping()
            now[0] += session_module.SILENCE + 1
            with pytest.raises(RedisUnavailable, match="no beacon"):
                session.ping()
        finally:
            session.close()


def test_another_generation_ends_the_session(url: str) -> None:
    with (
        hearing(url, "g1") as session,
        publishing(url, "g2") as publisher,
        pytest.raises(RedisUnavailable, match="fail"),
    ):
        publisher.beacon()
        until(lambda: session.receive(0.1) is None, "the session ends")


def test_a_beacon_reveals_a_lost_message_on_a_sharded_channel(cluster: RedisCluster) -> None:
    with publishing(cluster.url) as publisher, hearing(cluster.url) as session:
        session.follow(["a"])
        publisher.beacon()
        publisher.publish([message("a", 1, 0)])
        assert len(collected(session.receive, 1)) == 1
        session._payloads.clear()
        publisher._counts[publisher.keys.channel("a")] += 1  # as if one had been published that did not arrive
        publisher.beacon()
        until(lambda: session.receive(0.1)[1], "the session says that something was lost")
        publisher.beacon()
        assert session.receive(0.3) == ([], False)


def test_a_new_reign_makes_the_worker_look(url: str) -> None:
    with hearing(url) as session:
        with publishing(url) as publisher:
            publisher.beacon()
            until(lambda: session.receive(0.1) and session.reign == publisher.reign, "the first reign is heard")
        with publishing(url) as publisher:
            publisher.beacon()
            until(lambda: session.receive(0.1)[1], "the session says that something may be lost")
            assert session.reign == publisher.reign


def test_forged_wakes_are_ignored(single: RedisServer) -> None:
    with publishing(single.url) as publisher, hearing(single.url) as session:
        session.follow(["a"])
        foreign = Keys("another secret", "g", sharded=False)
        for data in (b"", b"[]", b'["control"]', foreign.seal("r", 1, '["control"]')):
            single.client.publish(publisher.keys.channel("a"), data)
        publisher.publish([message("a", 1, 0)])
        assert len(collected(session.receive, 1)) == 1
        assert session.forged == 4


def test_a_server_that_dies_ends_the_session() -> None:
    with redis_server() as server, hearing(server.url) as session:
        server.kill()
        with pytest.raises(RedisUnavailable):
            until(lambda: session.receive(0.1) is None, "the session ends")
        with pytest.raises(RedisUnavailable):
            RedisSession(parse(server.url), keys_for(server.url))


def test_a_slot_that_moves_ends_the_session_and_the_publisher_finds_the_new_node() -> None:
    with redis_cluster() as cluster:
        keys = keys_for(cluster.url)
        with publishing(cluster.url) as publisher, hearing(cluster.url) as session:
            session.follow(["a"])
            slot = cluster.nodes[0].client.execute_command("CLUSTER", "KEYSLOT", keys.channel("a"))
            owner = next(n for n, last in enumerate((5460, 10922, 16383)) if slot <= last)
            target = cluster.nodes[(owner + 1) % 3]
            node = target.client.execute_command("CLUSTER", "MYID")
            publisher.publish([])

            def move() -> None:
                for server in [target, *(each for each in cluster.nodes if each is not target)]:
                    server.client.execute_command("FLUSHALL")
                    server.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", node)

            move()
            with pytest.raises(RedisUnavailable):
                until(lambda: session.receive(0.1) is None, "the session ends")
            with pytest.raises(RedisUnavailable):
                publisher.publish([message("a", 1, 0)])

        def finds_it() -> bool:
            move()  # again, because a node that hears of it late may claim the slot in between
            try:
                with publishing(cluster.url):
                    return True
            except RedisUnavailable:
                return False  # the nodes have not told one another yet; a relay tries again too

        until(finds_it, "the new node is found")
        with publishing(cluster.url) as publisher, hearing(cluster.url) as session:
            session.follow(["a"])
            publisher.publish([message("a", 1, 0)])
            assert len(collected(session.receive, 1)) == 1


def test_sentinel_fails_over_and_both_sides_find_the_new_master() -> None:
    with redis_sentinels() as sentinels:
        with publishing(sentinels.url) as publisher, hearing(sentinels.url) as session:
            session.follow(["a"])
            publisher.publish([message("a", 1, 0)])
            assert len(collected(session.receive, 1)) == 1
            sentinels.hurry()
            sentinels.servers[0].kill()
            with pytest.raises(RedisUnavailable):
                until(lambda: session.receive(0.1) is None, "the session ends")

        def again() -> Callable[[], None] | None:
            try:
                with publishing(sentinels.url) as publisher, hearing(sentinels.url) as session:
                    session.follow(["a"])
                    publisher.publish([message("a", 2, 1)])
                    assert len(collected(session.receive, 1)) == 1
                    return publisher.close
            except RedisUnavailable:
                return None

        until(again, "the new master is found", 90, pause=0.3)


class Flood:
    """A connection on which there is always one more text, up to ``count`` of ``size`` bytes."""

    address, where = ("127.0.0.1", 1), "127.0.0.1:1"

    def __init__(self, keys: Keys, count: int, size: int) -> None:
        text = keys.seal("r", 1, json.dumps(["ephemeral", "a", 1, None, "x" * size, None, None]))
        self._answer = [b"message", keys.channel("a").encode(), text]
        self.left = count

    def wait(self, timeout: float) -> bool:
        return True

    def read(self) -> list[bytes]:
        if not self.left:
            raise RedisUnavailable("the end")
        self.left -= 1
        return self._answer


def test_a_flood_leaves_other_greenlets_their_turns(single: RedisServer) -> None:
    with hearing(single.url) as session:
        flood = Flood(session.keys, 3000, 10)
        reader = gevent.spawn(session._read, flood)
        turns = 0
        while not reader.dead:
            payloads, lost = session.receive(1.0)
            assert len(payloads) <= 200 and not lost
            turns += 1
        assert turns >= 10 and flood.left == 0


def test_large_wakes_that_wait_have_a_limit(single: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "BACKLOG_BYTES", 100_000)
    with hearing(single.url) as session:
        gevent.spawn(session._read, Flood(session.keys, 50, 10_000)).join()
        payloads, lost = session.receive(0.1)
        assert lost and 5 <= len(payloads) <= 10
        assert session._size == 0
