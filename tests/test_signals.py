"""What signals do to a server beside those that end it: nothing, or a reload; nobody's client is cut off by one."""

from __future__ import annotations

import os
import pty
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import gevent
import psutil
import pytest
from host_parts import gunicorn, host, publish, shutdown_retry
from raw_http import ask
from support import PATIENCE, until

from pgbus_gevent.testing.client import StreamClient

SERVE = [sys.executable, "-m", "pgbus_gevent.serve", "--port", "PORT", "app:app"]

IN_A_TERMINAL = """
import fcntl, os, subprocess, sys, termios

os.setsid()
terminal = os.open(sys.argv[1], os.O_RDWR)
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
for descriptor in range(3):
    os.dup2(terminal, descriptor)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE])
def test_a_signal_that_is_no_order_changes_nothing(number: signal.Signals, tmp_path: Path, pgbus_database: str) -> None:
    with host(tmp_path, pgbus_database, *SERVE) as served, served.live() as client:
        served.signal(number)
        if number != signal.SIGPIPE:
            until(lambda: f"{number.name} is ignored" in served.errors, "it says so")
        id = publish(pgbus_database, "hello")
        assert client.next().id == str(id)
        served.signal()
        assert shutdown_retry(client) and served.wait() == 0


def test_sigquit_ends_it_in_good_order(tmp_path: Path, pgbus_database: str) -> None:
    with host(tmp_path, pgbus_database, *SERVE) as served, served.live() as client:
        served.signal(signal.SIGQUIT)
        assert shutdown_retry(client) and served.wait() == 0


def test_who_ignores_hang_ups_from_the_start_goes_on_doing_so(tmp_path: Path, pgbus_database: str) -> None:
    with host(tmp_path, pgbus_database, "nohup", *SERVE, "--workers", "2", workers=2) as served:
        before = served.children()
        served.signal(signal.SIGHUP)
        gevent.sleep(0.5)
        assert "SIGHUP" not in served.errors and served.children() == before
        assert ask(served.port, "/pgbus/readyz").status == 200


@pytest.mark.parametrize(
    "command",
    [SERVE, [*SERVE, "--workers", "2"], gunicorn("-w", "2")],
    ids=["serve", "serve --workers", "gunicorn"],
)
def test_it_outlives_its_terminal_and_no_client_is_cut_off(
    command: list[str], tmp_path: Path, pgbus_database: str
) -> None:
    master, terminal = pty.openpty()
    with ExitStack() as stack:
        stack.callback(os.close, terminal)
        started = [sys.executable, "-c", IN_A_TERMINAL, os.ttyname(terminal), *command]
        served = stack.enter_context(host(tmp_path, pgbus_database, *started))
        clients = [stack.enter_context(served.live()) for _ in range(10)]
        os.close(master)
        # Either they stay, or a reload tells them to come back.
        id = publish(pgbus_database, "hello")
        for client in clients:
            until(lambda client=client: told(client, id), "it has the message, or was told to come back")
        assert ask(served.port, "/pgbus/readyz").status == 200
        served.signal()
        served.wait(3 * PATIENCE)  # gunicorn gives its workers half a minute


def told(client: StreamClient, id: int) -> bool:
    assert not client.closed or client.frames[-1].event == "pgbus:shutdown", "it was cut off"
    return client.closed or str(id) in [frame.id for frame in client.frames]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_worker_ignores_what_is_the_masters(number: signal.Signals, tmp_path: Path, pgbus_database: str) -> None:
    with host(tmp_path, pgbus_database, *gunicorn("-w", "1")) as served, served.live() as client:
        (worker,) = served.serving(1)
        os.kill(worker, number)
        id = publish(pgbus_database, "hello")
        assert client.next().id == str(id)
        assert psutil.pid_exists(worker) and served.serving(1) == {worker}
