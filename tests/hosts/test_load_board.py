"""Workers that share a port: waiting connections are answered when a server ends; a worker that cannot serve leaves the port."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import psutil
import pytest
from host_parts import APP, Host, gunicorn, host
from raw_http import ask, read_to_end
from support import PATIENCE, until

from pgbus_gevent.hosts.load_board import BalancedServer, LoadBoard
from pgbus_gevent.hosts.pywsgi import listen

BROWSER = b"GET /pgbus/streams/orders HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n"
FETCH = b"GET /pgbus/streams/orders HTTP/1.1\r\nHost: test\r\n\r\n"
PROBE = b"GET /pgbus/readyz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
OTHER = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
KINDS = {"browser": BROWSER, "fetch": FETCH, "probe": PROBE, "other": OTHER}

BOTTLE = """
import sys
from gevent import monkey
monkey.patch_all()
import bottle
from pgbus_gevent import Bus
from pgbus_gevent.bottle_plugin import PgbusPlugin, Server
app = bottle.Bottle()
app.install(PgbusPlugin(Bus()))
app.get("/", callback=lambda: "1 0 0 None")
bottle.run(app, server=Server, port=int(sys.argv[1]), quiet=True)
"""
SERVE = [sys.executable, "-m", "pgbus_gevent.serve", "--port", "PORT", "app:app"]


# connections that wait to be accepted


def stopped(pids: set[int]) -> bool:
    return all(psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in pids)


def waiting(served: Host, each: int = 25) -> dict[str, list[socket.socket]]:
    """Connections in the listen queue of a server whose processes are stopped, each with its request."""
    found: dict[str, list[socket.socket]] = {}
    for kind, request in KINDS.items():
        found[kind] = [socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE) for _ in range(each)]
        for sock in found[kind]:
            sock.sendall(request)
    return found


@contextmanager
def held(pids: set[int]) -> Iterator[None]:
    """The processes are stopped within the block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: stopped(pids), "they stand still")
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def answers(socks: list[socket.socket]) -> list[bytes]:
    """What each socket got until its end. An empty answer and "reset" are different."""
    found = []
    for sock in socks:
        with sock:
            try:
                found.append(read_to_end(sock, PATIENCE))
            except ConnectionResetError:
                found.append(b"reset")
    return found


def check_farewells(found: dict[str, list[bytes]]) -> None:
    for kind, all_of_it in found.items():
        assert all(answer.startswith(b"HTTP/1.1 ") for answer in all_of_it), f"{kind}: {Counter(all_of_it)}"
    for answer in found["browser"]:
        assert answer.startswith(b"HTTP/1.1 200 ") and b"retry: " in answer and b"event: pgbus:shutdown" in answer, (
            answer
        )
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in found["other"]), "the application still answers"


WAYS = {
    "serve": (SERVE, 1),
    "serve --workers": ([*SERVE, "--workers", "2"], 2),
    "gunicorn": (gunicorn("-w", "2"), 2),
    "bottle": ([sys.executable, "bottled.py", "PORT"], 1),
}


@pytest.mark.parametrize("how", WAYS)
def test_connections_that_wait_to_be_accepted_at_the_end_are_answered(
    how: str, tmp_path: Path, pgbus_database: str
) -> None:
    command, workers = WAYS[how]
    (tmp_path / "bottled.py").write_text(BOTTLE)
    with host(tmp_path, pgbus_database, *command, workers=1) as served:
        if workers > 1:
            served.wait_until_it_serves(workers)
        with ExitStack() as stack:
            serving = served.serving(workers) if workers > 1 else {served.pid}
            stack.enter_context(held(serving))
            socks = waiting(served)
            served.signal()
            if workers > 1:
                # The master has told them to end, and has closed its own socket.
                gevent.sleep(0.5)
        found = {kind: answers(those) for kind, those in socks.items()}
        check_farewells(found)
        assert served.wait() == 0, served.errors


def test_connections_that_wait_while_workers_are_replaced_are_served(tmp_path: Path, pgbus_database: str) -> None:
    with host(tmp_path, pgbus_database, *gunicorn("-w", "1"), workers=1) as served:
        (old,) = served.serving(1)
        with held({old}):
            socks = [socket.create_connection(("127.0.0.1", served.port), timeout=PATIENCE) for _ in range(20)]
            for sock in socks:
                sock.sendall(OTHER)
            served.signal(signal.SIGHUP)
            until(lambda: len(served.children()) == 2, "the next one is there")
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers(socks))


@pytest.mark.parametrize("how", WAYS)
def test_no_answer_on_a_kept_connection_waits_for_the_clients_ack(
    how: str, tmp_path: Path, pgbus_database: str
) -> None:
    (tmp_path / "bottled.py").write_text(BOTTLE)
    with host(tmp_path, pgbus_database, *WAYS[how][0]) as served, closing(kept(served.port)) as connection:
        times = []
        for _ in range(40):
            began = monotonic()
            connection.request("GET", "/pgbus/healthz")
            assert connection.getresponse().read()
            times.append(monotonic() - began)
    # The kernel delays an ACK by 40 ms, except for the first dozen of a connection.
    assert min(times[20:]) < 0.03, times


