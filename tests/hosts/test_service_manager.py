"""What a service manager such as systemd passes to ``serve``, and what it is told. The manager is this process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic

import gevent
import pytest
from host_parts import Browser, Host
from raw_http import ask
from support import PATIENCE, holds, until
from told_parts import Told

from pgbus_gevent.bus import Bus
from pgbus_gevent.errors import PgbusError
from pgbus_gevent.hosts.service_manager import ServiceManager

SHARES_ITS_SOCKET = 'exec 3<&"$1"; shift; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
"""A program for bash that starts another one as systemd does: the socket is descriptor 3, and the variables say so."""

SERVE = (sys.executable, "-m", "pgbus_gevent.serve", "--port", "1", "app:app")  # it must not open the port 1


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    found = Told(tmp_path / "notify")
    yield found
    found.close()


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as sock:
        yield sock


class Service(Host):
    """``serve`` under the manager, which passes it this socket."""

    def __init__(self, folder: Path, url: str, sock: socket.socket, *flags: str, **variables: str) -> None:
        os.set_inheritable(sock.fileno(), True)
        command = ["bash", "-c", SHARES_ITS_SOCKET, "bash", str(sock.fileno()), *SERVE, *flags]
        super().__init__(folder, url, command, descriptors=(sock.fileno(),), **variables)
        self.port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"


def silent(told: Told) -> bool:
    """Return whether no sign of life comes for a second."""
    before = told.signs()
    gevent.sleep(1.0)
    return told.signs() == before


def test_nothing_is_told_without_a_manager() -> None:
    environ = {"WATCHDOG_USEC": "nonsense", "LISTEN_FDS": "1", "LISTEN_PID": "1", "HOME": "/"}
    manager = ServiceManager(environ)
    assert environ == {"HOME": "/"}
    assert (manager.patience, manager.passes_socket) == (None, False)
    manager.tell("READY=1")
    manager.keep_alive(lambda: pytest.fail("it asks"))


def test_signs_of_life_for_another_process_are_not_sent_by_this_one() -> None:
    mine = {"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "3000000"}
    assert ServiceManager({**mine, "WATCHDOG_PID": str(os.getpid())}).patience == 3.0
    assert ServiceManager({**mine, "WATCHDOG_PID": "1"}).patience is None
    assert ServiceManager(mine).patience == 3.0


def test_a_manager_that_is_gone_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager({"NOTIFY_SOCKET": "@nobody listens here"}).tell("READY=1", "STATUS=serving")
    assert "cannot be told READY=1: " in caplog.text


def test_signs_of_life_come_three_times_within_the_patience_and_only_while_it_lives(told: Told, tmp_path: Path) -> None:
    lives = True
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"})
    keeper = gevent.spawn(manager.keep_alive, lambda: lives)
    began = monotonic()
    until(lambda: told.signs() >= 4, "signs of life come")
    assert monotonic() - began >= 0.3  # the first comes at once, and then one each tenth of a second
    lives = False
    gevent.sleep(0.2)
    before = told.signs()
    holds(lambda: told.signs() == before, "none comes", 0.5)
    keeper.kill()


def test_more_than_one_socket_or_one_of_another_kind_is_refused() -> None:
    with pytest.raises(PgbusError, match="has passed 2 sockets"):
        ServiceManager({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"}).listener()
    program = "from pgbus_gevent.hosts.service_manager import ServiceManager; ServiceManager().listener()"
    with socket.socket(socket.AF_UNIX) as local, socket.socket() as idle:
        for sock in (local, idle):
            command = ["bash", "-c", SHARES_ITS_SOCKET, "bash", str(sock.fileno()), sys.executable, "-c", program]
            done = subprocess.run(command, pass_fds=[sock.fileno()], stderr=subprocess.PIPE, text=True, timeout=60)
            assert "is not a listening TCP socket: write ListenStream=" in done.stderr


@pytest.mark.parametrize("flags", [(), ("--workers", "2")], ids=["one process", "workers"])
def test_the_manager_hears_of_each_step_and_the_next_process_gets_the_clients_that_wait(
    flags: tuple[str, ...], told: Told, tmp_path: Path, pgbus_database: str
) -> None:
    variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"}
    with ExitStack() as stack:
        sock = stack.enter_context(listening())
        orders = stack.enter_context(Bus(pgbus_database, migrate=True)).stream("orders")
        browsers: list[Browser] = []
        ids: list[int] = []
        for _ in range(2):
            told.lines.clear()
            served = Service(tmp_path, pgbus_database, sock, *flags, **variables)
            stack.callback(served.close)
            # They wait in the queue until it has started.
            browsers.extend(Browser(served.port, "orders") for _ in range(5))
            until(lambda: "READY=1" in told.lines and told.signs(), "it is ready, and lives", 3 * PATIENCE)
            assert "STATUS=serving" in told.lines and "STOPPING=1" not in told.lines
            until(lambda: all(browser.connections for browser in browsers), "all are connected", 3 * PATIENCE)
            ids.append(orders.broadcast("hello"))
            until(lambda: all(ids[-1] in browser.ids for browser in browsers), "all have it")
            served.signal()
            assert served.wait() == 0, served.errors
            assert told.lines.count("STOPPING=1") == told.lines.count("READY=1") == 1
        assert all(browser.stopped is None for browser in browsers)
        assert [browser.ids for browser in browsers[:5]] == [ids] * 5  # the others came after the first one
        for browser in browsers:
            browser.close()
        with socket.create_connection(sock.getsockname()):
            pass  # the socket is still open, for the next process


def test_a_process_that_hangs_gives_no_more_signs_of_life(told: Told, tmp_path: Path, pgbus_database: str) -> None:
    variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
    with ExitStack() as stack:
        sock = stack.enter_context(listening())
        served = Service(tmp_path, pgbus_database, sock, **variables)
        stack.callback(served.close)
        until(lambda: told.signs() > 3, "it lives", 3 * PATIENCE)
        hang = stack.enter_context(socket.create_connection(sock.getsockname()))
        hang.sendall(b"GET /hang HTTP/1.1\r\nHost: t\r\n\r\n")
        until(lambda: silent(told), "no sign of life comes for a second")
        assert served.process.poll() is None


def test_workers_that_hang_give_no_more_signs_of_life_until_they_go_on(
    told: Told, tmp_path: Path, pgbus_database: str
) -> None:
    variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
    with ExitStack() as stack:
        sock = stack.enter_context(listening())
        served = Service(tmp_path, pgbus_database, sock, "--workers", "2", **variables)
        stack.callback(served.close)
        until(lambda: told.signs() > 3, "they live", 3 * PATIENCE)
        hanging = served.serving(2)
        for pid in hanging:
            os.kill(pid, signal.SIGSTOP)
        until(lambda: silent(told), "no sign of life comes for a second")
        for pid in hanging:
            os.kill(pid, signal.SIGCONT)
        before = told.signs()
        until(lambda: told.signs() > before + 3, "signs of life come again")


def test_a_process_that_lives_answers_on_the_socket_that_was_passed(
    told: Told, tmp_path: Path, pgbus_database: str
) -> None:
    with ExitStack() as stack:
        sock = stack.enter_context(listening())
        served = Service(tmp_path, pgbus_database, sock)
        stack.callback(served.close)
        assert ask(served.port, "/pgbus/healthz").status == 200
        assert told.lines == []  # it was not told where
