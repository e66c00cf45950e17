"""Shared parts of the delivery tests: servers in this process and in others, waits with a deadline, an independent decoder.

Only :class:`Serving` uses the internals of a server.
"""

from __future__ import annotations

import gc
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import gevent
import psutil
import psycopg2
from gevent.greenlet import Greenlet
from httpx_sse._decoders import SSEDecoder, SSELineDecoder

from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.testing.client import StreamClient, stream_path
from pgbus_gevent.testing.servers import SECRET, RunningServer
from pgbus_gevent.web.stream_app import StreamApp

PATIENCE = 40.0
"""Seconds that a condition may take which holds within one on a machine of its own."""

START = 60.0
"""Seconds that a process may take until it serves."""


def free_port() -> int:
    """Return a free port outside the kernel's ephemeral range, so that it is still free when a server starts a moment later."""
    for _ in range(100):
        port = random.randrange(10_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no free port in a hundred tries")


@contextmanager
def open_folder() -> Iterator[Path]:
    """Give an empty folder that everybody can enter, as the embedded server of a test by root, which runs as another user.

    It is not one of pytest's folders: each run of pytest, also one in another terminal, takes the rights of others from those.
    """
    with tempfile.TemporaryDirectory(prefix="pgbus-test-", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o711)
        yield Path(name)


@contextmanager
def full_backlog() -> Iterator[tuple[str, int]]:
    """Give an address at which connecting takes for ever."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as stack:
        address: tuple[str, int] = server.getsockname()
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        yield address


def until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE, pause: float = 0.01) -> Any:
    """Return the result of ``condition`` once it is true. Raises AssertionError with ``what`` at the deadline."""
    deadline = monotonic() + timeout
    while not (found := condition()):
        assert monotonic() < deadline, f"not within {timeout:g} s: {what}"
        gevent.sleep(pause)
    return found


def holds(condition: Callable[[], Any], what: str, seconds: float) -> None:
    """Check that ``condition`` stays true for ``seconds``. Raises AssertionError if it does not."""
    ending = monotonic() + seconds
    while monotonic() < ending:
        assert condition(), f"no longer: {what}"
        gevent.sleep(0.02)


def until_messages(client: StreamClient, count: int, timeout: float = PATIENCE) -> None:
    """Wait until a client has ``count`` messages."""
    until(lambda: len(client.messages) >= count, f"{count} messages arrive", timeout)


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value below which ``share`` of ``values`` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# in this process


class Serving:
    """An Instance and its server in this process, with the clients that were connected. Tests may use the internals."""

    def __init__(self, settings: Settings, app: Callable[[Instance], Any], **parts: Any) -> None:
        self.instance = Instance(settings, **parts).start()
        self.server = RunningServer(app(self.instance), settings.prefix)
        self.url = self.server.url
        self.clients: list[StreamClient] = []

    def client(
        self, stream: str, *, since: int | None = None, query: str = "", headers: dict[str, str] | None = None
    ) -> StreamClient:
        """Return a client that is connecting."""
        client = connect(self.url, stream, since=since, query=query, headers=headers)
        self.clients.append(client)
        return client

    def live(self, stream: str, **how: Any) -> StreamClient:
        """Return a client that has got ``pgbus:connected``."""
        client = self.client(stream, **how)
        client.next("pgbus:connected", timeout=PATIENCE)
        return client

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.server.stop()
        self.instance.shutdown()


@contextmanager
def serving(
    settings: Settings,
    *,
    app: Callable[[Instance], Any] = StreamApp,
    parts: dict[str, Any] | None = None,
    **changes: Any,
) -> Iterator[Serving]:
    """Serve with ``settings`` and ``changes`` to them. ``parts`` are keywords of the Instance."""
    found = Serving(replace(settings, **changes), app, **(parts or {}))
    try:
        yield found
    finally:
        found.close()


def connect(
    url: str, stream: str, *, since: int | None = None, query: str = "", headers: dict[str, str] | None = None
) -> StreamClient:
    """Return a client of the server at ``url``."""
    path = stream_path("/pgbus", stream) + (f"?{query}" if query else "")
    return StreamClient(url, path, since=since, headers=headers)


# in a separate process


class Child:
    """A program that runs as :attr:`process`. :attr:`errors` is what it has printed."""

    process: Any

    @property
    def errors(self) -> str:
        raise NotImplementedError

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 3 * PATIENCE) -> int:
        """Return its exit status. Raises AssertionError if it does not end."""
        try:
            return int(self.process.wait(timeout))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it still runs after {timeout:g} s:\n{self.errors}") from None


class ServeProcess(Child):
    """``python -m pgbus_gevent.serve``, or another ``program``, on a free port. :attr:`url` is the URL that it printed."""

    def __init__(
        self, database_url: str, *flags: str, program: tuple[str, ...] = ("-m", "pgbus_gevent.serve"), **env: str
    ):
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PGBUS_", "DATABASE_"))}
        environ |= {"PGBUS_DATABASE_URL": database_url, "PGBUS_SECRET": SECRET, "PGBUS_PUBLIC": "*", **env}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by serve_process, when it has been shown
        # With an application, there is no demo that publishes.
        arguments = [sys.executable, *program, "wsgiref.simple_server:demo_app", "--port", "0", *flags]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": self.log, "text": True}
        self.process: Any = subprocess.Popen(arguments, env=environ, **pipes)
        self.pid = self.process.pid
        self._stdout = cast(Any, self.process.stdout)
        line = ""
        with gevent.Timeout(START, False):  # type: ignore[arg-type]  # False: end the block without an exception
            line = self._stdout.readline()
        found = re.search(r"http://\S+(?=/ )", line)
        if found is None:
            self.stop()
            raise AssertionError(f"it printed {line!r}, and on stderr:\n{self.errors}")
        self.url = found[0]

    @property
    def errors(self) -> str:
        """Return its output on stderr so far."""
        self.log.seek(0)
        return self.log.read()

    @property
    def rss(self) -> int:
        """Return its memory in bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def stop(self) -> None:
        """End it in any state. May be called again."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._stdout.close()


@contextmanager
def serve_process(database_url: str, *flags: str, **more: Any) -> Iterator[ServeProcess]:
    """Run a process for a block. Its log is shown if the block fails."""
    server = ServeProcess(database_url, *flags, **more)
    try:
        yield server
    except BaseException:
        print(f"the log of the server:\n{server.errors[-4000:]}")
        raise
    finally:
        server.stop()
        server.log.close()


# HTTP


class Answer(NamedTuple):
    """A complete answer. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def get(url: str, path: str, *, timeout: float = PATIENCE, **headers: str) -> Answer:
    """Send a GET, and return the complete answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def raw_client(url: str, stream: str) -> socket.socket:
    """Return a socket that has requested a stream and has a small receive buffer."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((urlsplit(url).hostname or "", urlsplit(url).port or 0))
    sock.sendall(f"GET /pgbus/streams/{stream} HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n".encode())
    return sock


def judged(raw: bytes) -> list[Any]:
    """Return the events in the bytes of a stream, as httpx_sse reads them: ``.event .data .id .retry``. Invalid UTF-8 raises."""
    decoder = SSEDecoder()
    found = [decoder.decode(line) for line in SSELineDecoder().decode(raw.decode("utf-8", "strict"))]
    # httpx_sse makes an empty "message" of a lone retry, and of a comment.
    return [event for event in found if event is not None and (event.event != "message" or event.data)]


# the database


@contextmanager
def session(url: str) -> Iterator[Any]:
    """Open a psycopg2 connection in autocommit mode for a block."""
    connection: Any = psycopg2.connect(url)
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()


def run(connection: Any, statement: str, *arguments: Any) -> Any:
    """Run a statement, and return its rows, or None if it has no result."""
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments)
        return cursor.fetchall() if cursor.description else None


