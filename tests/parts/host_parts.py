"""Shared parts of the tests of hosts: servers as separate processes, with an application beside the streams, and browsers."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import psutil
from poll_parts import Poller
from raw_http import Answer, ask, read_head
from support import PATIENCE, Child, free_port, run, session, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.hosts.pywsgi import Server, listen
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.plugin import SECRET
from pgbus_gevent.web.stream_app import StreamApp

ROOT = Path(__file__).parents[2]
MOST_PROBES = 100

APP = """
import os

import gevent

from pgbus_gevent import PgbusError, Settings, StreamApp
from pgbus_gevent.streamer.instance import Instance

instance = Instance(Settings.load())
streams = StreamApp(instance)


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if streams.serves(path):
        return streams(environ, start_response)
    if path == "/hang":
        import time
        from gevent.monkey import get_original

        get_original("time", "sleep")(600)
    if path == "/fail":
        gevent.spawn_later(0.1, instance.on_failure, "reader-0")
    try:
        instance.start()
    except PgbusError:
        pass
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {os.getppid()} {len(instance.registry)} {instance.unready}".encode()]
"""
"""An application that tells of its process: its number, its parent's, how many streams it has, and why it is not ready."""


class Host(Child):
    """A running server. ``PORT`` in ``command`` stands for a free port. :meth:`close` ends it with all its children.

    It inherits the ``descriptors``.
    """

    def __init__(
        self, folder: Path, database_url: str, command: list[str], descriptors: tuple[int, ...] = (), **variables: str
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log"
        if not (folder / "app.py").exists():
            (folder / "app.py").write_text(APP)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PGBUS_", "DATABASE_"))}
        ours = {
            "PGBUS_DATABASE_URL": database_url,
            "PGBUS_SECRET": SECRET,
            "PGBUS_PUBLIC": "*",
            "PYTHONPATH": str(ROOT),
        }
        with open(self.log, "w") as log:
            self.process: Any = subprocess.Popen(
                [part.replace("PORT", str(self.port)) for part in command],
                cwd=folder,
                env={**kept, **ours, **variables},
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
            )
        self.pid = self.process.pid

    def wait_until_it_serves(self, workers: int = 1) -> None:
        """Wait until ``workers`` processes have answered."""
        until(lambda: len(self.serving(workers)) >= workers, f"{workers} workers serve", 3 * PATIENCE, pause=0.05)

    def serving(self, workers: int = 2) -> set[int]:
        """Return the processes that are ready, of ``workers``. Connections that are open at the same time find them.

        A process with many streams leaves connections to the others until they hold as many, so it may take many connections.
        """
        assert self.process.poll() is None, f"it ended:\n{self.errors}"
        found: set[int] = set()
        with ExitStack() as stack:
            for _ in range(MOST_PROBES):
                connection = stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)))
                pid = _ready(connection)
                if pid:
                    found.add(pid)
                if len(found) == workers or (pid is None and not found):
                    break
        return found

    def about(self) -> tuple[int, int, int]:
        """Return the process id of a worker, that of its parent, and the number of its streams."""
        pid, parent, streams, _ = ask(self.port, "/").body.split()
        return int(pid), int(parent), int(streams)

    def ask(self, path: str) -> Answer:
        return ask(self.port, path)

    @property
    def errors(self) -> str:
        return self.log.read_text()

    def children(self) -> set[int]:
        """Return the processes below this one."""
        try:
            return {child.pid for child in psutil.Process(self.pid).children(recursive=True)}
        except psutil.NoSuchProcess:
            return set()

    def live(self, stream: str = "orders", query: str = "", **headers: str) -> StreamClient:
        """Return a client that has got ``pgbus:connected``."""
        client = StreamClient(self.url, f"/pgbus/streams/{stream}{query and '?'}{query}", headers=headers)
        client.next("pgbus:connected", timeout=PATIENCE)
        return client

    def close(self) -> None:
        """End all of its processes that still run."""
        left = [psutil.Process(pid) for pid in self.children()]
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass


