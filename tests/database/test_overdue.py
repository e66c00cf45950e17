"""A Bus ends a statement within ten seconds if its answer cannot come, and does not end one that is only slow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from database_parts import Proxy
from support import holds, run, session

from pgbus_gevent.bus import Bus
from pgbus_gevent.database import green
from pgbus_gevent.errors import DatabaseUnavailable

PLAIN = """
import os, sys, threading, time
from pgbus_gevent import Bus, PgbusError
from pgbus_gevent.database import green, overdue

green.STATEMENT_GRACE = 0.5
overdue.ASK_AFTER = float(sys.argv[2])
bus = Bus(sys.argv[1], secret="x" * 16, connect_timeout=1.0, statement_timeout=float(sys.argv[3]), migrate=False)

def broadcast():
    bus.stream("orders").broadcast("x")

def transaction():
    with bus.transaction() as cursor:
        print("inside", flush=True)
        sys.stdin.readline()
        bus.stream("orders").broadcast("x", using=cursor)

def own():
    with bus.transaction() as cursor:
        print("inside", flush=True)
        sys.stdin.readline()
        cursor.execute("select 1")

def commit():
    with bus.transaction() as cursor:
        cursor.execute("select 1")
        print("inside", flush=True)
        sys.stdin.readline()

def sleep():
    with bus.transaction() as cursor:
        cursor.execute("select pg_sleep(1.5)")

def fork():
    for _ in range(3):
        broadcast()
        assert threading.active_count() == 2, threading.enumerate()
        pid = os.fork()
        if not pid:
            broadcast()
            os._exit(threading.active_count())
        assert threading.active_count() == 1, "it was ended for the fork"
        assert os.waitpid(pid, 0)[1] == 2 << 8
    time.sleep(3 * overdue._TICK)
    assert threading.active_count() == 1, "no thread is left"

broadcast()
print("ready", flush=True)
sys.stdin.readline()
began = time.monotonic()
try:
    {name: value for name, value in globals().items() if callable(value)}[sys.argv[4]]()
    print("done", flush=True)
except PgbusError as error:
    print(type(error).__name__, time.monotonic() - began, error, flush=True)
"""


class Process:
    """A program that is not patched for gevent. It waits for a line of input at marked places."""

    def __init__(self, url: str, what: str, ask_after: float = 0.3, statement_timeout: float = 30.0) -> None:
        arguments = [sys.executable, "-W", "error", "-c", PLAIN, url, str(ask_after), str(statement_timeout), what]
        self.process: Any = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        assert self.line() == "ready"

    def line(self) -> str:
        with gevent.Timeout(30):
            return str(self.process.stdout.readline().strip())

    def go_on(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def proxy(pgbus_database: str) -> Iterator[Proxy]:
    found = Proxy(pgbus_database)
    yield found
    found.stop()


@pytest.fixture
def started(proxy: Proxy) -> Iterator[Any]:
    found: list[Process] = []

    def start(*arguments: Any, **options: Any) -> Process:
        found.append(Process(proxy.url, *arguments, **options))
        return found[-1]

    yield start
    for each in found:
        each.process.kill()
        each.process.communicate()


@pytest.mark.parametrize("what", ["broadcast", "transaction", "own", "commit"])
def test_a_plain_process_is_not_held_for_ever_by_a_path_that_swallows_all(
    what: str, proxy: Proxy, started: Any
) -> None:
    process = started(what)
    if what != "broadcast":
        process.go_on()
        assert process.line() == "inside"
    proxy.dead = True
    process.go_on()
    name, seconds, *_ = process.line().split()
    assert name == "DatabaseUnavailable" and float(seconds) < 8.0


def test_a_lost_session_is_noticed_although_the_server_answers_others(proxy: Proxy, started: Any) -> None:
    process = started("broadcast")
    proxy.lose()
    process.go_on()
    name, seconds, *_ = process.line().split()
    assert name == "DatabaseUnavailable" and float(seconds) < 8.0


def test_a_long_statement_is_not_aborted(started: Any) -> None:
    process = started("sleep")
    process.go_on()
    assert process.line() == "done"


def test_a_statement_ends_at_its_deadline_even_if_the_server_is_silent(
    proxy: Proxy, started: Any, pgbus_database: str
) -> None:
    process = started("broadcast", ask_after=60.0, statement_timeout=0.5)
    proxy.dead = True
    process.go_on()
    name, seconds, *_ = process.line().split()
    assert name == "DatabaseUnavailable" and float(seconds) >= 1.0, "the timeout, and the grace beyond it"


def test_no_thread_is_left_at_a_fork_or_long_after_a_statement(started: Any) -> None:
    process = started("fork")
    process.go_on()
    assert process.line() == "done"


@pytest.mark.parametrize("lost", ["all", "one"])
def test_a_lost_session_is_noticed_in_a_patched_process_too(
    lost: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(green, "ASK_AFTER", 0.3)
    with Bus(proxy.url, secret="x" * 16, connect_timeout=1.0) as bus:
        bus.stream("orders").broadcast("x")
        if lost == "all":
            proxy.dead = True
        else:
            proxy.lose()
        began = monotonic()
        with pytest.raises(DatabaseUnavailable):
            bus.stream("orders").broadcast("y")
        assert monotonic() - began < 8.0


def test_a_long_statement_is_not_aborted_in_a_patched_process(
    pgbus_bus: Bus, pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(green, "ASK_AFTER", 0.2)
    monkeypatch.setattr(green, "_REPOLL", 0.1)
    with session(pgbus_database) as blocker:
        run(blocker, "begin")
        run(blocker, "select pgbus.broadcast('orders', 'before')")
        waiting = gevent.spawn(pgbus_bus.stream("orders").broadcast, "behind it")
        holds(lambda: not waiting.ready(), "the publisher waits", 1.0)
        run(blocker, "commit")
        assert waiting.get(timeout=10) > 0


def test_a_statement_is_waited_for_if_the_server_cannot_be_asked(
    proxy: Proxy, pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(green, "ASK_AFTER", 0.2)
    monkeypatch.setattr(green, "_REPOLL", 0.1)
    monkeypatch.setattr(green, "LAST_CHANCE", 0.2)
    with Bus(proxy.url, secret="x" * 16, connect_timeout=2.0) as bus, session(pgbus_database) as blocker:
        bus.stream("orders").broadcast("x")
        run(blocker, "begin")
        run(blocker, "select pgbus.broadcast('orders', 'before')")
        waiting = gevent.spawn(bus.stream("orders").broadcast, "behind it")
        proxy.refuse()
        holds(lambda: not waiting.ready(), "the publisher waits", 1.0)
        run(blocker, "commit")
        assert waiting.get(timeout=10) > 0