def kept(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)


# a worker that cannot serve

BROKEN = APP.replace(
    "instance = Instance(Settings.load())",
    """
def is_broken():
    try:
        os.close(os.open(f"broken-{os.getppid()}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return os.environ.get("ALL_BROKEN") == "yes"
    return True


instance = Instance(
    Settings.load(**({"database_url": "postgresql://nobody@127.0.0.1:1/none"} if is_broken() else {}))
)""",
)
"""The first worker, or every worker, cannot reach the database."""


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(BROKEN)
    return tmp_path


def test_a_worker_that_cannot_serve_leaves_the_clients_to_the_other_one(broken: Path, pgbus_database: str) -> None:
    with host(broken, pgbus_database, *gunicorn("-w", "2"), workers=1) as served, ExitStack() as stack:
        until(lambda: "the streamer cannot start" in served.errors, "one of the two workers cannot start")
        for _ in range(60):
            stack.enter_context(served.live())
        # If that worker stands still for seconds, the other one answers meanwhile.
        until(lambda: {served.about()[2] for _ in range(20)} == {60}, "all are at the one that answers everything")
        until(lambda: {ask(served.port, "/pgbus/readyz").status for _ in range(20)} == {200}, "it is ready")


def test_if_no_worker_can_serve_clients_and_health_checks_are_still_answered(broken: Path, pgbus_database: str) -> None:
    command = gunicorn("-w", "2")
    served = Host(broken, pgbus_database, command, ALL_BROKEN="yes", PGBUS_AWAY_AFTER="1")
    try:
        until(lambda: served.errors.count("the streamer cannot start") >= 2, "both workers cannot start")
        took = []
        for _ in range(10):
            began = monotonic()
            assert ask(served.port, "/pgbus/readyz").status == 503
            told = ask(served.port, "/pgbus/streams/orders", Accept="text/event-stream")
            assert told.status == 200 and b'"reason":"unavailable"' in told.body
            took.append(monotonic() - began)
        assert sorted(took)[5] < 5.0, took  # the middle one, because a process may stand still
    finally:
        served.close()


class Sharers:
    """Two servers in this process on one socket, like two workers. Each counts what it answers."""

    def __init__(self) -> None:
        self.able = [True, True]
        self.answered: Counter[int] = Counter()
        board = LoadBoard()
        sock = listen("127.0.0.1", 0)
        self.port = int(sock.getsockname()[1])
        self.servers = [
            BalancedServer(
                shared,
                self._application(number),
                slot=board.slot(number),
                streams=lambda: 0,
                able=lambda number=number: self.able[number],
            )
            for number, shared in enumerate([sock, gevent.socket.socket(fileno=os.dup(sock.fileno()))])
        ]
        for server in self.servers:
            server.socket.setblocking(False)
            server.start()
        self._shows = gevent.spawn(self._show)

    def _show(self) -> None:
        while True:
            self.show()
            gevent.sleep(0.05)

    def show(self) -> None:
        """Have both show their load now."""
        for server in self.servers:
            server.show(monotonic())

    def can_serve(self, *able: bool) -> None:
        """Change which of the two can serve."""
        self.able[:] = able
        self.show()

    def _application(self, number: int) -> Callable[..., Any]:
        def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            self.answered[number] += 1
            start_response("200 OK", [("Content-Length", "2")])
            return [b"ok"]

        return application

    def answering(self, requests: int = 40) -> set[int]:
        """Send this many requests, and return the servers that answered them."""
        self.answered.clear()
        jobs = [gevent.spawn(ask, self.port, "/") for _ in range(requests)]
        assert all(job.get(timeout=PATIENCE).status == 200 for job in jobs)
        return set(self.answered)

    def close(self) -> None:
        self._shows.kill()
        for server in self.servers:
            server.stop(1)


@pytest.fixture
def sharers() -> Iterator[Sharers]:
    found = Sharers()
    yield found
    found.close()


@pytest.mark.slow
def test_a_server_that_cannot_serve_leaves_the_port_and_comes_back_to_it(sharers: Sharers) -> None:
    sharers.can_serve(False, True)
    assert sharers.answering() == {1}
    sharers.can_serve(True, False)
    assert sharers.answering() == {0}
    sharers.can_serve(False, False)
    assert sharers.answering()
    sharers.can_serve(True, True)
    until(lambda: sharers.answering(100) == {0, 1}, "both have a part in it")


def test_it_closes_connections_after_an_answer_while_another_server_can_serve(sharers: Sharers) -> None:
    def answer(sock: socket.socket) -> bytes:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        return sock.recv(65536)

    with socket.create_connection(("127.0.0.1", sharers.port), timeout=PATIENCE) as sock:
        assert b"Connection: close" not in answer(sock)
        (mine,) = sharers.answered
        sharers.able[mine] = False
        assert b"Connection: close" in answer(sock)
        assert sock.recv(1) == b""


@pytest.mark.slow
def test_a_server_that_cannot_serve_accepts_if_the_other_one_hangs(sharers: Sharers) -> None:
    sharers.can_serve(False, True)
    sharers._shows.kill()
    sharers.servers[1].stop_accepting()
    until(lambda: sharers.answering(1) == {0}, "it answers")
