"""Clients that do not read, vanish, or never send a request: they do not delay the others, and cost no memory."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

import gevent
import psutil
import pytest
from support import (
    ServeProcess,
    connect,
    raw_client,
    received,
    serve_process,
    serving,
    session,
    stored,
    until,
    until_messages,
)

from pgbus_gevent.bus import Bus, Stream
from pgbus_gevent.core.ephemeral_buffers import MAX_WAITING
from pgbus_gevent.core.wakes import Ephemeral
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.testing.client import StreamClient

BATCH = 10
"""How many messages of 3 kB are published before all are awaited. They fit into a socket, so that a client that reads is never
blocked, however long a process stands still."""


def slow_down(client: StreamClient) -> None:
    """Have a client stop reading. Its receive buffer stays small: the kernel enlarges those of clients that read much at once."""
    assert client._socket is not None
    client._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.pause()


def publish(stream: Stream, readers: list[StreamClient], count: int) -> None:
    """Publish so many messages, and wait until each of the clients has them."""
    total = len(readers[0].messages) + count
    for number in range(count):
        stream.broadcast("x" * 3000)
        if number % BATCH == BATCH - 1:
            so_far = total - count + number + 1
            until(lambda: all(len(client.messages) == so_far for client in readers), "those who read have all")  # noqa: B023
    assert all(len(client.messages) == total for client in readers)


def test_a_client_that_stops_reading_does_not_hold_up_the_others(pgbus_database: str, pgbus_bus: Bus) -> None:
    # If they had to wait for it, it would be until the deadline.
    env = {"PGBUS_WRITE_DEADLINE": "600", "PGBUS_SEND_BUFFER": "16384"}
    with serve_process(pgbus_database, **env) as server:
        others = [connect(server.url, "orders") for _ in range(99)]
        stalled = connect(server.url, "orders")
        for client in (*others, stalled):
            client.next("pgbus:connected", timeout=20)
        slow_down(stalled)
        publish(pgbus_bus.stream("orders"), others, 150)
        assert len(stalled.messages) < 150
        assert len(connections(server)) == 100
        for client in (*others, stalled):
            client.close()


def test_a_client_that_stops_reading_is_closed_by_the_deadline_and_gets_all_by_its_cursor(
    pgbus_database: str, pgbus_bus: Bus
) -> None:
    stream = pgbus_bus.stream("orders")
    env = {"PGBUS_WRITE_DEADLINE": "3", "PGBUS_SEND_BUFFER": "16384"}
    with serve_process(pgbus_database, **env) as server, session(pgbus_database) as connection:
        others = [connect(server.url, "orders") for _ in range(99)]
        stalled = connect(server.url, "orders")
        for client in (*others, stalled):
            client.next("pgbus:connected", timeout=20)
        publish(stream, [*others, stalled], 100)
        slow_down(stalled)
        publish(stream, others, 150)
        until(lambda: len(connections(server)) == 99, "the stalled one is closed")
        publish(stream, others, 20)

        stalled.go_on()
        stalled.wait_closed(timeout=20)
        assert len(stalled.messages) < 270
        stalled.resume()
        until_messages(stalled, 270)
        expected = stored(connection, "orders")
        assert received(stalled) == expected
        for client in others:
            assert received(client) == expected
            assert not client.closed
        for client in (*others, stalled):
            client.close()


def connections(server: ServeProcess) -> list[Any]:
    """Return the server's established connections."""
    port = int(server.url.rpartition(":")[2])
    found = psutil.Process(server.pid).net_connections("tcp")
    return [each for each in found if each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED]