@contextmanager
def host(folder: Path, database_url: str, *command: str, workers: int = 1, **variables: str) -> Iterator[Host]:
    """Run a server for a block, which begins when the server serves. Its log is shown if the block fails."""
    found = Host(folder, database_url, list(command), **variables)
    try:
        found.wait_until_it_serves(workers)
        yield found
    except BaseException:
        print(f"the log of the server:\n{found.errors[-6000:]}")
        raise
    finally:
        found.close()


def _ready(connection: http.client.HTTPConnection) -> int | None:
    """Return the process that answers on the connection, if it is ready."""
    try:
        connection.request("GET", "/")
        pid, *_, unready = connection.getresponse().read().split()
        return int(pid) if unready == b"None" else None
    except (OSError, http.client.HTTPException, ValueError):
        return None


def gunicorn(*flags: str, worker: str = "pgbus_gevent.gunicorn_worker.Worker") -> list[str]:
    """Return the command that starts a gunicorn."""
    return [
        # The script, because with -m it could not start itself again for SIGUSR2.
        *(
            str(Path(sys.executable).with_name("gunicorn")),
            "--no-control-socket",
            "-k",
            worker,
            "--bind",
            "127.0.0.1:PORT",
        ),
        *flags,
        "app:app",
    ]


class Browser:
    """A client that comes back as an EventSource does, with its cursor, but ``haste`` times sooner than it is told.

    :attr:`ids` has the ids of all messages, :attr:`told` the retries that came with a shutdown, in milliseconds,
    :attr:`stopped` a status after which an EventSource never comes back.
    """

    def __init__(
        self, port: int, stream: str, haste: float = 10.0, connect: Callable[[], socket.socket] | None = None
    ) -> None:
        self.ids: list[int] = []
        self.told: list[int] = []
        self.connections = 0
        self.stopped: int | None = None
        self._retry = 2000
        self._haste = haste
        self._path = f"/pgbus/streams/{stream}"
        self._connect = connect or partial(socket.create_connection, ("127.0.0.1", port), 10)
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while self.stopped is None:
            try:
                with self._connect() as sock:
                    self._read(sock)
            except OSError:
                pass  # it comes back after any failure of the network
            gevent.sleep(self._retry / 1000 / self._haste)

    def _read(self, sock: socket.socket) -> None:
        cursor = f"Last-Event-ID: {self.ids[-1]}\r\n" if self.ids else ""
        sock.sendall(
            f"GET {self._path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nAccept: text/event-stream\r\n{cursor}\r\n".encode()
        )
        sock.settimeout(60)
        head = read_head(sock)
        if head is None:
            return
        head, _, rest = head.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            self.stopped = int(head.split()[1])
            return
        while True:
            *frames, rest = rest.split(b"\n\n")
            for frame in frames:
                self._take(frame)
            data = sock.recv(65536)
            if not data:
                return
            rest += data

    def _take(self, frame: bytes) -> None:
        lines = frame.split(b"\n")
        for line in lines:
            if line.startswith(b"retry: "):
                self._retry = int(line[7:])
            elif line.startswith(b"id: ") and not any(line.startswith(b"event: pgbus:") for line in lines):
                self.ids.append(int(line[4:]))
        if b"event: pgbus:connected" in frame:
            self.connections += 1
        elif b"event: pgbus:shutdown" in frame:
            self.told.append(self._retry)
        elif b"event: pgbus:gap-detected" in frame:
            self.stopped = 0

    def close(self) -> None:
        self._greenlet.kill()


def shutdown_retry(client: StreamClient) -> int:
    """Return the retry time in milliseconds of the last frame, which must be a shutdown that allows the client to come back."""
    client.wait_closed(PATIENCE)
    tail = client.raw[-200:].decode()
    assert 'event: pgbus:shutdown\ndata: {"reason":"restart"}' in tail, tail
    found = re.findall(r"retry: (\d+)", tail)
    return int(found[-1])


def publish(url: str, data: str, stream: str = "orders") -> int:
    with session(url) as connection:
        return int(run(connection, "select pgbus.broadcast(%s, %s)", stream, data)[0][0])


