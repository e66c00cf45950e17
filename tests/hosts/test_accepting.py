"""Clients that send no request, or only a part of one, cannot take all descriptors."""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import psutil
import pytest
from raw_http import connected, exchange, get, read_to_end, wait_for
from serve_parts import SECRET, Serving, serving
from support import run, session, until

from pgbus_gevent.hosts.accepting import WaitingRoom
from pgbus_gevent.hosts.pywsgi import Server, listen
from pgbus_gevent.streamer.limits import RESERVE, WAITING, most_waiting, reserve

PARTS = {
    "nothing": b"",
    "half a request line": b"GET /pgbus/stre",
    "half a head": b"GET / HTTP/1.1\r\nHost: test\r\nX-Long: a",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
}
REQUEST = b"GET /pgbus/streams/orders HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n"


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(listen("127.0.0.1", 0), hello, request_timeout=30.0)
    running.room.most = 10
    running.start()
    yield running
    running.stop(1.0)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
def test_the_connection_that_has_been_without_a_request_for_longest_makes_room(server: Server, part: bytes) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(connected(server.server_port, part)) for _ in range(40)]
        wait_for(lambda: server.room.closed >= 30, "thirty are closed")
        assert len(server.room) <= 10
        read_to_end(silent[0])
        assert b"hello" in exchange(server.server_port, get("/", {"Connection": "close"}))
    wait_for(lambda: not len(server.room), "all have left")


def test_a_connection_that_is_idle_after_its_request_counts_too(server: Server) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(server.server_port, get("/"))) for _ in range(15)]
        wait_for(lambda: server.room.closed == 5, "five are closed")
        assert b"hello" in read_to_end(idle[0])


def test_a_request_that_arrives_while_its_connection_is_closed_is_answered(server: Server) -> None:
    with connected(server.server_port) as slow, ExitStack() as stack:
        wait_for(lambda: len(server.room) == 1, "it waits")
        slow.sendall(get("/", {"Connection": "close"}))
        (waiting,) = server.room._waiting
        server.room._close(waiting)  # before the handler has run
        stack.enter_context(connected(server.server_port))
        assert b"hello" in read_to_end(slow)


