"""How a server ends, even if clients do not read, and which clients are refused meanwhile and when it is full."""

from __future__ import annotations

import json
import re
import signal
import socket
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import gevent
import psutil
import pytest
from gevent.event import Event
from support import PATIENCE, Serving, connect, get, raw_client, serve_process, serving, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.streamer.task import Task
from pgbus_gevent.testing.client import StreamClient

GRACE = 1.0
LONG = 600.0
"""Seconds, for limits that must not be over before a test is."""

REFUSED = re.compile(rb'retry: (\d+)\nevent: pgbus:shutdown\ndata: \{"reason":"([a-z-]+)"\}\n\n')


def farewell(client: StreamClient) -> tuple[str, int]:
    """Return the reason and the retry time in a client's last frame."""
    assert client.frames[-1].event == "pgbus:shutdown"
    return json.loads(client.frames[-1].data)["reason"], client.frames[-1].retry or 0


def stalled_clients(url: str, bus: Bus, count: int = 10) -> list[socket.socket]:
    """Return clients that have stopped reading, each with bytes that wait for it."""
    socks = [raw_client(url, "big") for _ in range(count)]
    witness = connect(url, "big")
    witness.next("pgbus:connected", timeout=20)
    for _ in range(20):
        bus.stream("big").broadcast("x" * 50_000)
    until(lambda: len(witness.messages) == 20, "the witness has all")
    witness.close()
    return socks


def test_a_shutdown_ends_a_start_that_waits_for_the_listener(pgbus_settings: Settings) -> None:
    instance = Instance(replace(pgbus_settings, connect_timeout=60.0))
    instance.tasks["listener"] = Task("listener", lambda: gevent.sleep(60), on_failure=lambda name: None)
    starting = gevent.spawn(instance.start)
    until(lambda: instance.tasks["dispatcher"].running, "the tasks run")
    gevent.sleep(0.3)
    assert not starting.ready()
    instance.shutdown(timeout=0.5)
    starting.join(PATIENCE)
    assert starting.successful()


