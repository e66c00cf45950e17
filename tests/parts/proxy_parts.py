"""What every proxy of ``deploy/`` has to do in front of servers, as a browser sees it."""

from __future__ import annotations

import json
import random
import re
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from browser_parts import CHROMIUM, HERE, Browser
from doctor_parts import check_line
from h2_parts import EventSource, Origin
from place_parts import ROOT, SITE, Place, Running
from support import PATIENCE, until

from pgbus_gevent.bus import Bus
from pgbus_gevent.testing.servers import SECRET

TOKEN = "a-token-that-publishes"
APP = "pgbus_gevent.hosts.bare:application"
SHARES_ITS_SOCKET = 'exec 3<&"$1"; shift; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
ELSEWHERE = "https://shop.example"
STREAMS = ("orders", "news", "chat")


class Servers:
    """``serve`` at addresses of the place, each with a process that can be replaced. As a context manager, it ends them."""

    def __init__(self, place: Place, database_url: str) -> None:
        self._place = place
        self._variables = {
            "PGBUS_DATABASE_URL": database_url,
            "PGBUS_SECRET": SECRET,
            "PGBUS_PUBLIC": "*",
            "PGBUS_PUBLISH_TOKEN": TOKEN,
            "PGBUS_HEARTBEAT": "1s",
            "PGBUS_CORS_ORIGINS": ELSEWHERE,
        }
        self._running: dict[str, Running] = {}

    def start(self, host: str, sock: socket.socket | None = None) -> None:
        """Start the server of ``host``, and wait until it serves. With a socket, it is passed as systemd does."""
        serve = [sys.executable, "-m", "pgbus_gevent.serve", "--host", host, "--port", "8080", APP]
        if sock is not None:
            serve = ["bash", "-c", SHARES_ITS_SOCKET, "bash", str(sock.fileno()), *serve]
        kept = () if sock is None else (sock.fileno(),)
        found = self._running[host] = self._place.start(f"serve-{host}", *serve, descriptors=kept, **self._variables)
        found.until(lambda: f"pid {found.process.pid}\n" in found.log, "it serves")

    def stop(self, host: str) -> None:
        """End the server of ``host`` in good order."""
        assert self._running.pop(host).stop() == 0

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for host in list(self._running):
            self._running.pop(host).stop()


@contextmanager
def origin(place: Place) -> Iterator[Origin]:
    """Yield the site behind the proxy, as a browser knows it."""
    found = Origin(place.connect, SITE, place.context)
    try:
        yield found
    finally:
        found.close()


def check_routes(site: Origin, bus: Bus) -> None:
    """Check each address of the server, and those that the proxy keeps back."""
    ask = site.connection().ask
    assert ask("/").body == b"This is a server of pgbus-gevent. It serves streams.\n"
    assert "javascript" in ask("/pgbus/pgbus.js").headers["content-type"]
    assert [ask(f"/pgbus/{name}").status for name in ("healthz", "readyz")] == [200, 200]
    assert [ask(f"/pgbus/{name}").status for name in ("metrics", "console", "console/feed")] == [404] * 3
    for hidden in ("/pgbus/%6detrics", "/%70gbus/metrics", "/pgbus%2Fmetrics", "/pgbus/%63onsole", "/pgbus//metrics"):
        assert ask(hidden).status == 404, hidden
    assert ask("/pgbus/streams/orders?since=x").status == 400
    published = ask("/pgbus/streams/routes?event=paid", "POST", b"by HTTP", authorization=f"Bearer {TOKEN}")
    assert published.status == 201
    assert ask("/pgbus/streams/routes", "POST", b"by HTTP", authorization="Bearer nonsense").status == 401
    _check_stream(site, "/pgbus/streams/routes?since=0", b"data: by HTTP\nid: ")
    head = ask("/pgbus/streams/routes", "HEAD")
    assert head.status == 200 and head.headers["content-type"].startswith("text/event-stream")
    preflight = ask("/pgbus/streams/routes", "OPTIONS", origin=ELSEWHERE, **{"access-control-request-method": "GET"})
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, ELSEWHERE)
    names = "&".join(f"stream={bus.sign(secrets.token_urlsafe(185), expires_in=3600)}&since=0" for _ in range(32))
    assert len(names) > 10_000
    _check_stream(site, f"/pgbus/streams?{names}", b"event: pgbus:connected\n")


