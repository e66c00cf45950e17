"""Signals to a server, beside those that end it: they do nothing, or reload it. None of them cuts off a client."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import gevent
import psutil
import pytest
from host_parts import Host, gunicorn, host, publish, shutdown_retry
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
def test_a_signal_that_must_not_end_a_server_changes_nothing(
    number: signal.Signals, tmp_path: Path, pgbus_database: str
) -> None:
    with host(tmp_path, pgbus_database, *SERVE) as served, served.live() as client:
        served.signal(number)
        if number != signal.SIGPIPE:
            until(lambda: f"{number.name} is ignored" in served.errors, "it says so")
        id = publish(pgbus_database, "hello")
        assert client.next().id == str(id)
        served.signal()
        assert shutdown_retry(client) and served.wait() == 0


def test_sigquit_shuts_a_server_down_gracefully(tmp_path: Path, pgbus_database: str) -> None:
    with host(tmp_path, pgbus_database, *SERVE) as served, served.live() as client:
        served.signal(signal.SIGQUIT)
        assert shutdown_retry(client) and served.wait() == 0


def test_a_program_started_with_sighup_ignored_keeps_ignoring_it(tmp_path: Path, pgbus_database: str) -> None:
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
def test_a_server_outlives_its_terminal_without_cutting_off_a_client(
    command: list[str], tmp_path: Path, pgbus_database: str
) -> None:
    master, terminal = pty.openpty()
    with ExitStack() as stack:
        stack.callback(os.close, terminal)
        started = [sys.executable, "-c", IN_A_TERMINAL, os.ttyname(terminal), *command]
        served = stack.enter_context(host(tmp_path, pgbus_database, *started))
        clients = [stack.enter_context(served.live()) for _ in range(10)]
        os.close(master)
        # Either the clients stay, or a reload tells them to come back.
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
def test_a_worker_ignores_the_signals_of_the_master(
    number: signal.Signals, tmp_path: Path, pgbus_database: str
) -> None:
    with host(tmp_path, pgbus_database, *gunicorn("-w", "1")) as served, served.live() as client:
        (worker,) = served.serving(1)
        os.kill(worker, number)
        id = publish(pgbus_database, "hello")
        assert client.next().id == str(id)
        until(lambda: served.serving(1) == {worker}, "it still serves")


@pytest.mark.parametrize(
    "module, more",
    [
        ("pgbus_gevent.serve", []),
        ("pgbus_gevent", ["serve"]),
        ("pgbus_gevent.serve", ["--workers", "1"]),
        ("pgbus_gevent.serve", ["--workers", "2"]),
    ],
)
def test_no_hang_up_ends_a_server_even_while_it_starts(
    module: str, more: list[str], tmp_path: Path, pgbus_database: str
) -> None:
    command = [sys.executable, "-m", module, *more, "--port", "PORT", "app:app"]
    served = Host(tmp_path, pgbus_database, command, PGBUS_GRACE="2")
    with closing(served):
        # That is before the first library is loaded, which takes much longer than everything before it.
        until(lambda: catches_hang_ups(served.pid), "hang-ups are caught")
        # Each hang-up replaces the workers, after they have started.
        hail = gevent.spawn(hang_up, served, 100 if "2" in more else 10_000)
        try:
            until(lambda: ask_status(served.port) == 200, "it serves", 3 * PATIENCE, pause=0.05)
            served.signal()
            assert served.wait(3 * PATIENCE) == 0, served.errors
        finally:
            hail.kill()


def catches_hang_ups(pid: int) -> bool:
    """Return whether the process has a handler for SIGHUP. It must have one before gevent is loaded."""
    loaded = "gevent" in Path(f"/proc/{pid}/maps").read_text()
    (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    found = bool(int(caught, 16) & 1 << signal.SIGHUP - 1)
    assert found or not loaded, "hang-ups are not caught from the first moment"
    return found


def hang_up(served: Host, times: int) -> None:
    for _ in range(times):
        served.signal(signal.SIGHUP)
        gevent.sleep(0.01)


def ask_status(port: int) -> int:
    try:
        return ask(port, "/pgbus/healthz").status
    except OSError:
        return 0


def test_a_signal_to_gunicorns_master_replaces_the_workers_under_nohup(tmp_path: Path, pgbus_database: str) -> None:
    with host(tmp_path, pgbus_database, "nohup", *SERVE, "--workers", "2", workers=2) as served:
        before = served.serving()
        (master,) = psutil.Process(served.pid).children()
        master.send_signal(signal.SIGHUP)
        until(lambda: len(served.serving() - before) == 2, "both workers are replaced", 2 * PATIENCE)
        served.signal()
        assert served.wait(3 * PATIENCE) == 0
