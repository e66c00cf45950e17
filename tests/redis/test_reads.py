"""Reads from the logs in Redis: as right as the table's, whatever has happened to Redis."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from redis_parts import RedisCluster, RedisServer, needs_redis, redis_server
from streamer_parts import FakeClient, Parts, Table, wait_until

from pgbus_gevent.core.wakes import NewMessage
from pgbus_gevent.redis.keys import Keys
from pgbus_gevent.redis.publisher import Outgoing, Publisher
from pgbus_gevent.redis.reads import RedisReads
from pgbus_gevent.redis.session import RedisSession
from pgbus_gevent.redis.urls import parse
from pgbus_gevent.streamer.listener import Listener
from pgbus_gevent.streamer.reader import Reader

pytestmark = [needs_redis, pytest.mark.program, pytest.mark.usefixtures("patient")]


class Worker:
    """The parts of a worker over a table, with a relay that publishes to Redis only what the test says."""

    def __init__(self, url: str, *, generation: str = "g") -> None:
        self.table = Table()
        self.parts = Parts(self.table, ring_messages=8, page_size=4)
        self.board = self.parts.board
        keys = Keys(f"secret {random.random()}", generation, sharded="cluster" in url)
        self.publisher = Publisher(parse(url), keys)
        self.session = RedisSession(parse(url), keys)
        self.session.follow(None)
        self.reads = RedisReads(parse(url), self.table, SimpleNamespace(session=self.session), self.board)
        self.parts.reader = Reader(self.reads, self.board, page_size=4, ring_messages=8)
        self._listener = Listener(None, self.board)  # type: ignore[arg-type]
        self._pump: Any = None
        self.heard = 0

    def __enter__(self) -> Worker:
        self.parts.__enter__()
        self.beacon()
        wait_until(lambda: self.session.reign == self.publisher.reign, "the beacon arrives")
        self._pump = gevent.spawn(self._hear)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pump.kill()
        self.session.close()
        self.publisher.close()
        self.reads.discard_idle()
        self.parts.__exit__(*exc_info)

    def _hear(self) -> None:
        while True:
            payloads, lost = self.session.receive(1.0)
            self.heard += len(payloads)
            self._listener.hear(payloads)
            if lost:
                self.probe()

    def probe(self) -> None:
        """Look at all streams, as after a resync."""
        for log in self.board.registry.logs():
            self.board.looks.add(log)

    def beacon(self) -> None:
        self.publisher.beacon()

    def append(self, stream: str = "orders", *, relayed: bool = True) -> int:
        message = self.table.append(stream)
        if relayed:
            self.relay(message)
        return message.id

    def relay(self, *messages: NewMessage) -> None:
        self.publisher.publish(Outgoing(each.stream, json.dumps(["message", *each]), each.id) for each in messages)

    def settled(self, *clients: FakeClient) -> None:
        def settled() -> bool:
            self.session.interrupt()
            return all(
                client.subscription is not None
                and client.subscription.cursor is not None
                and client.subscription.cursor >= self.table.head(client.stream)
                for client in clients
            )

        wait_until(settled, "the clients have everything", 20.0)


@pytest.fixture(params=["single", "cluster"])
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    with Worker(request.getfixturevalue(request.param).url) as one:
        yield one


def test_a_client_starts_resumes_and_replays_without_the_database(worker: Worker) -> None:
    ids = [worker.append() for _ in range(30)]
    wait_until(lambda: worker.heard == 30, "the wakes are heard, so that none leads to a look later")
    live = worker.parts.connect()
    worker.settled(live)
    assert live.ids == []
    behind = worker.parts.connect(since=ids[9])
    page = worker.parts.connect("orders", since=ids[20])
    worker.settled(live, behind, page)
    new = worker.append()
    worker.settled(live, behind, page)
    assert (live.ids, behind.ids, page.ids) == ([new], [*ids[10:], new], [*ids[21:], new])
    assert worker.table.reads == []
    with_replay = [worker.append("other") for _ in range(10)]
    wait_until(lambda: worker.heard == 41, "the wakes are heard")
    replay = worker.parts.connect("other", replay=3)
    wait_until(lambda: len(replay.ids) == 3, "the replay arrives")
    assert replay.ids == with_replay[-3:] and worker.table.reads == []


def test_a_gap_is_filled_without_the_database(worker: Worker) -> None:
    worker.append()
    wait_until(lambda: worker.heard == 1, "the wake is heard")
    client = worker.parts.connect()
    worker.settled(client)
    hear = worker._listener.hear
    worker._listener.hear = lambda payloads: None  # type: ignore[method-assign]  # a wake is lost
    lost = worker.append()
    wait_until(lambda: worker.heard == 2, "it was dropped")
    worker._listener.hear = hear  # type: ignore[method-assign]
    worker.table.reads.clear()
    new = worker.append()
    wait_until(lambda: client.ids == [lost, new], "both arrive")
    gevent.sleep(0.1)
    assert worker.table.reads == []


def test_a_probe_is_not_content_with_what_redis_has(worker: Worker) -> None:
    first = worker.append()
    wait_until(lambda: worker.heard == 1, "the wake is heard")
    client = worker.parts.connect()
    worker.settled(client)
    message = worker.table.append("orders")
    worker.publisher.publish([Outgoing("orders", json.dumps(["message", *message]), message.id)])
    missed = worker.append(relayed=False)
    log = worker.board.log("orders")
    assert log is not None and first < missed
    log.announced = missed  # as a probe does
    worker.board.looks.add(log)
    wait_until(lambda: client.ids == [message.id, missed], "the table's last message arrives, too")


def test_a_cursor_that_redis_does_not_have_goes_to_the_database(worker: Worker) -> None:
    old = [worker.append(relayed=False) for _ in range(3)]
    ids = [worker.append() for _ in range(3)]
    client = worker.parts.connect(since=old[0])
    worker.settled(client)
    assert client.ids == [*old[1:], *ids]
    assert "pages" in worker.table.reads


def test_everything_that_is_retained_comes_from_the_database(worker: Worker) -> None:
    ids = [worker.append(relayed=n > 0) for n in range(5)]
    client = worker.parts.connect(since=0)
    worker.settled(client)
    assert client.ids == ids and worker.table.reads


def test_a_client_that_knows_of_a_newer_message_is_not_told_that_it_is_ahead(worker: Worker) -> None:
    worker.append()
    newest = worker.append(relayed=False)
    client = worker.parts.connect(since=newest)
    worker.settled(client)
    assert client.controls("gap-detected") == [] and client.ids == []


def test_a_client_that_is_ahead_of_the_table_is_told(worker: Worker) -> None:
    ids = [worker.append() for _ in range(2)]
    client = worker.parts.connect(since=ids[-1] + 5)
    wait_until(lambda: client.ids == ids, "all that is retained follows")
    assert '"ahead"' in client.controls("gap-detected")[0]


def test_a_stream_that_was_not_published_in_this_reign_is_opened_from_the_database(worker: Worker) -> None:
    worker.append()
    worker.publisher._begin()
    wait_until(lambda: worker.session.reign == worker.publisher.reign, "the new reign is heard")
    client = worker.parts.connect()
    worker.settled(client)
    assert worker.table.reads[0] == "openings"
    new = worker.append()
    worker.settled(client)
    assert client.ids == [new]


def test_a_hole_in_a_log_is_filled_from_the_database(worker: Worker) -> None:
    ids = [worker.append(), worker.append(relayed=False), worker.append()]
    client = worker.parts.connect(since=ids[0])
    worker.settled(client)
    assert client.ids == ids[1:]


def test_a_flushed_redis_answers_nothing_wrong(single: RedisServer) -> None:
    with Worker(single.url) as worker:
        ids = [worker.append() for _ in range(5)]
        single.client.flushall()
        ids.append(worker.append())
        client = worker.parts.connect(since=ids[1])
        worker.settled(client)
        assert client.ids == ids[2:]


def test_an_entry_that_no_relay_wrote_is_not_believed(single: RedisServer) -> None:
    with Worker(single.url) as worker:
        ids = [worker.append() for _ in range(2)]
        forged = json.dumps(["message", "orders", ids[-1] + 1, ids[-1], 0.0, None, "forged", None, None]).encode()
        key = worker.publisher.keys.log("orders")
        single.client.xadd(key, {"m": b"0" * 22 + b" reign 1 " + forged}, id=f"{ids[-1] + 1}-0")
        client = worker.parts.connect(since=ids[0])
        worker.settled(client)
        assert client.ids == ids[1:] and b"forged" not in client.received
        # Not even a genuine entry under another id, or in the log of another stream.
        genuine = single.client.xrange(key)[0][1]
        single.client.xadd(worker.publisher.keys.log("other"), genuine, id="7-0")
        other = worker.parts.connect("other", since=3)
        wait_until(lambda: not worker.parts.waits(other), "the client starts")
        assert other.ids == []


def test_a_value_of_another_type_in_place_of_a_log_costs_only_its_stream_a_question_to_the_database(
    single: RedisServer,
) -> None:
    with Worker(single.url) as worker:
        ids = [worker.append() for _ in range(3)]
        others = [worker.append("other") for _ in range(3)]
        key = worker.publisher.keys.log("orders")
        single.client.delete(key)
        single.client.set(key, "of another program")
        client = worker.parts.connect(since=ids[0])
        worker.settled(client)
        assert client.ids == ids[1:] and worker.reads.answered["redis"] == 0
        before = len(worker.table.reads)
        other = worker.parts.connect("other", since=others[0])
        worker.settled(other)
        assert other.ids == others[1:] and len(worker.table.reads) == before
        ids += [worker.append(), worker.append()]
        worker.settled(client)
        assert client.ids == ids[1:] and single.client.xlen(key) == 1


def test_a_redis_that_goes_away_costs_one_short_wait(single: RedisServer) -> None:
    with redis_server() as server, Worker(server.url) as worker:
        ids = [worker.append() for _ in range(3)]
        server.kill()
        client = worker.parts.connect(since=ids[0])
        worker.settled(client)
        assert client.ids == ids[1:] and worker.reads.answered["redis"] == 0


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_to_redis_each_client_gets_everything_once(
    seed: int, single: RedisServer, cluster: RedisCluster
) -> None:
    chance = random.Random(seed)
    servers = cluster.nodes if seed % 3 == 0 else [single]
    with Worker((cluster if seed % 3 == 0 else single).url) as worker:
        streams = ["a", "b", "c"]
        expected: list[tuple[FakeClient, int]] = []
        # How many of the later reads Redis can answer is up to chance; it answers this one.
        ids = [worker.append("a") for _ in range(12)]
        wait_until(lambda: worker.heard == 12, "the wakes are heard")
        expected.append((worker.parts.connect("a", since=ids[0]), ids[0]))
        worker.settled(expected[0][0])
        assert worker.reads.answered["redis"] > 0
        for _ in range(150):
            stream = chance.choice(streams)
            key = worker.publisher.keys.log(stream)
            server = next((one for one in servers if _has(one, key)), servers[0])
            step = chance.random()
            if step < 0.55:
                worker.append(stream, relayed=chance.random() < 0.85)
            elif step < 0.75:
                ids = worker.table.ids(stream)
                if ids:
                    since = chance.choice(ids)
                    expected.append((worker.parts.connect(stream, since=since), since))
            elif step < 0.80:
                for each in servers:
                    each.client.flushall()
            elif step < 0.85 and _has(server, key):
                for name, _ in chance.sample(entries := server.client.xrange(key), min(2, len(entries))):
                    server.client.xdel(key, name)
            elif step < 0.90 and _has(server, key):
                server.client.xtrim(key, maxlen=chance.randrange(3), approximate=False)
            elif step < 0.95:
                worker.beacon()
            else:
                gevent.sleep(0.01)
        worker.beacon()
        for stream in streams:
            worker.append(stream)
        worker.probe()
        worker.settled(*(client for client, _ in expected))
        for client, since in expected:
            assert client.ids == worker.table.ids(client.stream, above=since)
            assert client.controls("gap-detected") == []


def _has(server: RedisServer, key: str) -> bool:
    try:
        return bool(server.client.exists(key))
    except Exception:  # another node of the cluster has the slot
        return False
