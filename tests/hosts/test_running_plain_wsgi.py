"""The same application in a WSGI server that keeps its sockets: gevent's own server, with one greenlet for each client."""

from __future__ import annotations

from time import monotonic

import pytest
from plain_parts import HEARTBEAT, plain
from support import PATIENCE, get, greenlets, holds, received, session, stored, until, until_messages

from pgbus_gevent.bus import Bus
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.body_connection import BodyConnection


def test_messages_are_delivered_and_replayed(pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str) -> None:
    with plain(pgbus_settings, ring_messages=10, page_size=7) as server, session(pgbus_database) as connection:
        orders = pgbus_bus.stream("orders")
        orders.broadcast_many([str(n) for n in range(300)])
        live, replayed = server.live("orders"), server.live("orders", since=0)
        assert all(isinstance(client, BodyConnection) for client in server.instance.registry.clients())
        for n in range(50):
            orders.broadcast(f"live {n}\nsecond line")
            orders.broadcast(f"hint {n}", ephemeral=True)
        expected = stored(connection, "orders")
        # Ephemeral messages reach the clients that are connected at the time, so the other client may have got some of them.
        until(lambda: len(live.messages) == 100, "all arrive")
        until(lambda: len([each for each in received(replayed) if each[0]]) >= 350, "all were replayed")
        assert [each for each in received(live) if each[0]] == expected[300:]
        assert [data for id, data in received(live) if not id] == [f"hint {n}" for n in range(50)]
        assert [each for each in received(replayed) if each[0]] == expected
        response = live.wait_for_response()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "content-length" not in response.headers


def test_a_client_that_drops_and_resumes_misses_nothing(pgbus_settings: Settings, pgbus_bus: Bus) -> None:
    with plain(pgbus_settings) as server:
        client = server.live("orders")
        known = []
        for _ in range(3):
            known += [pgbus_bus.stream("orders").broadcast(str(n)) for n in range(3)]
            until_messages(client, len(known))
            client.drop()
            known += [pgbus_bus.stream("orders").broadcast(str(n)) for n in range(3)]
            client.resume()
        until(lambda: client.last_id == str(known[-1]), "it has the last one")
        assert [id for id, _ in received(client)] == known


def test_a_client_that_leaves_is_noticed_within_a_heartbeat(pgbus_settings: Settings) -> None:
    with plain(pgbus_settings) as server:
        before = len(greenlets())
        clients = [server.live("orders") for _ in range(20)]
        sent = server.instance.heartbeat.sent
        for client in clients:
            client.drop()
        until(lambda: len(server.instance.registry) == 0, "all are gone")
        # The first write to a client that has left still succeeds. One more may be on its way.
        assert server.instance.heartbeat.sent - sent <= 3 * len(clients)
        assert server.instance.counter.streams == {}
        until(lambda: len(greenlets()) <= before, "their greenlets are gone")


@pytest.mark.parametrize("slow", ["for good", "for a while"])
def test_a_client_that_does_not_read_is_closed_and_costs_the_others_nothing(
    slow: str, pgbus_settings: Settings, pgbus_bus: Bus, pgbus_database: str
) -> None:
    # The deadline is that of the reading one too, so this process may stand still for as long.
    deadline = 5.0 if slow == "for good" else 60.0
    with plain(pgbus_settings, write_deadline=deadline) as server, session(pgbus_database) as connection:
        orders = pgbus_bus.stream("orders")
        reading, stalled = server.live("orders"), server.live("orders")
        stalled.pause()
        for n in range(25):
            # The kernel buffers four megabytes for it.
            orders.broadcast_many([f"{n}.{i} " + "x" * 64_000 for i in range(8)])
        until(lambda: len(reading.messages) == 200, "the reading one has all")
        if slow == "for good":
            until(lambda: len(server.instance.registry) == 1, "the stalled one is closed", 2 * PATIENCE)
            stalled.go_on()
            stalled.wait_closed()
            assert len(stalled.messages) < 200
            stalled.resume()
        else:
            holds(lambda: len(server.instance.registry) == 2, "both are connected", HEARTBEAT)
            stalled.go_on()
        until_messages(stalled, 200)
        assert received(stalled) == received(reading) == stored(connection, "orders")


def test_a_shutdown_is_announced_and_ends_every_body(pgbus_settings: Settings) -> None:
    with plain(pgbus_settings) as server:
        clients = [server.live("orders") for _ in range(20)]
        before = len(greenlets())
        server.instance.shutdown()
        for client in clients:
            client.wait_closed()
            assert client.frames[-1].event == "pgbus:shutdown"
            assert client.frames[-1].data == '{"reason":"restart"}'
            assert 1000 <= (client.frames[-1].retry or 0) <= 5000
        until(lambda: len(greenlets()) <= before - 20, "their greenlets are gone")
        assert server.instance.counter.total.active_connections == 0
        answer = get(server.url, "/pgbus/streams/orders", Accept="text/event-stream")
        assert answer.status == 200 and b'data: {"reason":"restart"}' in answer.body


def test_a_client_that_does_not_read_does_not_keep_a_shutdown_from_its_end(
    pgbus_settings: Settings, pgbus_bus: Bus
) -> None:
    with plain(pgbus_settings, grace=1.0) as server:
        stalled = server.live("big")
        stalled.pause()
        for n in range(25):
            pgbus_bus.stream("big").broadcast_many([f"{n}.{i} " + "x" * 64_000 for i in range(8)])
        until(lambda: server.instance.registry.clients()[0].blocked_since is not None, "it stalls")
        before = len(greenlets())
        began = monotonic()
        server.instance.shutdown()
        assert monotonic() - began < 15.0  # its write deadline would be longer
        until(lambda: len(greenlets()) < before, "its greenlet is gone")
