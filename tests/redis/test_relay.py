"""The relay: what the steward hears and finds goes to Redis in order, and nothing is lost if that fails."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from redis_parts import RedisServer, needs_redis, redis_server
from support import until

import pgbus_gevent.redis.relay as relay_module
from pgbus_gevent.core.rows import EphemeralRow
from pgbus_gevent.errors import RedisUnavailable
from pgbus_gevent.redis.keys import Keys
from pgbus_gevent.redis.publisher import Outgoing, Publisher
from pgbus_gevent.redis.relay import HOLD, Relay, Sequencer
from pgbus_gevent.redis.session import RedisSession
from pgbus_gevent.redis.urls import parse


def wake(id: int, stream: str = "a") -> Outgoing:
    return Outgoing(stream, str(id), id)


class TestSequencer:
    """Messages of one stream in order, each once, and none left out."""

    def test_a_message_waits_for_the_one_before_it(self) -> None:
        order = Sequencer()
        assert list(order.add(wake(1), 0, 0.0)) == [wake(1)]
        assert list(order.add(wake(3), 2, 0.0)) == []
        assert list(order.add(wake(4), 3, 0.0)) == []
        assert list(order.add(wake(2), 1, 0.0)) == [wake(2), wake(3), wake(4)]
        assert order.next_due() is None

    def test_it_does_not_wait_for_long(self) -> None:
        order = Sequencer()
        list(order.add(wake(1), 0, 0.0))
        assert list(order.add(wake(4), 3, 0.0)) == []
        assert list(order.add(wake(3), 2, 0.01)) == []
        assert order.next_due() == HOLD
        assert list(order.due(HOLD / 2)) == []
        assert list(order.due(HOLD)) == [wake(3), wake(4)]
        assert order.next_due() is None

    def test_a_message_comes_once_even_if_it_is_heard_and_found(self) -> None:
        order = Sequencer()
        assert list(order.add(wake(1), 0, 0.0)) == [wake(1)]
        assert list(order.add(wake(1), 0, 0.0)) == []

    def test_a_forged_id_holds_up_nothing(self) -> None:
        order = Sequencer()
        list(order.add(wake(1), 0, 0.0))
        assert list(order.add(wake(1000), 1, 0.0)) == [wake(1000)]
        assert list(order.add(wake(2), 1, 0.0)) == [wake(2)]
        assert list(order.add(wake(3), 2, 0.0)) == [wake(3)]

    def test_streams_do_not_wait_for_one_another(self) -> None:
        order = Sequencer()
        list(order.add(wake(1), 0, 0.0))
        list(order.add(wake(9), 8, 0.0))
        assert list(order.add(wake(5, "b"), 4, 0.0)) == [wake(5, "b")]


class Source:
    """The database of a relay, in memory. It is also its duty."""

    def __init__(self) -> None:
        self.leads = self.hears = True
        self.fetched: list[int] = []
        self.generation = "g1"
        self.messages: dict[int, str] = {}

    def redis_names(self) -> tuple[str, str]:
        return "secret", self.generation

    def wakes(self, ids: Sequence[int], *, size: int) -> list[tuple[int, str, str]]:
        self.fetched.append(len(ids))
        return [(id, "a", self.messages[id]) for id in sorted(ids)]

    def ephemerals(self, ids: Sequence[int]) -> dict[int, EphemeralRow]:
        return {id: EphemeralRow("a", "note", "x" * 10_000, None, None) for id in ids if id == 7}

    def message(self, id: int) -> str:
        self.messages[id] = json.dumps(["message", "a", id, id - 1, 1.5, None, f"data {id}", None, None])
        return self.messages[id]


@contextmanager
def relaying(server: RedisServer, source: Source) -> Iterator[Relay]:
    relay = Relay(parse(server.url), source, source, source, source)
    greenlet = gevent.spawn(relay.run)
    try:
        until(lambda: relay.publishing, "the relay publishes")
        yield relay
    finally:
        greenlet.kill()


@contextmanager
def hearing(server: RedisServer, generation: str = "g1", *, knows_reign: bool = False) -> Iterator[list[str]]:
    """Collect what a worker hears, in the background; ``lost`` stands where it has to look."""
    heard: list[str] = []
    session = RedisSession(parse(server.url), Keys("secret", generation, sharded=False))
    session.follow(["a"])
    if knows_reign:
        assert session.hears()

    def hear() -> None:
        while True:
            try:
                payloads, lost = session.receive(1.0)
            except RedisUnavailable as error:
                heard.append(f"ended: {error}")
                return
            heard.extend(payloads)
            if lost:
                heard.append("lost")

    greenlet = gevent.spawn(hear)
    try:
        yield heard
    finally:
        greenlet.kill()
        session.close()


def connections(admin: Any) -> int:
    """How many connections there were."""
    return int(admin.info("stats")["total_connections_received"])


@needs_redis
@pytest.mark.program
@pytest.mark.usefixtures("patient")
class TestRelay:
    """On a real server."""

    def test_what_the_steward_hears_and_finds_is_heard_in_order_and_once(self, single: RedisServer) -> None:
        source = Source()
        with relaying(single, source) as relay, hearing(single) as heard:
            payloads = [source.message(n) for n in range(1, 11)]
            relay.heard([payloads[0], payloads[4], payloads[9]])
            relay.found(range(1, 11))
            until(lambda: len(heard) == 10, "all messages arrive")
            assert heard == payloads
            relay.heard(['["control"]'])
            until(lambda: heard[10:] == ['["control"]'], "control wakes are passed on")

    def test_a_wake_that_only_names_streams_is_left_to_the_message_that_the_steward_finds(
        self, single: RedisServer
    ) -> None:
        source = Source()
        with relaying(single, source) as relay, hearing(single) as heard:
            relay.heard(['["moved","a"]', '["moved"]'])
            payload = source.message(1)
            relay.found([1])
            until(lambda: heard == [payload], "the message arrives alone")
            source.messages[2] = '["moved","a"]'  # too large for Redis
            relay.found([2])
            until(lambda: heard[1:] == ['["moved","a"]'], "of a very large message, the stream is named")

    def test_a_large_ephemeral_message_is_fetched_once_for_all_workers(self, single: RedisServer) -> None:
        with relaying(single, Source()) as relay, hearing(single) as heard:
            relay.heard(['["large","a",7]', '["large","a",8]'])
            until(lambda: len(heard) == 2, "both arrive")
            assert json.loads(heard[0]) == ["ephemeral", "a", 7, "note", "x" * 10_000, None, None]
            assert heard[1] == '["large","a",8]'

    def test_a_steward_that_starts_again_begins_a_new_reign(self, single: RedisServer) -> None:
        source = Source()
        with relaying(single, source) as relay, hearing(single, knows_reign=True) as heard:
            relay.heard([source.message(1)])
            until(lambda: len(heard) == 1, "the message arrives")
            relay.heard([source.message(2), '["ephemeral","a",9,null,"x",null,null]'])
            relay.restarted()
            until(lambda: "lost" in heard, "everybody looks")
            relay.heard(['["control"]'])
            until(lambda: '["control"]' in heard, "what comes later arrives")
            # A message 3 may have been missed, so the log must not end with 2 in the new reign. Each worker looks at a random
            # time, so it may do so before it hears the ephemeral message.
            found = [each for each in heard[1:] if each != "lost"]
            assert found == ['["ephemeral","a",9,null,"x",null,null]', '["control"]'] and relay.reigns == 2

    def test_a_flood_of_wakes_begins_a_new_reign_and_does_not_end_the_task(
        self, single: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relay_module, "QUEUE", 500)
        source = Source()
        with relaying(single, source) as relay, hearing(single, knows_reign=True) as heard:
            relay.heard([source.message(n) for n in range(1, 501)])
            gevent.sleep(0)  # the relay publishes its first batch, and waits for the answers
            relay.heard([source.message(n) for n in range(501, 1002)])
            until(lambda: relay.reigns == 2 and "lost" in heard, "a new reign begins, and the workers look")

    @pytest.mark.parametrize("right", ["xadd", "expire", "unlink", "publish", "set"])
    def test_a_right_that_is_missing_is_told_once_before_any_worker_relies_on_the_relay(
        self, right: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(relay_module, "REFUSED", 0.5)
        with redis_server() as server, server.client as admin:
            admin.execute_command("ACL", "SETUSER", "app", "on", ">pw", "+@all", "&*", "~*", f"-{right}")
            source = Source()
            relay = Relay(parse(server.url.replace("//", "//app:pw@")), source, source, source, source)
            with hearing(server) as heard:
                greenlet = gevent.spawn(relay.run)
                try:
                    tries = until(lambda: connections(admin), "it tries")
                    until(lambda: connections(admin) - tries >= 3, "it tries again")
                    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
                    assert len(told) == 1 and f"'{right}'" in told[0] and "docs/redis.md" in told[0]
                    assert relay.reigns == 0 and heard == []
                    admin.execute_command("ACL", "SETUSER", "app", f"+{right}")
                    until(lambda: relay.publishing, "it publishes")
                    relay.heard([source.message(1)])
                    until(lambda: source.messages[1] in heard, "the message arrives")
                finally:
                    greenlet.kill()

    def test_large_messages_that_wait_have_a_limit_too(
        self, single: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relay_module, "QUEUE_BYTES", 1000)
        source = Source()
        with relaying(single, source) as relay:
            relay.heard([source.message(n) for n in range(1, 101)])
            until(lambda: relay.reigns == 2, "a new reign begins")

    def test_what_comes_while_the_first_beacon_is_sent_is_published(
        self, single: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = Source()
        relays: list[Relay] = []

        class Slow(Publisher):
            def _begin(self, *, logs: bool = True) -> None:
                super()._begin(logs=logs)  # the beacon has been sent, and a worker may have asked the database already
                relays[0].heard([source.message(1)])

        monkeypatch.setattr(relay_module, "Publisher", Slow)
        relays.append(Relay(parse(single.url), source, source, source, source))
        with hearing(single) as heard:
            greenlet = gevent.spawn(relays[0].run)
            try:
                until(lambda: heard == [source.message(1)], "the message arrives")
            finally:
                greenlet.kill()

    def test_a_relay_that_is_not_the_steward_publishes_nothing(self, single: RedisServer) -> None:
        source = Source()
        # A session that has heard no beacon of the first reign would take the second one for the first.
        with relaying(single, source) as relay, hearing(single, knows_reign=True) as heard:
            source.leads = False
            until(lambda: not relay.publishing, "the relay stops")
            relay.heard([source.message(1)])
            source.leads = True
            until(lambda: relay.publishing and "lost" in heard, "it publishes again, and the workers look")
            assert heard == ["lost"]

    def test_many_large_messages_at_once_are_fetched_in_slices_and_begin_a_new_reign(
        self, single: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relay_module, "QUEUE_BYTES", 1_000_000)
        source = Source()
        for n in range(1, 1001):
            source.messages[n] = json.dumps(["message", "a", n, n - 1, 1.5, None, "x" * 10_000, None, None])
        with relaying(single, source) as relay, hearing(single) as heard:
            relay.found(range(1, 1001))
            assert sum(source.fetched) <= 150 and max(source.fetched) <= 50
            until(lambda: relay.reigns == 2 and relay.publishing, "a new reign begins, so the workers look")
            payload = source.message(1001)
            relay.found([1001])
            until(lambda: payload in heard, "and the next message arrives")

    def test_a_steward_that_hears_nothing_does_not_begin_to_relay(self, single: RedisServer) -> None:
        source = Source()
        with relaying(single, source) as relay:
            source.hears = False
            gevent.sleep(0.2)
            assert relay.publishing, "it may hear again soon"
            source.leads = False
            until(lambda: not relay.publishing, "the relay stops")
            source.leads = True
            gevent.sleep(0.5)
            assert not relay.publishing
            source.hears = True
            until(lambda: relay.publishing, "it relays now")

    def test_a_changed_generation_ends_the_sessions(self, single: RedisServer) -> None:
        source = Source()
        with relaying(single, source), hearing(single) as heard:
            source.generation = "g2"
            until(lambda: heard and "failed over" in heard[-1], "the session ends")

    def test_after_an_outage_of_redis_the_workers_look(self) -> None:
        source = Source()
        with redis_server() as server, relaying(server, source) as relay:
            server.kill()
            until(lambda: not relay.publishing, "the relay notices")
            server.start()
            until(lambda: relay.publishing, "the relay publishes again")
            with hearing(server) as heard:
                payload = source.message(1)
                relay.found([1])
                until(lambda: payload in heard, "messages arrive again")
            assert relay.reigns == 2
