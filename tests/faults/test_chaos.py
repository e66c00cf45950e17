"""Delivery is exactly once and in order while many publishers and clients act at random, on two servers; seeded."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import psycopg2
import psycopg2.errors
import pytest
from support import ServeProcess, connect, received, run, serve_process, session, stored, until

from pgbus_gevent.testing.client import StreamClient

STREAMS = [f"chaos:{n}" for n in range(6)]
PUBLISHERS, MESSAGES, CLIENTS = 50, 100, 10
BOUND = 7.0
"""Seconds after which no further seed is started."""


@pytest.fixture
def servers(pgbus_database: str) -> Iterator[list[ServeProcess]]:
    # The second server has small rings, so that it must often read from the database.
    small = {"PGBUS_RING_MESSAGES": "5", "PGBUS_PAGE_SIZE": "7", "PGBUS_READERS": "2", "PGBUS_SEND_BUFFER": "4096"}
    with serve_process(pgbus_database) as first, serve_process(pgbus_database, **small) as second:
        yield [first, second]


class Publisher:
    """Publishes ``MESSAGES`` messages in transactions that may be rolled back. :attr:`committed` has the committed ones."""

    def __init__(self, url: str, isolation: str, number: int, seed: int) -> None:
        self.random = random.Random(seed * 1000 + number)
        self.number = number
        self.committed: dict[str, list[str]] = defaultdict(list)
        self.retried = 0
        self.done = False
        self._url = url
        self._isolation = isolation

    def run(self) -> None:
        sent = 0
        with session(self._url) as connection:
            connection.set_session(isolation_level=self._isolation, autocommit=False)
            while sent < MESSAGES:
                count = min(self.random.randint(1, 5), MESSAGES - sent)
                batch = [(self.random.choice(STREAMS), f"{self.number}.{sent + n}") for n in range(count)]
                if self._transaction(connection, batch):
                    sent += count
        self.done = True

    def _transaction(self, connection: psycopg2.extensions.connection, batch: list[tuple[str, str]]) -> bool:
        """Return whether these messages are done, by a commit or a rollback; False if they must be tried again."""
        function = "broadcast_on_commit"
        if self.random.random() < 0.25:
            # Appends without waiting for the commit, to one stream only: two such transactions could deadlock over two streams.
            function, batch = "broadcast", [(batch[0][0], data) for _, data in batch]
        try:
            for stream, data in batch:
                run(connection, f"select pgbus.{function}(%s, %s)", stream, data)
            gevent.sleep(self.random.choice([0, 0, self.random.random() * 0.03]))
            if self.random.random() < 0.1:
                connection.rollback()
                return True
            connection.commit()
        except psycopg2.errors.SerializationFailure:
            connection.rollback()
            self.retried += 1
            return False
        for stream, data in batch:
            self.committed[stream].append(data)
        return True


def drop_and_resume(client: StreamClient, servers: list[ServeProcess], seed: int) -> None:
    """Forever: read for a while, leave for a while, come back to any server."""
    choose = random.Random(seed)
    while True:
        gevent.sleep(choose.random() * 0.3)
        client.drop()
        gevent.sleep(choose.random() * 0.1)
        client.url = choose.choice(servers).url
        client.resume()


def end_sessions(url: str, seed: int) -> None:
    """Forever: now and then end a session of the servers, which may be a LISTEN session."""
    choose = random.Random(seed)
    with session(url) as connection:
        while True:
            gevent.sleep(choose.random() * 0.6)
            run(
                connection,
                "select pg_terminate_backend(pid) from (select pid from pg_stat_activity where"
                " datname = current_database() and application_name like 'pgbus-%%' order by random() limit 1) one",
            )


def until_it_has(client: StreamClient, want: list[tuple[int, str]]) -> None:
    """Wait for the last message. A client that is refused for a passing reason comes back, as a browser does."""

    def has_it() -> bool:
        if client.closed:
            client.resume()
        return client.last_id == str(want[-1][0])

    until(has_it, "it has the last message", pause=0.05)


@pytest.mark.parametrize(
    ("isolation", "trouble"), [("read committed", False), ("repeatable read", False), ("read committed", True)]
)
def test_every_client_gets_every_committed_message_once_and_in_order_whatever_happens(
    isolation: str,
    trouble: bool,
    servers: list[ServeProcess],
    pgbus_database: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ending = monotonic() + BOUND
    for seed in (1,) if trouble else (1, 2, 3):
        if monotonic() > ending:
            break  # the machine is slow today
        began = monotonic()
        with session(pgbus_database) as connection:
            starts = {stream: run(connection, "select pgbus.last_id(%s)", stream)[0][0] for stream in STREAMS}
        watched = [STREAMS[n % len(STREAMS)] for n in range(CLIENTS)]
        clients = [connect(servers[n % 2].url, stream, since=starts[stream]) for n, stream in enumerate(watched)]
        restless: list[Any] = [
            gevent.spawn(drop_and_resume, client, servers, seed * 100 + n) for n, client in enumerate(clients)
        ]
        if trouble:
            restless.append(gevent.spawn(end_sessions, pgbus_database, seed))
        publishers = [Publisher(pgbus_database, isolation, n, seed) for n in range(PUBLISHERS)]
        gevent.joinall([gevent.spawn(publisher.run) for publisher in publishers], timeout=120, raise_error=True)
        assert all(publisher.done for publisher in publishers), "they have published in time"
        took = monotonic() - began
        gevent.killall(restless)

        with session(pgbus_database) as connection:
            expected = {
                stream: [message for message in stored(connection, stream) if message[0] > starts[stream]]
                for stream in STREAMS
            }
        for stream in STREAMS:
            published = sorted(data for publisher in publishers for data in publisher.committed[stream])
            assert sorted(data for _, data in expected[stream]) == published
        for n, (client, stream) in enumerate(zip(clients, watched, strict=True)):
            want = expected[stream]
            until_it_has(client, want)
            got = received(client)
            assert got == want, f"seed {seed}, client {n}: {len(got)} messages, and not these {len(want)}"
            assert [frame.event for frame in client.frames if frame.event == "pgbus:gap-detected"] == []
            client.close()
        with capsys.disabled():
            total, retried = sum(map(len, expected.values())), sum(publisher.retried for publisher in publishers)
            print(f"\n{isolation}, seed {seed}: {total} committed in {took:.1f} s, {retried} transactions retried")
