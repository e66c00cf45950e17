"""Targets of the HTTP interface: bytes on the port, bytes on a socket that was taken over, requests, and broadcasts."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from wsgiref.util import setup_testing_defaults

import gevent
from site_parts import PUBLISH_TOKEN, Site, running_site
from support import run, session, until

from fuzzing.engine import Check, Target
from fuzzing.inputs import Taker
from pgbus_gevent.hosts import pywsgi
from pgbus_gevent.web import operators

OPERATOR = "operator-token-of-the-site"
ORIGIN = "https://shop.example"
MAX_BODY = 20_000
END = 20.0
"""Seconds until an answer must have come, and until the server must have nothing left of a connection."""

_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [A-Za-z -]+\r\n")


@contextmanager
def fuzzed_site(url: str, **changes: Any) -> Iterator[Site]:
    """Run a site that loses no time with those that misbehave. ``changes`` are settings."""
    linger, pause = pywsgi.LINGER, operators._WRONG_TOKEN_PAUSE
    pywsgi.LINGER, operators._WRONG_TOKEN_PAUSE = 0.02, 0.0
    options: dict[str, Any] = {"operator_token": OPERATOR, "cors_origins": (ORIGIN,), "max_body": MAX_BODY, **changes}
    try:
        with running_site(url, request_timeout=10.0, heartbeat=5.0, **options) as site:
            assert site.get("/healthz").status == 200
            yield site
    finally:
        pywsgi.LINGER, operators._WRONG_TOKEN_PAUSE = linger, pause


def at_rest(site: Site) -> None:
    """Wait until the server has neither a greenlet nor a client left. Fail if that does not come about."""
    until(
        lambda: not len(site.server.pool) and not len(site.instance.registry), "nothing is left of the connection", END
    )
    assert site.instance.alive


def judge_answers(answer: bytes) -> None:
    """Check the status lines of an answer, which may be several: no 5xx but the 503 of readyz."""
    assert not answer or answer.startswith(b"HTTP/1.1 "), answer[:200]
    for status in _STATUS.findall(answer):
        assert status < b"500" or status == b"503", answer[:2000]


# bytes on the port


@contextmanager
def http(url: str) -> Iterator[Check]:
    """Any bytes on a connection, in two pieces."""
    with fuzzed_site(url) as site:

        def check(data: bytes) -> None:
            half = len(data) // 2 if len(data) % 2 else 0
            with socket.create_connection(("127.0.0.1", site.port), END) as sock:
                answer = b""
                try:
                    for piece in filter(None, (data[:half], data[half:])):
                        sock.sendall(piece)
                        gevent.sleep(0)
                    sock.shutdown(socket.SHUT_WR)
                    while b"text/event-stream" not in answer and (got := sock.recv(65536)):
                        answer += got
                except (ConnectionResetError, BrokenPipeError):
                    pass
            judge_answers(answer)
            at_rest(site)

        yield check
        assert site.get("/healthz").status == 200


_HEAD = b" HTTP/1.1\r\nHost: t\r\n"
_GET = b"GET /pgbus/streams/public" + _HEAD + b"\r\n"
_POST = b"POST /pgbus/streams/public" + _HEAD + b"Authorization: Bearer " + PUBLISH_TOKEN.encode() + b"\r\n"

HTTP = Target(
    "http", http,
    (_GET, _POST, b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n", b"5;a=b\r\nhello\r\n", b"0\r\n\r\n",
     b"0\r\nX: y\r\n\r\n",
     b"Content-Length: 5\r\n\r\nhello", b"Content-Length: ", b"GET /pgbus/healthz" + _HEAD + b"\r\n",
     b"HEAD /pgbus/streams/public",
     b"GET /a\xa0b" + _HEAD + b"\r\n", _HEAD, b"\r\n", b"\r", b"\n", b"\0", b" ", b":", b";", b'"', b"=",
     b"fffffffffffffff", b"\xa0", b"\x85",
     b"Expect: 100-continue\r\n", b"Connection: keep-alive\r\n", b"Connection: close\r\n", b"GET /pgbus/", b"HTTP/1.0",
     b"?poll=1",
     b"Last-Event-ID: 0~\xff\r\n", b"Accept: text/event-stream\r\n", b"x" * 1000, b";" + b"e" * 900,
     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
     b"\x16\x03\x01\x02\x00"),
    most=40_000, needs="database",
    about="bytes on the port: heads, bodies in chunks with extensions and trailers, several requests, halves of requests",
)  # fmt: skip


# bytes on a socket that was taken over


@contextmanager
def taken(url: str) -> Iterator[Check]:
    """Any bytes from a client whose stream is live: they change nothing, and the next message comes."""
    with fuzzed_site(url) as site, site.watch("public") as other:
        other.next("pgbus:connected", timeout=END)
        number = 0

        def check(data: bytes) -> None:
            nonlocal number
            number += 1
            with socket.create_connection(("127.0.0.1", site.port), END) as sock:
                sock.sendall(_GET)
                answer = sock.recv(65536)
                try:
                    for piece in filter(None, (data[:7], data[7:])):
                        sock.sendall(piece)
                        gevent.sleep(0)
                except (ConnectionResetError, BrokenPipeError):
                    pass
            judge_answers(answer)
            site.bus.stream("public").broadcast(str(number), ephemeral=True)
            assert other.next(timeout=END).data == str(number)
            until(lambda: not len(site.server.pool) and len(site.instance.registry) == 1, "the client is gone", END)

        yield check


TAKEN = Target(
    "taken", taken,
    (_GET, b"\r\n", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"x" * 5000, b"\xff", b"0\r\n\r\n", b"data: x\n\n"),
    most=30_000, needs="database", about="bytes on a socket that was taken over",
)  # fmt: skip


# requests

PATHS = (
    "/streams", "/streams/", "/healthz", "/readyz", "/metrics", "/pgbus.js", "/console", "/console/feed", "/console/streams",
    "/console/connections", "/console/retained", "/console/kick", "/console/login", "/console/logout", "/edges/wakes",
    "/edges/reads",
    "/nothing", "", "/streams/public", "/answers/cancel",
)  # fmt: skip
FIELDS = (
    "HTTP_ACCEPT", "HTTP_AUTHORIZATION", "HTTP_COOKIE", "HTTP_LAST_EVENT_ID", "HTTP_ORIGIN", "HTTP_HOST",
    "HTTP_IF_NONE_MATCH",
    "CONTENT_LENGTH", "CONTENT_TYPE", "REMOTE_ADDR", "HTTP_X_FORWARDED_FOR", "HTTP_SEC_FETCH_SITE", "SCRIPT_NAME",
    "HTTP_PGBUS_HOP",
    "HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "SERVER_PROTOCOL", "HTTP_USER_AGENT", "HTTP_PGBUS_VIA", "HTTP_REFERER",
)  # fmt: skip
METHODS = ("GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "PUT", "X")


def call(app: Any, environ: dict[str, Any]) -> tuple[int, bytes]:
    """Call a WSGI application, and return the status and the first piece of its answer, which must be a valid one."""
    told: list[Any] = []
    body = app(environ, lambda status, headers, *_: told.append((status, headers)))
    try:
        first = next(iter(body), b"")
    finally:
        getattr(body, "close", lambda: None)()
    status, headers = told[-1]
    for name, value in headers:
        f"{name}: {value}".encode("latin-1")
        assert not set("\r\n\0") & set(name + value), (name, value)
    return int(status[:3]), first


def environ_of(take: Taker) -> dict[str, Any]:
    """Read a request from an input, as our server would pass it on."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    path = f"/pgbus{take.pick(PATHS)}" + take.bytes().decode("latin-1")
    environ |= {"REQUEST_METHOD": take.pick(METHODS), "PATH_INFO": path, "REMOTE_ADDR": "127.0.0.1"}
    environ["QUERY_STRING"] = take.bytes().decode("latin-1")
    for _ in range(take.byte() % 5):
        environ[take.pick(FIELDS)] = take.bytes().decode("latin-1").strip("\r\0")
    environ |= {"wsgi.input": BytesIO(take.rest()), "wsgi.input_terminated": True}
    return environ