def stored(connection: Any, stream: str) -> list[tuple[int, str]]:
    """Return id and data of a stream's messages in the database, in order."""
    return [
        (int(id), data)
        for id, data in run(
            connection, "select msg_id, data from pgbus.messages where stream = %s order by msg_id", stream
        )
    ]


def received(client: StreamClient) -> list[tuple[int, str]]:
    """Return id and data of the messages that a client has got over all its connections, in order of arrival."""
    return [(int(frame.id or 0), frame.data) for frame in client.messages]


# leftovers


def greenlets(name: str = "") -> list[Greenlet[..., Any]]:
    """Return the living greenlets, or those whose names begin with the text."""
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), Greenlet) and not thing.dead]
    return [greenlet for greenlet in found if greenlet.name.startswith(name)]


def gaps(client: StreamClient) -> list[dict[str, Any]]:
    return [json.loads(frame.data) for frame in client.frames if frame.event == "pgbus:gap-detected"]


def reasons(client: StreamClient) -> list[str]:
    return [gap["reason"] for gap in gaps(client)]


def last(client: StreamClient) -> str | None:
    return client.messages[-1].data if client.messages else None


def since_the_gap(client: StreamClient) -> list[tuple[int, str]]:
    """Return id and data of the messages that a client got after its last gap event."""
    events = [frame for frame in client.frames if frame.dispatches]
    place = max(n for n, frame in enumerate(events) if frame.event == "pgbus:gap-detected")
    return [(int(frame.id or 0), frame.data) for frame in events[place + 1 :] if not frame.event.startswith("pgbus:")]
