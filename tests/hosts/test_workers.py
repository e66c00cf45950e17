"""``serve`` with several workers, and several Instances in one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest
from host_parts import APP, ROOT, Browser, Host, host, shutdown_retry
from support import PATIENCE, open_folder, run, session, until

from pgbus_gevent.hosts.load_board import LoadBoard
from pgbus_gevent.hosts.pywsgi import Server, listen
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.testing.plugin import SECRET
from pgbus_gevent.web.stream_app import StreamApp

SERVE = [sys.executable, "-m", "pgbus_gevent.serve", "--port", "PORT", "--workers", "2"]
OWN = APP.replace(
    "instance = Instance(Settings.load())", "from pgbus_gevent.streamer import current\ninstance = current()"
)


def publish(url: str, data: str, stream: str = "orders") -> int:
    with session(url) as connection:
        return int(run(connection, "select pgbus.broadcast(%s, %s)", stream, data)[0][0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(OWN)
    return tmp_path


def gone(pids: set[int]) -> bool:
    """Whether all these processes have ended. A zombie counts as ended."""
    return all(ended(pid) for pid in pids)


def ended(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def serving(folder: Path, database: str, *flags: str, **variables: str) -> Any:
    return host(folder, database, *SERVE, "app:app", *flags, workers=2, **variables)


def test_two_workers_serve_one_port_and_send_their_clients_away_at_the_end(folder: Path, pgbus_database: str) -> None:
    with serving(folder, pgbus_database) as served, ExitStack() as stack:
        line = f"pgbus_gevent serves http://127.0.0.1:{served.port}/ database "
        until(lambda: line in served.errors and f" pid {served.pid}\n" in served.errors, "it says so")
        clients = [stack.enter_context(served.live()) for _ in range(30)]
        id = publish(pgbus_database, "hello")
        assert [client.next().id for client in clients] == [str(id)] * 30
        children = served.children()
        assert len(children) == 3
        served.signal()
        assert all(1000 <= shutdown_retry(client) <= 5000 for client in clients)
        assert served.wait() == 0 and gone(children)
        assert "Traceback" not in served.errors and "CRITICAL" not in served.errors


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_line_of_the_log_tells_which_worker_wrote_it(format: str, folder: Path, pgbus_database: str) -> None:
    def writers() -> set[int]:
        lines = [line for line in served.errors.splitlines() if "pgbus_gevent.listener" in line]
        return {int(json.loads(line)["pid"] if format == "json" else line.split()[1]) for line in lines}

    with serving(folder, pgbus_database, "--log-format", format) as served:
        until(lambda: len(writers()) == 2, "both workers listen, and say so")
        assert writers() < served.children()


def test_a_hangup_replaces_the_workers_and_clients_miss_nothing(folder: Path, pgbus_database: str) -> None:
    with serving(folder, pgbus_database) as served, ExitStack() as stack:
        browsers = [Browser(served.port, "orders") for _ in range(20)]
        for browser in browsers:
            stack.callback(browser.close)
        until(lambda: all(browser.connections for browser in browsers), "all are connected")
        before, ids = served.serving(), [publish(pgbus_database, "before")]
        until(lambda: all(browser.ids == ids for browser in browsers), "all have the first")
        served.signal(signal.SIGHUP)
        until(lambda: any(browser.told for browser in browsers), "some were sent away")
        ids.append(publish(pgbus_database, "meanwhile"))
        until(lambda: all(browser.connections >= 2 for browser in browsers), "all have come back")
        until(lambda: all(browser.ids == ids for browser in browsers), "all have both")
        assert not served.serving() & before
        served.signal()
        assert served.wait() == 0


def test_a_second_signal_ends_all_at_once(folder: Path, pgbus_database: str) -> None:
    with (
        serving(folder, pgbus_database, "--grace", "15", PGBUS_SEND_BUFFER="4kB") as served,
        served.live() as client,
    ):
        client.pause()
        for _ in range(20):
            publish(pgbus_database, "x" * 500_000)
        children = served.children()
        served.signal()
        until(lambda: "SIGTERM: draining" in served.errors, "it drains")
        began = monotonic()
        served.signal(signal.SIGINT)
        assert served.wait() == 128 + signal.SIGINT
        until(lambda: gone(children), "the workers have ended too")
        assert monotonic() - began < 10


def test_the_workers_do_not_outlive_the_program(folder: Path, pgbus_database: str) -> None:
    with serving(folder, pgbus_database) as served, served.live() as client:
        children = served.children()
        served.signal(signal.SIGKILL)
        assert 1000 <= shutdown_retry(client) <= 5000
        until(lambda: gone(children), "they have ended")


def test_the_program_ends_with_status_1_when_gunicorn_does(folder: Path, pgbus_database: str) -> None:
    with serving(folder, pgbus_database) as served, served.live() as client:
        children = served.children()
        (master,) = (child.pid for child in psutil.Process(served.pid).children())
        os.kill(master, signal.SIGKILL)
        assert served.wait() == 1
        assert "gunicorn ended with status -9" in served.errors
        assert 1000 <= shutdown_retry(client) <= 5000
        until(lambda: gone(children), "the workers have ended too")


@pytest.fixture
def open_home() -> Iterator[Path]:
    with open_folder() as path:
        yield path


def test_the_demo_runs_on_the_embedded_database_and_its_secret(open_home: Path) -> None:
    served = Host(open_home, "", [*SERVE, "--data-dir", str(open_home / "data")], PGBUS_SECRET="", PGBUS_PUBLIC="")
    try:
        until(lambda: f" pid {served.pid}\n" in served.errors, "it serves, on a database that it made", 3 * PATIENCE)
        assert b"Departures" in served.ask("/").body
        with served.live("demo:departures") as client:
            client.next(timeout=PATIENCE)
        with served.live("demo:answer") as client:
            kind = {"content-type": "application/json"}
            # Whichever worker takes each request, one answer is begun, and each of its words is written once.
            for _ in range(4):
                with urlopen(
                    Request(f"{served.url}/lab/answer", b'{"topic": "sea"}', kind), timeout=PATIENCE
                ) as answer:
                    assert answer.status in (200, 201)
            assert client.next(timeout=PATIENCE).event == "answer.start"
            words = [json.loads(client.next(timeout=PATIENCE).data) for _ in range(12)]
            assert [word["at"] for word in words] == list(range(12))
        served.signal()
        assert served.wait() == 0
    finally:
        served.close()


# refusing ------------------------------------------------------------------------------------------------------------


def refused(folder: Path, database: str, *flags: str) -> tuple[int, str]:
    served = Host(folder, database, [*SERVE, *flags])
    try:
        return served.wait(), served.errors
    finally:
        served.close()


def test_an_application_that_is_not_there_ends_it_with_status_2(folder: Path, pgbus_database: str) -> None:
    status, log = refused(folder, pgbus_database, "app:nothere", "--workers", "4")
    assert status == 2
    assert (
        "pgbus-gevent: cannot load 'app:nothere': the module 'app' has no application 'nothere'\n" in log
        and "Traceback" not in log
    )


def test_a_database_that_is_not_there_is_one_line_and_status_1(folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # it does not listen, and nobody else gets the port
        port = unused.getsockname()[1]
        status, log = refused(folder, f"postgresql://127.0.0.1:{port}/nothere", "app:app")
    assert status == 1
    assert log.startswith("pgbus-gevent: cannot connect to PostgreSQL: ") and log.count("\n") == 1


def test_without_gunicorn_one_line_says_what_to_install(folder: Path, pgbus_database: str) -> None:
    program = (
        "import sys; sys.modules['gunicorn'] = None; from pgbus_gevent.serve import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--port", "0", "--workers", "2", "--database-url", pgbus_database],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PGBUS_SECRET": SECRET},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == "pgbus-gevent: more than one worker needs gunicorn: pip install 'pgbus-gevent[workers]'\n"


# parts ---------------------------------------------------------------------------------------------------------------


def test_a_worker_leaves_connections_to_the_one_that_has_the_fewest() -> None:
    board = LoadBoard()
    one, two, three = (board.slot(number) for number in (1, 2, 1027))
    assert one.pause(1000, now=10.0) == 0.0  # there are no other workers
    two.show(100, now=10.0)
    assert one.pause(100, now=10.0) == one.pause(105, now=10.0) == 0.0
    assert 0.0 < one.pause(106, now=10.0) < one.pause(120, now=10.0) <= 0.01
    three.show(3, now=10.0)
    assert one.pause(20, now=10.0) == 0.01
    two.show(100, now=13.5)
    assert one.pause(20, now=13.5) == 0.0  # the third has shown nothing for too long
    two.leave()
    assert one.pause(1000, now=13.5) == 0.0


# several in one process ----------------------------------------------------------------------------------------------


def test_instances_on_different_databases_and_prefixes_do_not_touch_one_another(pgbus_databases: TestDatabases) -> None:
    first, second = pgbus_databases.make(), pgbus_databases.make()
    common: dict[str, Any] = {"secret": SECRET, "public": ("*",), "grace": 2.0}
    instances = {
        "/a": Instance(Settings(database_url=first, prefix="/a", **common)),
        "/b": Instance(Settings(database_url=second, prefix="/b", **common)),
        "/c": Instance(Settings(database_url=first, prefix="/c", **common)),
    }
    apps = {prefix: StreamApp(instance) for prefix, instance in instances.items()}
    server = Server(listen("127.0.0.1", 0), lambda environ, start: apps[environ["PATH_INFO"][:2]](environ, start))
    server.start()
    with ExitStack() as stack:
        stack.callback(server.stop, 1.0)
        for instance in instances.values():
            stack.callback(instance.shutdown)
        url = f"http://127.0.0.1:{server.server_port}"
        clients = {prefix: stack.enter_context(StreamClient(url, f"{prefix}/streams/orders")) for prefix in apps}
        for client in clients.values():
            client.next("pgbus:connected")
        publish(second, "of the second")
        assert clients["/b"].next().data == "of the second"
        publish(first, "of the first")
        assert clients["/a"].next().data == clients["/c"].next().data == "of the first"
        instances["/a"].shutdown()
        assert 1000 <= shutdown_retry(clients["/a"]) <= 5000
        pgbus_databases.drop(second)  # an outage of one database does not affect the other
        until(lambda: instances["/b"].unready == "unavailable", "it is noticed")
        publish(first, "the last")
        assert clients["/c"].next().data == "the last"
        assert [len(client.messages) for client in clients.values()] == [1, 1, 2]
        until(lambda: instances["/c"].unready is None, "the other one is ready")