def test_the_log_says_once_a_minute_what_to_do(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pgbus_gevent.server")
    with ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(connected(server.server_port))
        wait_for(lambda: server.room.closed == 30, "thirty are closed")
    (line,) = (record.getMessage() for record in caplog.records if "no request" in record.getMessage())
    assert "more than 10 connections" in line and "firewall" in line and "ulimit" in line


def test_a_full_pool_of_connections_is_not_filled_by_silent_ones() -> None:
    server = Server(listen("127.0.0.1", 0), hello, request_timeout=30.0, spawn=gevent.pool.Pool(8))
    server.start()
    try:
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(connected(server.server_port))
            assert b"hello" in exchange(server.server_port, get("/", {"Connection": "close"}))
    finally:
        server.stop(1.0)


def test_without_descriptors_only_connections_that_have_waited_for_a_while_are_closed() -> None:
    room = WaitingRoom(10)
    ours, theirs = socket.socketpair()
    with ours, theirs, room.waits(ours):
        room.make_room()
        assert (len(room), room.closed) == (1, 0)
        room._waiting[ours] -= 60.0
        room.make_room()
        assert (len(room), room.closed) == (0, 1)


def test_the_bound_fits_into_the_descriptors_that_streams_leave() -> None:
    assert [most_waiting(limit) for limit in (80, 1024, 20_000, 1_048_576)] == [10, 128, WAITING, WAITING]
    assert [reserve(limit) for limit in (80, 1024, 20_000)] == [40, RESERVE + 128, RESERVE + WAITING]


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    key = tmp_path / "key.pem"
    made = os.system(f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test -keyout {key} -out {key} 2>&-")
    if made:
        pytest.skip("no openssl to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(key)
    return context


def test_a_handshake_of_tls_has_a_deadline_and_is_counted(
    tls: ssl.SSLContext, capfd: pytest.CaptureFixture[str]
) -> None:
    server = Server(listen("127.0.0.1", 0), hello, request_timeout=0.5, ssl_context=tls)
    server.start()
    try:
        with connected(server.server_port) as silent, connected(server.server_port, b"GET / HTTP/1.1\r\n\r\n") as plain:
            wait_for(lambda: len(server.room) >= 1, "it is counted")
            assert read_to_end(silent) == b""
            read_to_end(plain)
        wait_for(lambda: not len(server.room), "they are gone")
        client = ssl._create_unverified_context().wrap_socket(
            socket.create_connection(("127.0.0.1", server.server_port))
        )
        with client:
            client.sendall(get("/", {"Connection": "close"}))
            assert b"hello" in read_to_end(client)
    finally:
        server.stop(1.0)
    assert capfd.readouterr().err == ""


APP = """
import os
import gevent
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    while environ["PATH_INFO"] == "/held" and os.path.exists("held"):
        gevent.sleep(0.1)
    return [b"ok"]
"""


@pytest.fixture
def small(tmp_path: Path, pgbus_database: str) -> Iterator[Serving]:
    """A server that may have 160 descriptors."""
    own = {"PGBUS_DATABASE_URL": pgbus_database, "PGBUS_SECRET": SECRET, "PGBUS_GRACE": "2"}
    (tmp_path / "app.py").write_text(APP)
    with serving(tmp_path, "app:application", "--public", "*", limit=160, **own) as served:
        yield served


def connect(served: Serving, data: bytes) -> socket.socket:
    sock = socket.create_connection((served.host, served.port), timeout=20)
    sock.sendall(data)
    return sock


def descriptors(served: Serving) -> int:
    return int(psutil.Process(served.pid).num_fds())


@pytest.mark.slow
def test_a_flood_of_silent_connections_keeps_nobody_out(small: Serving) -> None:
    with ExitStack() as stack:
        for number in range(600):
            stack.enter_context(connect(small, list(PARTS.values())[number % 4]))
        client = stack.enter_context(connect(small, REQUEST))
        assert b"200 OK" in client.recv(4096)
        assert small.get("/pgbus/readyz").status == 200
        assert descriptors(small) < 120
        metrics = small.get("/pgbus/metrics").body.decode()
    waiting, closed = (
        float(re.search(rf"^pgbus_waiting_connections{name}{{.*}} (\S+)$", metrics, re.MULTILINE)[1])  # type: ignore[index]
        for name in ("", "_closed_total")
    )
    assert waiting <= 20 and closed >= 500
    assert small.stderr.count("connections have no request") == 1


@pytest.mark.slow
def test_without_descriptors_clients_are_served_and_accepting_neither_spins_nor_floods_the_log(
    small: Serving, pgbus_database: str, tmp_path: Path
) -> None:
    (tmp_path / "held").touch()
    with connect(small, REQUEST) as client, ExitStack() as stack:
        read_event(client, b"pgbus:connected")
        for _ in range(250):
            stack.enter_context(connect(small, b"GET /held HTTP/1.1\r\nHost: test\r\n\r\n"))
        until(lambda: "Too many open files" in small.stderr, "the descriptors are used up")
        before = sum(psutil.Process(small.pid).cpu_times()[:2])
        for number in range(3):
            with session(pgbus_database) as connection:
                run(connection, f"select pgbus.broadcast('orders', 'message {number}')")
            read_event(client, b"message %d" % number)
        gevent.sleep(3.0)  # a loop that spins would use all of it
        assert sum(psutil.Process(small.pid).cpu_times()[:2]) - before < 2.0
        assert small.stderr.count("cannot accept connections") == 1
        (tmp_path / "held").unlink()
        assert small.get("/pgbus/healthz").status == 200
    assert small.stderr.count("cannot accept connections") == 1


def read_event(sock: socket.socket, mark: bytes) -> None:
    data = b""
    while mark not in data:
        more = sock.recv(65536)
        assert more, data
        data += more
