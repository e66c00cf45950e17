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
from support import holds, run, session, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.database import green, pool
from pgbus_gevent.errors import DatabaseUnavailable

PLAIN = """
import os, sys, threading, time
from pgbus_gevent import Bus, PgbusError
from pgbus_gevent.database import green, overdue

green.STATEMENT_GRACE = 0.5
url, ask_after, statement_timeout, connect_timeout, what = sys.argv[1:]
if what == "fork":
    overdue._TICK = 60.0  # so that no thread ends by itself before it is counted
bus = Bus(url, secret="x" * 16, connect_timeout=float(connect_timeout), statement_timeout=100.0, migrate=False)

def broadcast():
    bus.stream("orders").broadcast("x")

def wait_inside():
    print("inside", flush=True)
    sys.stdin.readline()
    overdue.ASK_AFTER = float(ask_after)

def transaction():
    with bus.transaction() as cursor:
        wait_inside()
        bus.stream("orders").broadcast("x", using=cursor)

def own():
    with bus.transaction() as cursor:
        wait_inside()
        cursor.execute("select 1")

def commit():
    with bus.transaction() as cursor:
        cursor.execute("select 1")
        wait_inside()

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
    overdue._TICK = 0.1
    broadcast()
    end = time.monotonic() + 60
    while threading.active_count() > 1:
        assert time.monotonic() < end, "a thread is left"
        time.sleep(0.01)

broadcast()
print("ready", flush=True)
sys.stdin.readline()
if what in ("broadcast", "sleep"):
    overdue.ASK_AFTER = float(ask_after)
for connection, _ in bus.database.pool._idle:
    connection.statement_timeout = float(statement_timeout)
began = time.monotonic()
try:
    globals()[what]()
    print("done", flush=True)
except PgbusError as error:
    print(type(error).__name__, time.monotonic() - began, error, flush=True)
"""


class Process:
    """A program that is not patched for gevent. It waits for a line of input at marked places."""

    def __init__(
        self,
        url: str,
        what: str,
        ask_after: float = 0.3,
        statement_timeout: float = 100.0,
        connect_timeout: float = 2.0,
    ) -> None:
        times = map(str, (ask_after, statement_timeout, connect_timeout))
        arguments = [sys.executable, "-W", "error", "-c", PLAIN, url, *times, what]
        self.process: Any = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        assert self.line() == "ready"

    def line(self) -> str:
        with gevent.Timeout(120):
            return str(self.process.stdout.readline().strip())

    def go_on(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()


LONG = 50.0
"""Seconds that are less than the statement timeout, although the machine may stand still for some of them."""


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
    assert name == "DatabaseUnavailable" and float(seconds) < LONG


def test_a_lost_session_is_noticed_although_the_server_answers_others(proxy: Proxy, started: Any) -> None:
    process = started("broadcast")
    proxy.lose()
    process.go_on()
    name, seconds, *_ = process.line().split()
    assert name == "DatabaseUnavailable" and float(seconds) < LONG


def test_a_long_statement_is_not_aborted(started: Any) -> None:
    process = started("sleep", connect_timeout=20.0)
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
    with Bus(proxy.url, secret="x" * 16, connect_timeout=2.0, statement_timeout=100.0) as bus:

        def published() -> bool:
            try:
                bus.stream("orders").broadcast("x")
            except DatabaseUnavailable:  # the server was too busy for this timeout
                return False
            return True

        until(published, "it publishes")
        monkeypatch.setattr(green, "ASK_AFTER", 0.3)
        if lost == "all":
            proxy.dead = True
        else:
            proxy.lose()
        began = monotonic()
        with pytest.raises(DatabaseUnavailable):
            bus.stream("orders").broadcast("y")
        assert monotonic() - began < LONG


def test_a_long_statement_is_not_aborted_in_a_patched_process(
    pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(green, "ASK_AFTER", 0.2)
    monkeypatch.setattr(green, "_REPOLL", 0.1)
    monkeypatch.setattr(pool, "LIFE", 20.0)
    with session(pgbus_database) as blocker:
        run(blocker, "begin")
        run(blocker, "select pgbus.broadcast('orders', 'before')")
        with Bus(pgbus_database, secret="x" * 16, connect_timeout=20.0) as bus:
            waiting = gevent.spawn(bus.stream("orders").broadcast, "behind it")
            holds(lambda: not waiting.ready(), "the publisher waits", 1.0)
            run(blocker, "commit")
            assert waiting.get(timeout=40) > 0


def test_a_statement_is_waited_for_if_the_server_cannot_be_asked(
    proxy: Proxy, pgbus_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bus(proxy.url, secret="x" * 16, connect_timeout=20.0) as bus, session(pgbus_database) as blocker:
        bus.stream("orders").broadcast("x")
        monkeypatch.setattr(green, "ASK_AFTER", 0.2)
        monkeypatch.setattr(green, "_REPOLL", 0.1)
        monkeypatch.setattr(green, "LAST_CHANCE", 0.2)
        monkeypatch.setattr(pool, "_AT_ONCE", 10.0)  # this process may stand still while it is refused
        run(blocker, "begin")
        run(blocker, "select pgbus.broadcast('orders', 'before')")
        waiting = gevent.spawn(bus.stream("orders").broadcast, "behind it")
        proxy.refuse()
        holds(lambda: not waiting.ready(), "the publisher waits", 1.0)
        run(blocker, "commit")
        assert waiting.get(timeout=40) > 0
