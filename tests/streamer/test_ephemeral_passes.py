"""Ephemeral messages that come faster than a socket takes them: they are kept within bounds, and dropped ones are counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from streamer_parts import FakeClient, Parts, wait_until
from support import get, serve_process, serving, session, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.core import ephemeral_buffers, sse
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import ephemeral_passes
from pgbus_gevent.testing.client import StreamClient

BURST = 440
"""How many messages of 7 kB: together 3 MB, far more than a socket takes."""


def burst(url: str, stream: str = "orders", count: int = BURST) -> None:
    """Publish in one transaction, so that all notifications come at once."""
    with session(url) as connection:
        connection.autocommit = False
        with connection.cursor() as cursor:
            cursor.execute(
                "select pgbus.broadcast_ephemeral(%s, n || repeat('x', 7000)) from generate_series(1, %s) n",
                (stream, count),
            )
        connection.commit()


def numbers(client: StreamClient) -> list[int]:
    return [int(message.data.rstrip("x")) for message in client.messages]


def sample(url: str, name: str) -> float:
    lines = get(url, "/pgbus/metrics").body.decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def test_a_client_that_reads_gets_all_of_a_burst(pgbus_database: str) -> None:
    with serve_process(pgbus_database) as server:
        clients = [StreamClient(server.url, "/pgbus/streams/orders") for _ in range(3)]
        clients += [StreamClient(server.url, "/pgbus/streams?stream=stock&stream=orders")]
        for client in clients:
            client.next("pgbus:connected", timeout=20)
        for n in range(3):
            burst(pgbus_database)
            for client in clients:
                until(lambda client=client: len(client.messages) >= (n + 1) * BURST, "all arrive")  # noqa: B023
        for client in clients:
            assert numbers(client) == [*range(1, BURST + 1)] * 3
            client.close()


def test_a_client_that_does_not_read_misses_the_oldest_which_are_counted_and_logged_once(
    pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(ephemeral_buffers, "MAX_KEPT", 500_000)
    with serving(pgbus_settings, write_deadline=600.0) as server:
        reading, slow = server.live("orders"), server.live("orders")
        slow.pause()
        for n in range(1, 34):
            # There are never more messages at once than are kept.
            burst(pgbus_database, count=40)
            until(lambda: len(reading.messages) == n * 40, "the client that reads gets all messages")  # noqa: B023
        last = pgbus_bus.stream("orders").broadcast("0")
        slow.go_on()
        until(lambda: slow.last_id == str(last), "it gets what is stored")
        until(lambda: server.instance.dispatcher.missed + len(slow.messages) == 33 * 40 + 1, "and what was kept")
        assert len(slow.messages) < 33 * 40
        assert sample(server.url, "pgbus_ephemerals_missed_total") == server.instance.dispatcher.missed > 0
        told = [record.getMessage() for record in caplog.records if "faster than a client reads" in record.getMessage()]
        assert len(told) == 1 and "'orders'" in told[0]
        # The kept messages are dropped.
        until(lambda: not len(server.instance.board.ephemeral_buffers), "nothing is kept any more")


@pytest.fixture
def finely_grained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ephemeral_passes, "EPHEMERAL_BYTES", 30)
    monkeypatch.setattr(ephemeral_passes, "SLICE", 2)


def data(client: FakeClient) -> list[str]:
    return [message.data for message in client.messages]


def connected(parts: Parts, count: int) -> list[FakeClient]:
    clients = [parts.connect() for _ in range(count)]
    wait_until(lambda: all(client.received for client in clients))
    return clients


def quiet(parts: Parts) -> None:
    wait_until(lambda: not parts.delivering)


def kept(parts: Parts) -> tuple[int, int, int]:
    found = parts.board.ephemeral_buffers
    return len(found), found.waiting, found.bytes


def test_a_blocked_client_gets_them_in_order_when_it_reads_again(finely_grained: None) -> None:
    with Parts() as parts:
        clients = connected(parts, 5)
        for client in clients[1:3]:
            client.jammed = True
        for n in range(20):
            parts.ephemeral(str(n))
        quiet(parts)
        clients[1].unblock()
        quiet(parts)
        for n in range(20, 30):
            parts.ephemeral(str(n))
        quiet(parts)
        clients[2].unblock()
        quiet(parts)
        assert [data(client) for client in clients] == [[str(n) for n in range(30)]] * 5
        assert kept(parts) == (0, 0, 0)
        assert parts.dispatcher.missed == 0


@pytest.mark.parametrize("leave", ["at once", "while it catches up"])
def test_nothing_is_kept_for_a_client_that_has_left(leave: str, finely_grained: None) -> None:
    with Parts() as parts:
        staying, leaving = connected(parts, 2)
        leaving.jammed = True
        for n in range(20):
            parts.ephemeral(str(n))
        quiet(parts)
        assert kept(parts)[2] > 0
        if leave == "while it catches up":
            leaving.unblock()
        parts.leave(leaving)
        quiet(parts)
        assert kept(parts) == (0, 0, 0)
        assert len(data(staying)) == 20


def test_stored_and_ephemeral_messages_take_turns_on_a_slow_socket(finely_grained: None) -> None:
    """However little the socket takes at a time, neither kind keeps the other waiting for ever."""
    with Parts(ring_messages=100) as parts:
        [client] = connected(parts, 1)
        client.on_send = lambda: setattr(client, "jammed", True)
        for n in range(20):
            parts.publish(data="stored " + "x" * 70_000)
            parts.ephemeral(f"note {n}" + "x" * 20)

        def unblocked(count: int) -> list[str]:
            for _ in range(count):
                # The ring is too small for the stored ones, so a reader fetches them.
                wait_until(lambda: not parts.delivering and not parts.reading)
                client.unblock()
            return [text.partition(" ")[0] for text in data(client)]

        first = unblocked(12)
        assert first.count("stored") >= 4 and first.count("note") >= 4
        unblocked(60)
        assert sorted(text.partition(" ")[0] for text in data(client)) == ["note"] * 20 + ["stored"] * 20


@pytest.mark.parametrize("size", ["MAX_WAITING", "MAX_BYTES"])
def test_the_messages_that_wait_are_bounded(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[str, Callable[[], int]] = {
        "MAX_WAITING": lambda: 3,
        "MAX_BYTES": lambda: 3 * len(sse.message("0", event="note")),
    }
    monkeypatch.setattr(ephemeral_buffers, size, limits[size]())
    with Parts() as parts:
        [client] = connected(parts, 1)
        for n in range(10):
            parts.ephemeral(str(n))
        quiet(parts)
        assert data(client) == ["0", "1", "2"]
        assert parts.board.dropped == 7
        parts.ephemeral("x" * 1000)
        quiet(parts)
        assert len(data(client)) == 4, "a single message is kept at any size"
