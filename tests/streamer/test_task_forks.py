"""A process that starts programs while it serves: until a child runs its program, it has the sockets of its parent."""

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

from pgbus_gevent.streamer.task import Task

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
