"""``bottle.run`` with our server and with Bottle's own for gevent, as programs, from the first request to the signal."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from program_parts import Program, program, tag_in
from raw_http import connected, exchange, wait_for

from pgbus_gevent.bus import Bus
from pgbus_gevent.testing.databases import TestDatabases

APP = """
from gevent import monkey

monkey.patch_all()

import gc
import os

import bottle
import greenlet
from gevent import pywsgi

from pgbus_gevent import Bus
from pgbus_gevent.bottle_plugin import PgbusPlugin, Server

app = bottle.Bottle()
app.install(PgbusPlugin(Bus()))
app.get("/")(lambda pgbus: pgbus.stream_tag("orders"))


@app.get("/handlers")
def handlers():
    # A handler's frame is what its greenlet runs.
    found = [one for one in gc.get_objects() if issubclass(type(one), greenlet.greenlet) and not one.dead and one.gr_frame]
    return str(sum(in_handler(one.gr_frame) for one in found))


def in_handler(frame):
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), pywsgi.WSGIHandler):
            return True
        frame = frame.f_back
    return False


@app.get("/slow")
def slow():
    import time

    while not app.plugins[-1].instance.draining:
        time.sleep(0.05)
    time.sleep(0.2)
    return "slow, but there"


bottle.run(app, port=int(os.environ["PORT"]), OPTIONS)
print("bottle.run has returned")
"""


@pytest.fixture(scope="module")
def database(pgbus_databases: TestDatabases) -> str:
    return pgbus_databases.make()


@pytest.fixture
def bus(database: str) -> Iterator[Bus]:
    with Bus(database, migrate=False) as found:
        yield found


@contextmanager
def running(tmp_path: Path, database: str, options: str, **more: Any) -> Iterator[Program]:
    path = tmp_path / "app.py"
    path.write_text(APP.replace("OPTIONS", options))
    with program(str(path), database_url=database, cwd=tmp_path, **more) as found:
        yield found


@pytest.mark.parametrize(("server", "per_stream"), [("Server", 0), ("'gevent'", 1)])
def test_an_idle_stream_costs_no_greenlet_under_our_server_and_one_under_gevents(
    server: str, per_stream: int, tmp_path: Path, database: str, bus: Bus
) -> None:
    with running(tmp_path, database, f"server={server}") as app:
        clients = [app.watch(*tag_in(app.page())) for _ in range(50)]
        try:
            # The generator of the counting request is not suspended, so it is not counted.
            wait_for(lambda: app.page("/handlers") == str(50 * per_stream), "the earlier requests are over")
            id = bus.stream("orders").broadcast("to all")
            assert {client.next().id for client in clients} == {str(id)}
        finally:
            for client in clients:
                client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_our_server_shuts_down_gracefully(number: int, tmp_path: Path, database: str) -> None:
    with running(tmp_path, database, "server=Server") as app:
        client, slow = app.watch(*tag_in(app.page())), gevent.spawn(app.page, "/slow")
        wait_for(lambda: app.page("/handlers") == "1", "the slow request is being served")
        assert app.stop(number) == 0
        assert client.next("pgbus:shutdown").data == '{"reason":"restart"}'
        client.wait_closed()
        assert slow.get() == "slow, but there"
        assert app.log.endswith("bottle.run has returned\n") and "Traceback" not in app.log


def test_gevents_server_ends_at_once_and_the_client_continues_on_another(
    tmp_path: Path, database: str, bus: Bus
) -> None:
    with running(tmp_path, database, "server='gevent'") as app:
        client = app.watch(*tag_in(app.page()))
        ids = [bus.stream("orders").broadcast("before")]
        client.next()
        assert app.stop(signal.SIGTERM) == -signal.SIGTERM
        client.wait_closed()
        ids.append(bus.stream("orders").broadcast("meanwhile"))
    with running(tmp_path, database, "server='gevent'") as app:
        client.url = app.url
        client.resume()
        assert client.next().id == str(ids[-1])
        assert [frame.id for frame in client.messages] == [str(id) for id in ids]
        client.close()
        assert app.stop(signal.SIGINT) == 0


def test_a_free_port_is_taken_and_printed(tmp_path: Path, database: str) -> None:
    (tmp_path / "app.py").write_text(APP.replace("OPTIONS", "server=Server"))
    app = Program(["app.py"], database, tmp_path, None, PORT="0")
    try:
        printed = re.compile(r"^Listening on http://127\.0\.0\.1:([1-9]\d*)/$", re.MULTILINE)
        wait_for(lambda: printed.search(app.log), "the port is printed", 60)
        app.port = int(printed.findall(app.log)[0])
        assert app.page("/handlers") == "0"
        assert app.stop() == 0
    finally:
        app.close()


def test_options_go_to_the_server(tmp_path: Path, database: str) -> None:
    options = "server=Server, host='127.0.0.1', reloader=False, quiet=True, request_timeout=1.0, max_request_head=2000"
    with running(tmp_path, database, options) as app:
        answer = exchange(app.port, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 3000 + b"\r\n\r\n")
        assert b"the head of the request has more than 2000 bytes" in answer
        with connected(app.port) as idle:
            idle.settimeout(9.0)  # less than the default
            assert idle.recv(1) == b""
        assert app.stop() == 0
        assert app.log == "bottle.run has returned\n"


def test_the_limits_of_the_settings_apply_unless_options_override_them(tmp_path: Path, database: str) -> None:
    with running(tmp_path, database, "server=Server", PGBUS_REQUEST_TIMEOUT="0.3") as app, connected(app.port) as idle:
        idle.settimeout(9.0)  # less than the default
        assert idle.recv(1) == b""


def test_a_part_that_fails_permanently_ends_the_program_with_status_1(tmp_path: Path, database: str) -> None:
    fail = (
        "\n\n@app.get('/fail')\ndef fail(pgbus):\n    app.plugins[-1].instance.on_failure('listener')\n\n\nbottle.run("
    )
    path = tmp_path / "app.py"
    path.write_text(APP.replace("OPTIONS", "server=Server").replace("\n\nbottle.run(", fail))
    with program(str(path), database_url=database, cwd=tmp_path) as app:
        app.get("/fail")
        assert app.process.wait(60) == 1
        assert "listener has failed for good" in app.log and "bottle.run has returned" not in app.log


def test_the_reloader_restarts_the_program_and_its_clients_are_sent_away(tmp_path: Path, database: str) -> None:
    with running(tmp_path, database, "server=Server, reloader=True, interval=0.2") as app:
        client = app.watch(*tag_in(app.page()))
        later = os.stat(tmp_path / "app.py").st_mtime + 5
        os.utime(tmp_path / "app.py", (later, later))
        client.next("pgbus:shutdown", timeout=40)
        client.wait_closed()
        wait_for(lambda: len(re.findall("starting up", app.log)) == 2, "it has restarted", 60)
        app.wait_ready()
        client.resume()
        client.next("pgbus:connected")
        assert app.stop(signal.SIGINT) == 0
        # The parent has ended. The serving process notices that.
        client.next("pgbus:shutdown", timeout=40)
        client.close()
