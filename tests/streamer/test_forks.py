"""A process that starts others while it serves: each child has the sockets of its parent, and must not use them in its place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import gevent
import pytest
from gevent.fileobject import FileObject
from gevent.pool import Group
from support import serving, until_messages

from pgbus_gevent.bus import Bus
from pgbus_gevent.settings.table import Settings

_yielding: list[int] = []


def _yield_in_children() -> None:
    # As the exporter of OpenTelemetry, which starts a thread in each child and waits for it.
    if _yielding:
        gevent.spawn(gevent.sleep, 0.05).join()


os.register_at_fork(after_in_child=_yield_in_children)


@pytest.fixture
def children_yield() -> Iterator[None]:
    _yielding.append(os.getpid())
    yield
    _yielding.clear()


@pytest.mark.usefixtures("children_yield")
def test_a_child_that_yields_before_it_runs_its_program_sends_and_takes_nothing(
    pgbus_settings: Settings, pgbus_bus: Bus
) -> None:
    with serving(pgbus_settings, public=("*",)) as worker:
        clients = [worker.live("orders") for _ in range(3)]
        for n in range(20):
            pgbus_bus.stream("orders").broadcast(str(n))
            assert subprocess.run(["true"], timeout=60).returncode == 0
        for client in clients:
            until_messages(client, 20)
            assert [message.data for message in client.messages] == list(map(str, range(20)))
        assert worker.instance.listener.reconnects == 0
        # What a child took from the connections of the pool would be missing here, for as long as a statement may take.
        assert worker.instance.database.queries.moved({})[0] == int(clients[0].messages[-1].id or 0)


@pytest.mark.usefixtures("children_yield")
def test_a_child_that_goes_on_has_a_loop_of_its_own(pgbus_settings: Settings) -> None:
    with serving(pgbus_settings, public=("*",)) as worker:
        client = worker.live("orders")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            done = b"fails"
            try:
                with gevent.Timeout(20):
                    done = b"".join(Group().map(lambda part: (gevent.sleep(0.01), part)[1], [b"o", b"k"]))
            finally:
                os.write(writer, done)
                os._exit(0)
        os.close(writer)
        with FileObject(reader, "rb") as answer:
            assert answer.read() == b"ok"
        os.waitpid(child, 0)
        assert not client.closed and worker.instance.alive


REGISTERED_FIRST = """
from gevent import monkey; monkey.patch_all()
import os, subprocess, gevent

os.register_at_fork(after_in_child=lambda: gevent.spawn(gevent.sleep, 0.05).join())

from pgbus_gevent.streamer import forks
from pgbus_gevent.streamer.task import Task

forks._forget = lambda loop: os.write(2, b"a program starts slowly")

def work():
    while True:
        gevent.sleep(0.001)
        if os.getpid() != parent:
            os.write(1, b"a greenlet of the parent runs")

parent = os.getpid()
task = Task("work", work, on_failure=print)
task.start()
gevent.sleep(0.01)
subprocess.run(["true"])
task.stop(1)
"""


def test_it_does_not_depend_on_what_was_registered_first() -> None:
    done = subprocess.run([sys.executable, "-c", REGISTERED_FIRST], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


GOES_ON = """
from gevent import monkey; monkey.patch_all()
import gc, json, os, signal, subprocess, threading, gevent, multiprocessing
from gevent import get_hub, socket
from gevent.event import Event
from gevent.lock import Semaphore
from pgbus_gevent.streamer.task import Task

parent = os.getpid()

def told(what):
    if os.getpid() != parent:
        os.write(2, b"%s of the parent runs" % what)

def work(pause):
    try:
        while True:
            gevent.sleep(pause)
            told(b"a greenlet")
    finally:
        told(b"a finally block")

gevent.signal_handler(signal.SIGTERM, told, b"a signal handler")
task = Task("w", lambda: work(0.001), on_failure=print)
task.start()
others = [gevent.spawn(work, pause) for pause in (0, 0, 0.001, 1000)]
gevent.spawn(Event().wait)
event, semaphore, (ours, theirs) = Event(), Semaphore(), socket.socketpair()

def use():
    with semaphore:
        gevent.sleep(0.001)

def contend():
    gevent.joinall([gevent.spawn(use) for _ in range(3)], raise_error=True)
    return True

def program(*_):
    return subprocess.run(["true"]).returncode == 0

contend()
waits = gevent.spawn(event.wait)
gevent.sleep(0)
event.set()
waits.join()
event.clear()

def forks():
    child = multiprocessing.get_context("fork").Process(target=program)
    child.start()
    child.join(20)
    return child.exitcode == 0

def freed():
    gc.collect()
    gevent.sleep(0.02)
    return True

CASES = {
    "it starts a program": program,
    "it forks": forks,
    "it waits for an event that was waited for before": lambda: event.wait(0.01) is False,
    "it shares a semaphore": contend,
    "it reads from an inherited socket": lambda: theirs.recv(2) == b"ok",
    "it uses the thread pool": lambda: get_hub().threadpool.apply(len, ("ab",)) == 2,
    "it looks up a name": lambda: bool(socket.getaddrinfo("localhost", 80)),
    "its timeouts end": lambda: gevent.with_timeout(0.01, theirs.recv, 2, timeout_value=True),
    "it frees what it can": freed,
    "it is ended by a signal": lambda: gevent.sleep(20),
}

def run():
    for name, case in CASES.items():
        child = os.fork()
        if child == 0:
            ok = False
            try:
                with gevent.Timeout(20):
                    ok = case()
            finally:
                os._exit(0 if ok else 1)
        if "inherited" in name:
            ours.send(b"ok")
        if "signal" in name:
            gevent.sleep(0.2)
            os.kill(child, signal.SIGTERM)
        status = os.waitpid(child, 0)[1]
        # At once, because multiprocessing writes in its child what waits in the buffer.
        print(name, status == (signal.SIGTERM if "signal" in name else 0), flush=True)

run()
gevent.spawn(run).get()
task.stop(1)
print("end", flush=True)
os._exit(0)
"""


def test_a_child_that_goes_on_can_do_all_that_it_could_and_runs_nothing_of_its_parent() -> None:
    done = subprocess.run([sys.executable, "-c", GOES_ON], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    *cases, end = done.stdout.splitlines()
    assert end == "end" and len(cases) == 20
    assert [case for case in cases if not case.endswith(" True")] == []
