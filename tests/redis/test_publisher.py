"""What a publisher writes: logs in order, within their bounds, under a reign that ends when Redis loses something."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
from redis_parts import KEYS, RedisServer, needs_redis

from pgbus_gevent.errors import RedisUnavailable
from pgbus_gevent.redis import publisher as publisher_module
from pgbus_gevent.redis.publisher import LogBudget, Outgoing, Publisher
from pgbus_gevent.redis.urls import parse

pytestmark = [needs_redis, pytest.mark.program, pytest.mark.usefixtures("patient")]


def publishing(server: RedisServer, **options: int) -> closing[Publisher]:
    return closing(Publisher(parse(server.url), KEYS, **options))


def message(stream: str, id: int, size: int = 10) -> Outgoing:
    return Outgoing(stream, json.dumps(["message", stream, id, id - 1, 1.5, None, "x" * size, None, None]), id)


def ids(server: RedisServer, stream: str = "a") -> list[int]:
    return [int(name.split(b"-")[0]) for name, _ in server.client.xrange(KEYS.log(stream))]


def test_two_relays_do_not_disorder_a_log(server: RedisServer) -> None:
    with publishing(server) as one, publishing(server) as two:
        one.publish([message("a", 1), message("a", 2)])
        two.publish([message("a", 3)])
        one.publish([message("a", 4)])
        assert ids(server) == [1, 2, 3, 4]
        two.publish([message("a", 4)])  # known already: the log is removed rather than left with a hole
        assert ids(server) == []


def test_a_log_keeps_about_as_many_messages_as_it_may(server: RedisServer) -> None:
    with publishing(server, keep=100) as publisher:
        publisher.publish(message("a", n) for n in range(1, 1001))
        assert 100 <= len(ids(server)) <= 300 and ids(server)[-1] == 1000


def test_a_log_expires_some_time_after_its_last_message(server: RedisServer) -> None:
    with publishing(server, ttl=100) as publisher:
        publisher.publish([message("a", 1)])
        assert 90 < server.client.ttl(KEYS.log("a")) <= 100


def test_only_whole_messages_are_in_logs(server: RedisServer) -> None:
    with publishing(server) as publisher:
        publisher.publish([Outgoing("a", '["moved","a"]'), Outgoing(None, '["control"]')])
        assert ids(server) == []


def test_a_flush_of_redis_begins_a_new_reign(server: RedisServer) -> None:
    with publishing(server) as publisher:
        reign = publisher.reign
        publisher.beacon()
        assert publisher.reign == reign
        server.client.flushall()
        publisher.beacon()
        assert publisher.reign != reign and publisher.logs


def test_a_full_redis_gets_wakes_but_no_logs_and_then_logs_again(server: RedisServer) -> None:
    now = [1000.0]
    publisher = Publisher(parse(server.url), KEYS, clock=lambda: now[0])
    try:
        reign = publisher.reign
        server.client.config_set("maxmemory", 1)
        publisher.publish([message("a", 1)])
        assert publisher.reign != reign and not publisher.logs
        publisher.publish([message("a", 2)])
        server.client.config_set("maxmemory", 0)
        publisher.beacon()
        assert not publisher.logs
        now[0] += 11
        publisher.beacon()
        assert publisher.logs
        publisher.publish([message("a", 3)])
        assert ids(server) == [3]
    finally:
        publisher.close()


def test_all_logs_together_have_a_limit(server: RedisServer) -> None:
    with publishing(server, budget=10_000) as publisher:
        publisher.publish(message(f"s{n}", n, 1000) for n in range(1, 21))
        publisher.beacon()
        assert not publisher.logs
        before = server.client.dbsize()
        publisher.publish([message("t", 100)])
        assert server.client.dbsize() == before


def test_the_budget_counts_the_logs_that_have_not_expired() -> None:
    budget = LogBudget(100, ttl=10, keep=5)
    budget.add("a", 60, 0.0)
    budget.add("b", 60, 5.0)
    assert budget.used(5.0) == 1.2
    assert budget.used(11.0) == 0.6
    budget.add("a", 60, 12.0)
    assert budget.used(12.0) == 1.2
    assert budget.used(30.0) == 0.0


def test_the_budget_counts_only_messages_that_are_kept() -> None:
    budget = LogBudget(1000, ttl=10, keep=900)
    for n in range(100_000):
        budget.add("a", 1, n / 1000)
    assert budget.used(100.0) == pytest.approx(1.0)


def test_logs_that_never_last_are_tried_more_seldom(server: RedisServer) -> None:
    now = [1000.0]
    publisher = Publisher(parse(server.url), KEYS, clock=lambda: now[0])
    try:
        reigns, tries, id = set(), 0, 0
        server.client.config_set("maxmemory", 1)
        for _ in range(3600):
            now[0] += 1.0
            id += 1
            publisher.publish([message("a", id)])
            publisher.beacon()
            reigns.add(publisher.reign)
        assert len(reigns) == 1, "without room, there is no new reign"
        server.client.config_set("maxmemory", 0)
        for _ in range(3600):
            now[0] += 1.0
            publisher.beacon()
            if publisher.logs:
                server.client.config_set("maxmemory", 1)
                id += 1
                publisher.publish([message("a", id)])
                server.client.config_set("maxmemory", 0)
                tries += 1
        assert 4 <= tries <= 8
    finally:
        publisher.close()


def test_a_redis_that_cannot_write_to_its_disk_gets_wakes_but_no_logs(server: RedisServer) -> None:
    with publishing(server) as publisher:
        server.client.config_set("min-replicas-to-write", 1)
        publisher.publish([message("a", 1)])
        assert not publisher.logs and publisher.published == 1


def test_the_key_of_a_reign_outlives_the_logs_and_goes_with_the_reign(server: RedisServer) -> None:
    with publishing(server) as publisher:
        key = KEYS.reign(0, publisher.reign)
        publisher.publish([message("a", 1)])
        assert server.client.ttl(key) > server.client.ttl(KEYS.log("a"))
        publisher.renew()
        assert not server.client.exists(key) and server.client.exists(KEYS.reign(0, publisher.reign))


def test_a_server_that_stops_being_a_master_is_refused(server: RedisServer) -> None:
    with publishing(server) as publisher:
        server.client.replicaof("127.0.0.1", 1)
        with pytest.raises(RedisUnavailable, match="read only"):
            publisher.publish([message("a", 1)])


def test_a_message_that_comes_after_a_newer_one_leaves_no_hole(server: RedisServer) -> None:
    with publishing(server) as publisher:
        publisher.publish([message("a", 1), message("a", 3)])
        publisher.publish([message("a", 2)])
        assert ids(server) == []
        publisher.publish([message("a", 4)])
        assert ids(server) == [4]


def test_a_value_of_another_type_in_place_of_a_log_is_removed_and_publishing_goes_on(server: RedisServer) -> None:
    with publishing(server) as publisher:
        reign = publisher.reign
        server.client.set(KEYS.log("a"), "of another program")
        publisher.publish([message("a", 1), message("b", 2)])
        assert ids(server) == [] and ids(server, "b") == [2]
        publisher.publish([message("a", 3)])
        assert ids(server) == [3] and publisher.reign == reign


def test_large_wakes_are_sent_in_small_batches(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher_module, "BATCH_SIZE", 50_000)
    with publishing(server) as publisher:
        batches: list[int] = []
        send = publisher._publish
        monkeypatch.setattr(publisher, "_publish", lambda batch: batches.append(len(batch)) or send(batch))
        publisher.publish(message("large", n, 20_000) for n in range(1, 11))
        assert batches == [3, 3, 3, 1]
        assert publisher.published == 10


def test_of_a_large_message_the_log_has_only_the_id(server: RedisServer) -> None:
    with publishing(server) as publisher:
        publisher.publish([message("a", 1, 100_000)])
        assert server.client.xrange(KEYS.log("a")) == [(b"1-0", {b"m": b""})]