def test_a_stalled_client_costs_a_bounded_amount_of_memory_and_gets_fifty_megabytes_when_it_reads_again(
    pgbus_database: str, pgbus_bus: Bus, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = pgbus_bus.stream("orders")
    with serve_process(pgbus_database, PGBUS_WRITE_DEADLINE="600") as server, session(pgbus_database) as connection:
        reading, stalled = connect(server.url, "orders"), connect(server.url, "orders")
        for client in (reading, stalled):
            client.next("pgbus:connected", timeout=20)
        stream.broadcast("x" * 64_000)
        reading.next(timeout=20)
        stalled.pause()
        rss = [server.rss]
        for n in range(100):
            stream.broadcast_many([f"{n}.{i} " + "x" * 64_000 for i in range(8)])
            rss.append(server.rss)
        until(lambda: len(reading.messages) == 801, "the reading one has all", timeout=60)
        rss.append(server.rss)
        assert not stalled.closed and len(stalled.messages) < 100

        stalled.go_on()
        until(lambda: len(stalled.messages) == 801, "the stalled one has all", timeout=60)
        rss.append(server.rss)
        expected = stored(connection, "orders")
        assert received(stalled) == expected
        assert received(reading) == expected
        for client in (reading, stalled):
            client.close()
    with capsys.disabled():
        print(f"\n50 MB beside a stalled client: {rss[0] >> 20} MB before, at most {max(rss) >> 20} MB")
    assert max(rss) - rss[0] < 40 << 20


# leaving


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def talk(sock: socket.socket) -> None:
    sock.sendall(b"x" * 5000)


@pytest.mark.parametrize("leave", [half_close, reset, socket.socket.close, talk])
@pytest.mark.parametrize("stalled", [False, True])
def test_clients_that_leave_in_any_way_are_gone_soon_with_their_descriptors(
    leave: Callable[[socket.socket], None], stalled: bool, pgbus_settings: Settings, pgbus_bus: Bus
) -> None:
    # No heartbeat comes in time, with which it would be noticed too.
    with serving(pgbus_settings, write_deadline=600.0, heartbeat=300.0, send_buffer=4096) as server:
        instance = server.instance
        witness = server.live("orders")
        before = len(psutil.Process().net_connections("tcp"))
        socks = [raw_client(server.url, "orders") for _ in range(50)]
        until(lambda: len(instance.registry) == 51, "all are connected")
        if stalled:
            for _ in range(20):
                pgbus_bus.stream("orders").broadcast("x" * 50_000)
            until(
                lambda: sum(client.blocked_since is not None for client in instance.registry.clients()) == 50, "blocked"
            )
        for sock in socks:
            leave(sock)
        until(lambda: len(instance.registry) == 1, "they are gone")
        for sock in socks:
            sock.close()
        until(lambda: len(psutil.Process().net_connections("tcp")) <= before, "their descriptors are free")
        pgbus_bus.stream("orders").broadcast("last")
        until(lambda: witness.messages and witness.messages[-1].data == "last", "the witness goes on")
        assert instance.counter["orders"].active_connections == 1


def test_a_client_that_leaves_while_it_is_admitted_leaves_nothing_behind(pgbus_settings: Settings) -> None:
    with serving(pgbus_settings) as server:
        for n in range(200):
            sock = raw_client(server.url, f"s:{n}")
            if n % 2:
                gevent.sleep(0.001)
            reset(sock)
        until(lambda: not server.instance.registry.clients() and not server.instance.board.looks, "all are gone")
        assert server.instance.registry.logs() == []
        assert server.instance.counter.streams == {}
        assert server.live("orders")


def test_a_flood_of_ephemerals_is_dropped_beyond_a_bound_with_one_warning_and_durable_messages_go_on(
    pgbus_settings: Settings, pgbus_bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(pgbus_settings) as server:
        client = server.live("orders")
        for number in range(3 * MAX_WAITING):
            server.instance.board.buffer_ephemeral(Ephemeral("orders", 0, None, str(number), None, None))
        last = pgbus_bus.stream("orders").broadcast("durable")
        until(lambda: client.last_id == str(last), "the durable one arrives")
        until(lambda: len(client.messages) == MAX_WAITING + 1, "and the others that were taken")
        assert len([record for record in caplog.records if "dropping" in record.getMessage()]) == 1