@contextmanager
def routes(url: str) -> Iterator[Check]:
    """Requests with any path, query and headers, as a server passes them on to the application."""
    with fuzzed_site(url) as site:

        def check(data: bytes) -> None:
            environ = environ_of(Taker(data))
            with gevent.Timeout(END):
                status, body = call(site.app, environ)
            assert status < 500 or status == 503, (status, body)
            if 400 <= status < 500:
                assert body.count(b"\n") <= 1 or b"<" in body, body
            at_rest(site)

        yield check


ROUTES = Target(
    "routes", routes,
    (b"\0", b"\x01", b"\x02", b"\x06", b"\n", b"public", b"demo:x", b"?", b"/", b"%2F", b"%00", b"%ff", b"%ED%A0%80",
     b"\xff", b"\xa0", b"stream=public",
     b"&stream=demo:a", b"since=0", b"replay=5", b"lastEventId=0~1.2", b"poll=0", b"poll=1e999", b"identity", b"token=x",
     b"worker=x",
     b"sort=name", b"page=-1", b"text=", b"key=k", b"Bearer " + OPERATOR.encode(), b"text/event-stream", b"*/*", b"close",
     b"chunked", b"W/\"x\"",
     b"9" * 400, b"[", b"http://[", b"pgbus_console=x;", b"1", b"nan", ORIGIN.encode(), b"GET",
     b"connection=0123456789abcdef", b"{}", b"[]",
     b'{"read": "pages", "of": []}', b"&a=b" * 100),
    most=8000, needs="database", about="paths, query strings and headers of all routes",
)  # fmt: skip