def test_a_shutdown_while_the_schema_is_checked_lets_no_task_start(
    pgbus_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = Instance(pgbus_settings)
    checking, checked = Event(), Event()

    def prepare() -> bool:
        checking.set()
        return checked.wait(PATIENCE)

    monkeypatch.setattr(instance.database, "prepare", prepare)
    starting = gevent.spawn(instance.start)
    assert checking.wait(PATIENCE)
    instance.shutdown(timeout=0.5)
    checked.set()
    starting.join(PATIENCE)
    assert starting.successful()
    assert [name for name, task in instance.tasks.items() if task.running] == []


# a process


def test_farewells_to_slow_clients_copy_nothing(pgbus_database: str, pgbus_bus: Bus) -> None:
    count, size = 300, 1_000_000
    with serve_process(pgbus_database, "--grace", "3") as server:
        socks = [raw_client(server.url, "big") for _ in range(count)]
        for sock in socks:
            sock.settimeout(PATIENCE)
            assert sock.recv(1000)
        with connect(server.url, "big") as witness:
            witness.next("pgbus:connected", timeout=PATIENCE)
            pgbus_bus.stream("big").broadcast("x" * size)
            until(lambda: len(witness.messages) == 1, "the witness has it")
        before = server.rss
        server.signal(signal.SIGTERM)
        most = before
        while server.process.poll() is None:
            try:
                most = max(most, server.rss)
            except psutil.Error:
                break
            gevent.sleep(0.02)
        assert server.wait() == 0
        print(f"{count} slow readers of 1 MB: {before >> 20} MB before SIGTERM, at most {most >> 20} MB after it")
        for sock in socks:
            sock.close()
    # With a copy for each it would be three hundred megabytes.
    assert most - before < 30 << 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_with_a_hundred_clients_in_good_order(
    number: signal.Signals, pgbus_database: str, pgbus_bus: Bus
) -> None:
    # If it waited longer than the grace, it would end with another status: by an alarm five seconds later.
    with serve_process(pgbus_database, "--grace", str(GRACE), PGBUS_WRITE_DEADLINE=str(LONG)) as server:
        clients = [connect(server.url, f"s:{n % 5}") for n in range(90)]
        for client in clients:
            client.next("pgbus:connected", timeout=20)
        stalled = stalled_clients(server.url, pgbus_bus)
        server.signal(number)

        assert server.wait() == 0
        for client in clients:
            client.wait_closed(PATIENCE)
        told = [farewell(client) for client in clients]
        assert {reason for reason, _ in told} == {"restart"}
        assert all(1000 <= retry <= 5000 for _, retry in told)
        assert len({retry for _, retry in told}) > 45, "they come back at different times"
        for sock in stalled:
            sock.close()


def test_if_all_clients_read_it_ends_at_once(pgbus_database: str) -> None:
    with serve_process(pgbus_database, "--grace", "30") as server:
        clients = [connect(server.url, "orders") for _ in range(10)]
        for client in clients:
            client.next("pgbus:connected", timeout=20)
        server.signal()
        assert server.wait() == 0
        for client in clients:
            client.wait_closed(PATIENCE)
            assert farewell(client)[0] == "restart"


def test_a_second_signal_ends_it_at_once(pgbus_database: str, pgbus_bus: Bus) -> None:
    with serve_process(pgbus_database, "--grace", str(LONG), PGBUS_WRITE_DEADLINE=str(LONG)) as server:
        reading = connect(server.url, "orders")
        reading.next("pgbus:connected", timeout=20)
        stalled = stalled_clients(server.url, pgbus_bus)
        server.signal()
        reading.wait_closed(PATIENCE)
        assert farewell(reading)[0] == "restart"
        assert server.process.poll() is None, "it waits for those that do not read"
        server.signal()
        assert server.wait() == 128 + signal.SIGTERM
        for sock in stalled:
            sock.close()


def test_neither_idle_nor_half_sent_requests_keep_it_from_ending(pgbus_database: str) -> None:
    with serve_process(pgbus_database, "--grace", str(GRACE)) as server:
        host, port = urlsplit(server.url).hostname or "", urlsplit(server.url).port or 0
        socks = [socket.create_connection((host, port)) for _ in range(4)]
        socks[1].sendall(b"GET /pgbus/streams/orders HTTP/1.1\r\nHost: te")
        socks[2].sendall(b"POST /pgbus/streams/orders HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\nhalf")
        socks[3].sendall(b"GET /pgbus/healthz HTTP/1.1\r\nHost: test\r\n\r\n")
        assert socks[3].recv(1000).startswith(b"HTTP/1.1 200")
        server.signal()
        assert server.wait() == 0  # by an alarm, five seconds after the grace, the status would be another one
        for sock in socks:
            sock.close()


def test_a_request_that_was_on_its_way_is_refused_as_the_server_drains(pgbus_database: str, pgbus_bus: Bus) -> None:
    with serve_process(pgbus_database, "--grace", str(LONG), PGBUS_WRITE_DEADLINE=str(LONG)) as server:
        stalled = stalled_clients(server.url, pgbus_bus, 2)
        witness = connect(server.url, "orders")
        witness.next("pgbus:connected", timeout=20)
        address = (urlsplit(server.url).hostname, urlsplit(server.url).port or 0)
        browser, probe = (socket.create_connection(address, timeout=PATIENCE) for _ in range(2))
        browser.sendall(b"GET /pgbus/streams/orders HTTP/1.1\r\nAccept: text/event-stream\r\n")
        probe.sendall(b"GET /pgbus/readyz HTTP/1.1\r\n")
        assert get(server.url, "/pgbus/readyz").status == 200, "so the two were accepted before"
        server.signal()
        witness.wait_closed(PATIENCE)

        browser.sendall(b"Host: test\r\n\r\n")
        answer = to_end(browser)
        found = REFUSED.search(answer)
        assert answer.startswith(b"HTTP/1.1 200") and found is not None
        assert found[2] == b"restart" and 5000 <= int(found[1]) <= 15000
        probe.sendall(b"Host: test\r\n\r\n")
        answer = to_end(probe)
        assert answer.startswith(b"HTTP/1.1 503") and b'"reason": "restart"' in answer
        with pytest.raises(ConnectionError):
            get(server.url, "/pgbus/healthz")
        for sock in (*stalled, browser, probe):
            sock.close()
        assert server.wait() == 0


def to_end(sock: socket.socket) -> bytes:
    """Return everything that comes until the server closes the connection."""
    found = b""
    while data := sock.recv(65536):
        found += data
    return found


# in this process


def draining(server: Serving, bus: Bus) -> tuple[Any, list[socket.socket]]:
    """Make the Instance drain. It does not end before its clients, which do not read, are closed."""
    stalled = stalled_clients(server.url, bus, 2)
    until(lambda: any(client.blocked_since is not None for client in server.instance.registry.clients()), "they stall")
    running = gevent.spawn(server.instance.shutdown, LONG)
    until(lambda: server.instance.draining and not server.instance.registry.clients(), "it drains")
    return running, stalled


def test_new_clients_are_refused_while_an_instance_drains(pgbus_settings: Settings, pgbus_bus: Bus) -> None:
    with serving(pgbus_settings, write_deadline=LONG) as server:
        running, stalled = draining(server, pgbus_bus)
        answer = get(server.url, "/pgbus/streams/orders", Accept="text/html, text/event-stream;q=0.9")
        found = REFUSED.fullmatch(answer.body)
        assert answer.status == 200 and answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert found is not None and found[2] == b"restart" and 5000 <= int(found[1]) <= 15000
        plain = get(server.url, "/pgbus/streams/orders")
        assert plain.status == 503 and 1 <= int(plain.headers["retry-after"]) <= 15
        assert get(server.url, "/pgbus/readyz").status == 503
        for sock in stalled:
            sock.close()
        running.get(timeout=PATIENCE)


def test_a_slow_client_that_reads_on_during_the_drain_gets_its_bytes_and_the_last_frame(
    pgbus_settings: Settings, pgbus_bus: Bus
) -> None:
    with serving(pgbus_settings, send_buffer=4096, write_deadline=LONG) as server:
        slow = server.live("orders")
        slow.pause()
        sent = [pgbus_bus.stream("orders").broadcast(f"{n} " + "x" * 60_000) for n in range(20)]
        until(lambda: server.instance.registry.clients()[0].blocked_since is not None, "it stalls")
        running = gevent.spawn(server.instance.shutdown, LONG)
        until(lambda: not server.instance.registry.clients(), "it drains")
        slow.go_on()
        running.get(timeout=PATIENCE)
        slow.wait_closed(PATIENCE)
        assert farewell(slow)[0] == "restart"
        got = [int(frame.id or 0) for frame in slow.messages]
        assert got == sent[: len(got)]


def test_a_shutdown_may_be_asked_for_by_many_at_once(pgbus_settings: Settings) -> None:
    with serving(pgbus_settings) as server:
        client = server.live("orders")
        gevent.joinall([gevent.spawn(server.instance.shutdown) for _ in range(10)], timeout=PATIENCE, raise_error=True)
        client.wait_closed(PATIENCE)
        assert [frame.event for frame in client.frames if frame.dispatches][-1] == "pgbus:shutdown"
        assert sum(frame.event == "pgbus:shutdown" for frame in client.frames) == 1


# full


def test_above_max_connections_a_browser_is_told_to_come_back_and_others_get_503(
    pgbus_settings: Settings, pgbus_bus: Bus
) -> None:
    with serving(pgbus_settings, max_connections=3) as server:
        clients = [server.live(f"s:{n}") for n in range(3)]
        for _ in range(20):
            answer = get(server.url, "/pgbus/streams/s:0", Accept="text/event-stream")
            found = REFUSED.fullmatch(answer.body)
            assert answer.status == 200 and answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert found is not None and found[2] == b"overloaded" and 5000 <= int(found[1]) <= 15000
        plain = get(server.url, "/pgbus/streams/s:0")
        assert plain.status == 503 and 1 <= int(plain.headers["retry-after"]) <= 15
        assert get(server.url, "/pgbus/readyz").status == 503  # nobody can be admitted

        pgbus_bus.stream("s:0").broadcast("still here")
        assert clients[0].next().data == "still here"
        clients[0].drop()
        until(lambda: len(server.instance.registry) == 2, "there is room again")
        pgbus_bus.stream("s:0").broadcast("while it was away")
        clients[0].resume()
        assert clients[0].next().data == "while it was away"


def answer(client: StreamClient) -> str:
    """Return the name of a client's first event. A heartbeat may have come after it."""
    return str(until(lambda: next((frame.event for frame in client.frames if frame.dispatches), ""), "it is answered"))


def test_a_burst_of_clients_never_takes_more_than_max_connections(pgbus_settings: Settings) -> None:
    with serving(pgbus_settings, max_connections=20) as server:
        most = 0
        clients = [server.client(f"s:{n}") for n in range(100)]
        told = []
        for client in clients:
            told.append(answer(client))
            most = max(most, len(server.instance.registry))
        assert told.count("pgbus:connected") == most == 20
        assert told.count("pgbus:shutdown") == 80