def _check_stream(site: Origin, path: str, part: bytes) -> None:
    """Check that a stream has this in it."""
    connection = site.connection()
    came: list[bytes] = []
    exchange = connection.request(path, on_data=came.append)
    until(lambda: part in b"".join(came), f"{part!r} comes")
    connection.cancel(exchange)


def check_doctor(place: Place, bus: Bus, front: str) -> None:
    """Check that ``doctor URL`` knows the proxy, and finds nothing to change there."""
    doctor = (sys.executable, "-m", "pgbus_gevent", "doctor", f"https://{SITE}", "--watch", "0", "--json")
    variables = {"PGBUS_DATABASE_URL": str(bus.settings.database_url), "PGBUS_SECRET": SECRET, "PYTHONPATH": str(ROOT)}
    said = place.run(*doctor, SSL_CERT_FILE=str(place.folder / "site.pem"), **variables)
    found = {line["check"]: check_line(line) for line in map(json.loads, said.splitlines())}
    assert found["front"]["figures"]["fronts"] == [front]
    assert (found["http"]["figures"]["version"], found["upstream"]["figures"]["version"]) == ("HTTP/2", "HTTP/1.1")
    # A slow machine may be warned of its times.
    assert {name for name, one in found.items() if one["level"] not in ("ok", "skip")} <= {"stream", "delivery"}
    assert found["replay"]["level"] == "ok"


def check_no_buffering(site: Origin, bus: Bus) -> None:
    """Check that each message, and each heartbeat, comes at once: the next one is sent only when the one before is there."""
    source = EventSource(site, "/pgbus/streams/prompt")
    try:
        until(lambda: source.connections, "it is connected")
        assert "content-encoding" not in source.headers and "no-transform" in source.headers["cache-control"]
        ids = []
        for _ in range(5):
            ids.append(bus.stream("prompt").broadcast("x"))
            until(lambda: source.ids == ids, "the message comes")
        before = source.comments
        until(lambda: source.comments >= before + 2, "heartbeats come")
        ids.append(bus.stream("prompt").broadcast("x" * 1_000_000))
        until(lambda: source.ids == ids, "a large message comes")
        assert len(source.data[-1]) == 1_000_000
    finally:
        source.close()


class Load:
    """Event sources over several connections, and a publisher that does not stop until :meth:`judge`."""

    def __init__(self, place: Place, bus: Bus, connections: int = 3, haste: float = 10.0) -> None:
        self._bus = bus
        self._origins = [Origin(place.connect, SITE, place.context) for _ in range(connections)]
        self.sources = {
            stream: [EventSource(each, f"/pgbus/streams/{stream}?since=0", haste) for each in self._origins]
            for stream in STREAMS
        }
        self.all = [source for sources in self.sources.values() for source in sources]
        self._publisher = gevent.spawn(self._publish)

    def _publish(self) -> None:
        while True:
            self._bus.stream(random.choice(STREAMS)).broadcast("x" * random.choice((10, 1000, 30_000)))
            gevent.sleep(0.02)

    def until_all_are_connected(self, times: int = 1) -> None:
        until(lambda: all(source.connections >= times for source in self.all), f"connected {times} times", 3 * PATIENCE)

    def until_more_came(self, more: int = 10) -> None:
        """Wait until each stream has had so many messages more, and each event source has got one of the last of them."""
        before = {stream: len(self._stored(stream)) for stream in STREAMS}

        def came() -> bool:
            return all(
                len(source.ids) >= before[stream] + more
                for stream, sources in self.sources.items()
                for source in sources
            )

        until(came, "more messages come", 3 * PATIENCE)

    def _stored(self, stream: str) -> list[int]:
        found: list[int] = []
        while page := self._bus.stream(stream).read_after(found[-1] if found else 0):
            found += [message.id for message in page]
        return found

    def judge(self) -> None:
        """Stop publishing. Each event source must have exactly the messages of the table, in order, and never have given up."""
        self._publisher.kill()
        stored = {stream: self._stored(stream) for stream in STREAMS}
        assert all(len(ids) > 20 for ids in stored.values())

        def complete() -> bool:
            return all(source.ids[-1:] == stored[stream][-1:] for stream in STREAMS for source in self.sources[stream])

        until(lambda: complete() or self._given_up(), "all have the last message", 3 * PATIENCE)
        assert self._given_up() == []
        for stream, sources in self.sources.items():
            for source in sources:
                assert source.ids == stored[stream], f"{stream}: {len(source.ids)} of {len(stored[stream])}"

    def _given_up(self) -> list[str]:
        return [source.stopped for source in self.all if source.stopped]

    def close(self) -> None:
        self._publisher.kill()
        for source in self.all:
            source.close()
        for each in self._origins:
            each.close()