# broadcasts


@contextmanager
def broadcasts(url: str) -> Iterator[Check]:
    """A broadcast over HTTP stores exactly what was sent, or is refused with a line that says why."""
    with fuzzed_site(url) as site, session(url) as connection:

        def check(data: bytes) -> None:
            take = Taker(data)
            environ = environ_of(Taker(b"\x02" + b"demo:broadcasts"))
            environ |= {"REQUEST_METHOD": "POST", "PATH_INFO": "/pgbus/streams/demo:" + take.bytes().decode("latin-1")}
            environ["QUERY_STRING"] = take.bytes().decode("latin-1")
            body = take.rest()
            environ |= {"HTTP_AUTHORIZATION": f"Bearer {PUBLISH_TOKEN}", "wsgi.input": BytesIO(body)}
            status, said = call(site.app, environ)
            assert status in (201, 400, 413), (status, said)
            if status != 201:
                assert said.endswith(b"\n") and said.count(b"\n") == 1
                return
            id = re.fullmatch(rb'\{"id": (null|\d+)\}\n', said)
            assert id is not None, said
            if id[1] != b"null" and "key=" not in environ["QUERY_STRING"]:
                where = "select stream, data from pgbus.messages where msg_id = %s"
                [(stream, stored)] = run(connection, where, int(id[1]))
                assert stored == body.decode()
                assert stream == environ["PATH_INFO"].removeprefix("/pgbus/streams/").encode("latin-1").decode()

        yield check


BROADCASTS = Target(
    "broadcasts", broadcasts,
    (b"\n", b"event=a", b"&visible_to=admins", b"&exclude=0123456789abcdef", b"&key=k", b"&ephemeral=1", b"&ephemeral=x",
     b"=", b"&", b"%0A",
     b"%00", b"%ff", b"%ED%A0%80", b"\0", b"\xff", b"\xed\xa0\x80", "é".encode(), b"x" * 999, b"\r\n", b"pgbus:x",
     b"event=", b"\xf4\x90\x80\x80", b"}{",
     b"y" * 255, b"event=" + b"e" * 3000, b"&key=" + b"k" * 1001),
    most=30_000, needs="database", about="broadcasts over HTTP: the stream, the fields and the body",
)  # fmt: skip

TARGETS = (HTTP, TAKEN, ROUTES, BROADCASTS)