def check_streams(served: Host, database_url: str, client: StreamClient, slow: StreamClient) -> None:
    """Check that messages arrive, that a client that leaves is noticed, and that a slow consumer is closed."""
    assert client.raw.startswith(b"retry: ") and served.about()[2] == 2
    ids = [publish(database_url, f"{n}") for n in range(3)]
    assert [client.next().id for _ in ids] == [str(id) for id in ids]
    check_polls(served, database_url, streams=2)
    served.live().close()
    until(lambda: served.about()[2] == 2, "the one that left was noticed")
    slow.pause()
    for _ in range(20):
        publish(database_url, "x" * 900_000)
    until(lambda: served.about()[2] == 1, "the slow one was closed")
    until(lambda: len(client.messages) == 23, "the other has all")


def check_polls(served: Host, database_url: str, *, streams: int) -> None:
    """Check that a poll is answered at once, or with the next message, beside this many streams of the worker."""
    poller = Poller(served.url, "/pgbus/streams/polled")
    assert poller.ask(0)["messages"] == []
    waits = poller.start(30)
    until(lambda: served.about()[2] == streams + 1, "the poll waits")
    id = publish(database_url, "for the poll", "polled")
    assert [each["id"] for each in waits.get(timeout=PATIENCE)["messages"]] == [id]
    assert poller.ask(1)["messages"] == [] and poller.cursor == id
    assert poller.raw("x").status == 400


def deployed(file: str, replaced: dict[str, str]) -> str:
    """Return a proxy's configuration from ``deploy/``, with other texts for some of its own, each of which it must have."""
    recipe = (ROOT / "deploy" / file).read_text()
    for written, ours in replaced.items():
        assert written in recipe, written
        recipe = recipe.replace(written, ours)
    return recipe


@contextmanager
def servers_at(port: int, settings: Settings) -> Iterator[Callable[[], Callable[[], None]]]:
    """Yield a function that starts a server at ``port``, behind a proxy, and returns how to stop it. All are stopped at the end."""
    with ExitStack() as stack:

        def start() -> Callable[[], None]:
            instance = Instance(settings).start()
            server = Server(listen("127.0.0.1", port), StreamApp(instance))
            server.start()

            def stop() -> None:
                server.close()
                instance.shutdown()
                server.stop(1.0)

            stack.callback(stop)
            return stop

        yield start


def assert_an_event_source_outlives_a_restart(proxy: int, serve: Callable[[], Callable[[], None]], bus: Bus) -> None:
    """Stop and start the server behind the proxy at this port. A browser must get every message, and never give up."""
    stop = serve()
    browser = Browser(proxy, "orders", haste=20.0)
    try:
        until(lambda: browser.connections == 1, "it is connected")
        orders = bus.stream("orders")
        ids = [orders.broadcast("before")]
        until(lambda: browser.ids == ids, "it has the first")
        stop()
        ids.append(orders.broadcast("while nobody serves"))
        until(lambda: len(browser.told) >= 3, "the proxy has told it to come back")
        serve()
        ids.append(orders.broadcast("after"))
        until(lambda: browser.ids == ids, "it has all of them")
        assert browser.stopped is None
    finally:
        browser.close()


def assert_a_client_is_told_to_come_back(proxy: int) -> None:
    """Ask the proxy at this port for a stream, while there is no server behind it."""
    events = {"Accept": "text/event-stream"}
    told = set()
    for _ in range(20):
        answer = ask(proxy, "/pgbus/streams/orders", **events)
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert "no-transform" in answer.headers["cache-control"]
        found = re.fullmatch(rb'retry: (\d+)\nevent: pgbus:shutdown\ndata: \{"reason":"unavailable"\}\n\n', answer.body)
        assert found is not None and 3000 <= int(found[1]) <= 8000
        told.add(found[1])
    assert len(told) > 1
    # A publisher, or a program that polls, must not take the answer for a success.
    for headers in ({}, events):
        assert ask(proxy, "/pgbus/streams/orders", "POST", b"data", **headers).status == 503
    assert ask(proxy, "/pgbus/streams/orders?poll=1").status == 503