@contextmanager
def load(place: Place, bus: Bus) -> Iterator[Load]:
    found = Load(place, bus)
    try:
        found.until_all_are_connected()
        yield found
    finally:
        found.close()


def check_reload(under: Load, reload: Callable[[], Any]) -> None:
    """Reload the proxy under load. The former configuration's connections are cut off after its time, and come back."""
    under.until_more_came()
    reload()
    under.until_all_are_connected(2)
    under.until_more_came()


def check_told_to_come_back(site: Origin) -> None:
    """Ask for a stream while there is no server. An event source must come back, and no other client take it for a success."""
    told = set()
    # All at the same time, because a proxy may look for a server first.
    ask = site.connection().request
    for asked in [ask("/pgbus/streams/orders", accept="text/event-stream") for _ in range(20)]:
        answer = asked.wait()
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert "no-transform" in answer.headers["cache-control"]
        found = re.fullmatch(rb'retry: (\d+)\nevent: pgbus:shutdown\ndata: \{"reason":"unavailable"\}\n\n', answer.body)
        assert found is not None and 3000 <= int(found[1]) <= 8000
        told.add(found[1])
    assert len(told) > 1
    assert site.connection().ask("/pgbus/streams/orders").status == 503
    assert site.connection().ask("/pgbus/streams/orders", "POST", b"data", accept="text/event-stream").status == 503


def check_chromium(place: Place, bus: Bus) -> None:
    """Check that Chromium has more than six event sources open at the same time, over HTTP/2, and gets a message on each."""
    command = place.inside(
        "node", "driver.mjs", "chromium", str(CHROMIUM), f"--host-resolver-rules=MAP {SITE} 127.0.0.1", folder=HERE
    )
    browser = Browser(command=command)
    try:
        protocol = browser.run(
            """
            kept.context = await browser.newContext({ ignoreHTTPSErrors: true });
            kept.page = await kept.context.newPage();
            await kept.page.goto(arg);
            return await kept.page.evaluate(async () => {
              window.got = [];
              const opened = Array.from({ length: 10 }, () => new Promise((resolve) => {
                const source = new EventSource("/pgbus/streams/chromium");
                source.onmessage = (event) => got.push(event.data);
                source.onopen = resolve;
              }));
              await Promise.all(opened);
              return performance.getEntriesByType("navigation")[0].nextHopProtocol;
            });
            """,
            f"https://{SITE}/",
        )
        assert protocol == "h2"
        bus.stream("chromium").broadcast("hello")
        got = browser.run(
            "await kept.page.waitForFunction(() => got.length === 10); return kept.page.evaluate(() => got)"
        )
        assert got == ["hello"] * 10
    finally:
        browser.close()


def redirected(place: Place) -> str:
    """Return where a request without TLS is sent."""
    with place.connect(80) as sock:
        sock.sendall(f"GET /orders?x=1 HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n".encode())
        head = b""
        while data := sock.recv(65536):
            head += data
    assert re.match(rb"HTTP/1.1 30[18] ", head), head
    [found] = re.findall(rb"(?i)^location: (\S+)", head, re.M)
    return str(found.decode())
