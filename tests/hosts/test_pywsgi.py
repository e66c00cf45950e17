"""The hardened server from outside: raw sockets against an application that records its requests."""

from __future__ import annotations

import logging
import os
import random
import socket
import ssl
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, process_time
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote_to_bytes
from wsgiref.validate import validator

import gevent
import pytest
from fuzzing.answers import Liar, Secretive
from raw_http import Answer, ask, connected, exchange, get, parse, read_to_end, read_until, wait_for
from support import free_port

from pgbus_gevent.core.chunked import LAST, chunk
from pgbus_gevent.core.client import StreamRequest
from pgbus_gevent.core.names import Signer
from pgbus_gevent.hosts.pywsgi import Server, listen
from pgbus_gevent.web.take_over import TAKE_OVER

DEADLINE = 0.4
"""The deadline of the impatient server, in seconds."""

PATIENCE = 60.0
"""That of the others: it ends no connection if this process stands still for some seconds."""

MAX_HEAD = 4096


class Recorder:
    """A WSGI application whose ``handle`` a test can replace. It keeps the method and the path of all requests."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.handle: Callable[..., Any] = self.answer

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.seen.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        return self.handle(environ, start_response)

    @staticmethod
    def answer(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body) + 3))])
        return [b"ok:", body]


@pytest.fixture
def app() -> Recorder:
    return Recorder()


@pytest.fixture
def server(app: Recorder) -> Iterator[Server]:
    running = Server(listen("127.0.0.1", 0), app, request_timeout=PATIENCE, max_request_head=MAX_HEAD)
    running.start()
    yield running
    running.stop(1.0)


@pytest.fixture
def port(server: Server) -> int:
    return int(server.server_port)


@pytest.fixture
def impatient(server: Server) -> Server:
    """The server with a short deadline, for the tests of deadlines."""
    server.request_timeout = DEADLINE
    return server


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """The lines of the log so far. Nothing may be written to stderr meanwhile."""
    caplog.set_level(logging.INFO, logger="pgbus_gevent")
    yield lambda: [record.getMessage() for record in caplog.records]
    assert capfd.readouterr().err == ""


def still_serves(port: int) -> bool:
    return ask(port, "/alive").body == b"ok:"


def recovers(server: Server) -> bool:
    """Whether an impatient server serves, once it has patience again."""
    server.request_timeout = PATIENCE
    return still_serves(int(server.server_port))


# no client has the process to itself ---------------------------------------------------------------------------------

BUSY = """
import socket, sys, threading
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60)
sock.sendall(b"%s")
sent = b"%s" * 5000
def drain():
    while sock.recv(1 << 20): pass
threading.Thread(target=drain, daemon=True).start()
print(flush=True)
threading.Timer(60, sock.shutdown, [socket.SHUT_RDWR]).start()
while sent: sock.sendall(sent)
threading.Event().wait(60)
"""
ALL_THE_TIME = {
    "requests without a pause": (b"", get("/busy")),
    "an endless body": (b"POST /busy HTTP/1.1\r\nHost: t\r\nContent-Length: 999999999999\r\n\r\n", b"x" * 100),
    "an endless body in chunks": (
        b"POST /busy HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"64\r\n" + b"x" * 100 + b"\r\n",
    ),
    "an endless answer": (get("/endless"), b""),
}


@pytest.mark.parametrize(("first", "then"), ALL_THE_TIME.values(), ids=list(ALL_THE_TIME))
def test_a_client_that_never_pauses_leaves_the_others_their_turn(first: bytes, then: bytes, app: Recorder) -> None:
    def handle(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/alive":
            return app.answer(environ, start_response)
        while environ["wsgi.input"].read(65536):
            pass
        start_response("200 OK", [])
        return (b"x" * 65536 for _ in range(2**40)) if environ["PATH_INFO"] == "/endless" else [b"ok"]

    app.handle = handle
    server = Server(listen("127.0.0.1", 0), app, request_timeout=PATIENCE)
    server.start()
    written = [repr(part)[2:-1].replace('"', '\\"') for part in (first, then)]
    client = subprocess.Popen(
        [sys.executable, "-c", BUSY % tuple(written), str(server.server_port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert client.stdout is not None and client.stdout.readline()
        for _ in range(20):
            assert still_serves(int(server.server_port))
        # It has not ended, or all others would have had their turn only after it.
        assert client.poll() is None and "GET /alive" in app.seen
    finally:
        client.kill()
        client.wait()
        client.stdout.close()
        server.stop(0.5)


def test_requests_that_have_already_arrived_are_not_all_served_before_other_clients(port: int, app: Recorder) -> None:
    many = 3000
    with connected(port, get("/busy") * many) as busy, connected(port, get("/alive")) as other:
        read_until(other, b"ok:")
        assert app.seen.index("GET /alive") < many / 2
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# names of fields -------------------------------------------------------------------------------------------------


def test_a_field_with_an_underscore_does_not_pass_for_another(port: int, app: Recorder) -> None:
    seen: dict[str, str] = {}

    def handle(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update({key: value for key, value in environ.items() if key.startswith("HTTP_")})
        return app.answer(environ, start_response)

    app.handle = handle
    exchange(port, get("/a", {"X_Forwarded_Proto": "https", "X-Y": "1", "X_Y": "2", "Connection": "close"}))
    assert seen == {"HTTP_HOST": "test", "HTTP_X_Y": "1", "HTTP_CONNECTION": "close"}


# the end of a connection (RFC 9112, section 9.6) -----------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        b"Connection: close", b"Connection: Close", b"Connection: close, keep-alive", b"Connection: keep-alive,close",
        b"Connection: TE, close", b"Connection: keep-alive\r\nConnection: close", b"Connection: close ,",
    ],
    ids=ascii,
)  # fmt: skip
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_client_that_asks_for_close_gets_one_answer(port: int, app: Recorder, lines: bytes, version: bytes) -> None:
    raw = exchange(port, b"GET /a HTTP/%s\r\nHost: test\r\n%s\r\n\r\n" % (version, lines) + get("/b"))
    assert app.seen == ["GET /a"] and parse(raw).headers["connection"] == "close"


@pytest.mark.parametrize(
    "lines", [b"Connection: closed", b"Connection: keep-alive", b"Connection: x-close, upgrade", b"X: close"]
)
def test_a_client_that_does_not_gets_the_next_one(port: int, app: Recorder, lines: bytes) -> None:
    exchange(port, b"GET /a HTTP/1.1\r\nHost: test\r\n%s\r\n\r\n" % lines + get("/b", {"Connection": "close"}))
    assert app.seen == ["GET /a", "GET /b"]


# empty lines (RFC 9112, section 2.2) --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 4])
def test_empty_lines_before_a_request_are_passed_over(port: int, app: Recorder, count: int) -> None:
    with connected(port, b"\r\n" * count + get("/a")) as sock:
        assert read_until(sock, b"ok:").startswith(b"HTTP/1.1 200 ")
        # Some clients send them after a body.
        body = b"POST /b HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\nx" + b"\r\n" * count
        sock.sendall(body + get("/c", {"Connection": "close"}))
        assert read_to_end(sock).count(b"HTTP/1.1 200 ") == 2
    assert app.seen == ["GET /a", "POST /b", "GET /c"]


def test_an_empty_line_that_comes_in_pieces_is_passed_over(port: int, app: Recorder) -> None:
    with connected(port) as sock:
        for piece in (b"\r", b"\n", b"\r\n", get("/a")):
            sock.sendall(piece)
            gevent.sleep(0.02)
        read_until(sock, b"ok:")
    assert app.seen == ["GET /a"]


def test_empty_lines_alone_are_no_request(server: Server, app: Recorder, log: Callable[[], list[str]]) -> None:
    port = int(server.server_port)
    with connected(port, b"\r\n") as sock:
        sock.shutdown(socket.SHUT_WR)
        assert read_to_end(sock) == b""
    # They do not make a connection busy either, so a stop does not wait for it.
    with connected(port, get("/a")) as sock:
        read_until(sock, b"ok:")
        sock.sendall(b"\r\n")
        wait_for(lambda: server.idle, "it waits for a request")
        began = monotonic()
        server.stop(20.0)
        assert monotonic() - began < 15.0
        assert read_to_end(sock) == b""
    assert app.seen == ["GET /a"] and [line for line in log() if " 400" in line] == []


# heads that can be read in two ways -------------------------------------------------------------------------------

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n"


def post(*lines: bytes) -> bytes:
    return b"\r\n".join([b"POST /first HTTP/1.1", b"Host: test", *lines, b"", b"0\r\n\r\n" + SMUGGLED])


def first(*lines: bytes) -> bytes:
    return b"\r\n".join([*lines, b"", SMUGGLED])


BAD_HEADS = {
    "a coding before chunked": post(b"Transfer-Encoding: gzip, chunked", b"Content-Length: 5"),
    "an unknown transfer coding": post(b"Transfer-Encoding: xchunked"),
    "a transfer coding with a tab inside": post(b"Transfer-Encoding: chun\tked"),
    "two transfer codings": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "both a length and a transfer coding": post(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "two lengths": post(b"Content-Length: 5", b"Content-Length: 50"),
    "two lengths that agree": post(b"Content-Length: 5", b"Content-Length: 5"),
    "a list of lengths": post(b"Content-Length: 5, 5"),
    "a length with a plus": post(b"Content-Length: +5"),
    "a negative length": post(b"Content-Length: -5"),
    "a length with an underscore": post(b"Content-Length: 1_0"),
    "a length in Arabic digits": post("Content-Length: ٥".encode()),
    "a length in hexadecimal": post(b"Content-Length: 0x5"),
    "a length of a hundred digits": post(b"Content-Length: " + b"9" * 100),
    "an empty length": post(b"Content-Length:"),
    "a space before the colon": post(b"Content-Length : 5"),
    "a line that continues another": post(b"X-A: 1", b" Content-Length: 5"),
    "a line without a colon": post(b"nonsense"),
    "a header without a name": post(b": value"),
    "a CR inside a header line": post(b"X-A: 1\rContent-Length: 5"),
    "a NUL in a header's name": post(b"X-\0A: 1"),
    "no host": first(b"GET /first HTTP/1.1"),
    "two hosts": first(b"GET /first HTTP/1.1", b"Host: a", b"Host: b"),
    "HTTP/0.9": first(b"GET /first"),
    "HTTP/2.0": first(b"PRI * HTTP/2.0"),
    "HTTP/1.2": first(b"GET /first HTTP/1.2", b"Host: test"),
    "a lower-case version": first(b"GET /first http/1.1", b"Host: test"),
    "a method that is no token": first(b"G(T /first HTTP/1.1", b"Host: test"),
    "two spaces in the request line": first(b"GET  /first HTTP/1.1", b"Host: test"),
    "a tab in the request line": first(b"GET\t/first\tHTTP/1.1", b"Host: test"),
    "a vertical tab in the request line": first(b"GET\x0b/first HTTP/1.1", b"Host: test"),
    "a CR in the request line": first(b"GET /fi\rst HTTP/1.1", b"Host: test"),
    "a NUL in the path": first(b"GET /fi\0rst HTTP/1.1", b"Host: test"),
    "an absolute address with a user": first(b"GET http://me:pw@test/first HTTP/1.1", b"Host: test"),
    "an absolute address without a host": first(b"GET http:///first HTTP/1.1", b"Host: test"),
    "an absolute address of another scheme": first(b"GET ftp://test/first HTTP/1.1", b"Host: test"),
    "an address of a proxy": first(b"CONNECT test:80 HTTP/1.1", b"Host: test"),
    "a request line that a lone LF ends": b"GET /first HTTP/1.1\nHost: test\r\n\r\n" + SMUGGLED,
    "a header line that a lone LF ends": b"GET /first HTTP/1.1\r\nHost: test\nX: 1\r\n\r\n" + SMUGGLED,
    "a blank line of a lone LF": b"GET /first HTTP/1.1\r\nHost: test\r\n\n" + SMUGGLED,
    "a NUL in a value": first(b"GET /first HTTP/1.1", b"Host: test", b"X-A: a\0b"),
    "a backspace in a value": first(b"GET /first HTTP/1.1", b"Host: test", b"X-A: a\x08b"),
    "an escape in a value": first(b"GET /first HTTP/1.1", b"Host: test", b"X-A: \x1b[31m"),
    "a DEL in a value": first(b"GET /first HTTP/1.1", b"Host: test", b"X-A: a\x7fb"),
    "a host that is half a bracket": first(b"GET /first HTTP/1.1", b"Host: ["),
    "a host with a path": first(b"GET /first HTTP/1.1", b"Host: test/path"),
    "a host with a user": first(b"GET /first HTTP/1.1", b"Host: me@test"),
    "a host with a port that is no number": first(b"GET /first HTTP/1.1", b"Host: test:http"),
    "two hosts in one line": first(b"GET /first HTTP/1.1", b"Host: a, b"),
    "a space before the request line": first(b" GET /first HTTP/1.1", b"Host: test"),
    "a fragment": b"GET /first#x HTTP/1.1\r\nHost: test\r\n\r\n" + SMUGGLED,
    "a fragment of an absolute target": b"GET http://test/first#x HTTP/1.1\r\nHost: test\r\n\r\n" + SMUGGLED,
    "a fragment behind a query": b"GET /first?a#x HTTP/1.1\r\nHost: test\r\n\r\n" + SMUGGLED,
    "five empty lines before the request line": b"\r\n" * 5 + SMUGGLED,
    "an empty line that a lone LF ends": b"\n" + SMUGGLED,
    "an empty line that a CR begins": b"\rX\n" + SMUGGLED,
    "a space in an empty line": b" \r\n" + SMUGGLED,
    "transfer coding in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
}


@pytest.mark.parametrize("request_bytes", BAD_HEADS.values(), ids=list(BAD_HEADS))
def test_a_head_that_can_be_read_in_two_ways_gets_400_and_what_follows_is_not_read(
    request_bytes: bytes, port: int, app: Recorder, log: Callable[[], list[str]]
) -> None:
    raw = exchange(port, request_bytes)
    answer = parse(raw)
    assert answer.status == 400 and answer.line
    assert answer.headers["connection"] == "close"
    assert raw.count(b"HTTP/1.1 ") == 1
    assert app.seen == []
    assert log() == ['127.0.0.1 "- -" 400']
    assert still_serves(port)


TOO_MUCH = {
    "a hundred header lines": (first(b"GET / HTTP/1.1", b"Host: test", *[b"X: 1"] * 99), 400),
    "one huge header line": (first(b"GET / HTTP/1.1", b"Host: test", b"X: " + b"a" * MAX_HEAD), 400),
    "many large header lines": (first(b"GET / HTTP/1.1", b"Host: test", *[b"X: " + b"a" * 1000] * 80), 400),
    "a huge request line": (first(b"GET /" + b"a" * MAX_HEAD + b" HTTP/1.1", b"Host: test"), 414),
    "a megabyte without a line end": (b"a" * 1_000_000, 414),
}


@pytest.mark.parametrize(("request_bytes", "status"), TOO_MUCH.values(), ids=list(TOO_MUCH))
def test_a_head_that_is_too_large_is_refused_with_one_log_line(
    request_bytes: bytes, status: int, port: int, app: Recorder, log: Callable[[], list[str]]
) -> None:
    assert parse(exchange(port, request_bytes)).status == status
    assert app.seen == []
    assert log() == [f'127.0.0.1 "- -" {status}']
    assert still_serves(port)


def test_a_request_line_may_be_as_long_as_the_head(app: Recorder) -> None:
    server = Server(listen("127.0.0.1", 0), app)
    server.start()
    signer = Signer(["a secret of the test"])
    names = "&stream=".join(signer.sign(f"{n:03}" + "x" * 252, 1764000000.123456) for n in range(32))
    assert ask(server.server_port, f"/pgbus/streams?stream={names}").status == 200
    assert ask(server.server_port, "/" + "a" * 33_000).status == 414
    server.stop(1.0)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("http://other:81/a/b?c=d", "/a/b", "c=d"),
        ("HTTPS://other:81/", "/", ""),
        ("http://other:81", "/", ""),
        ("http://other:81?c=d", "/", "c=d"),
    ],
)
def test_an_absolute_target_is_its_path_and_its_authority_is_the_host(
    target: str, path: str, query: str, port: int, app: Recorder
) -> None:
    def handle(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return ["|".join(environ[name] for name in ("PATH_INFO", "QUERY_STRING", "HTTP_HOST")).encode()]

    app.handle = handle
    answer = parse(exchange(port, get(target, {"Connection": "close"})))
    assert answer.body.decode() == f"{path}|{query}|other:81"


def test_ninety_nine_header_lines_are_served(port: int) -> None:
    lines = {f"X-{n}": "1" for n in range(97)}
    assert parse(exchange(port, get("/", {"Connection": "close", **lines}))).status == 200


@pytest.mark.parametrize("seed", range(5))
def test_garbage_gets_400_or_is_closed_in_time(
    seed: int, impatient: Server, port: int, app: Recorder, log: Callable[[], list[str]]
) -> None:
    garbage = random.Random(seed).randbytes(3000)
    answer = exchange(port, garbage)
    assert not answer or parse(answer).status in (400, 414)
    assert app.seen == []
    assert len(log()) <= 1
    assert recovers(impatient)


def test_a_tls_hello_gets_400_or_is_closed_in_time(impatient: Server, port: int, log: Callable[[], list[str]]) -> None:
    context = ssl.create_default_context()
    hello, incoming = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, hello, server_hostname="test").do_handshake()
    answer = exchange(port, hello.read())
    assert not answer or parse(answer).status == 400
    assert len(log()) <= 1
    assert recovers(impatient)


@pytest.mark.parametrize(
    "target", [b"/a\xa0", b"/a\x85b", b"/\xa0?x=\xa0", b"http://test/a\xa0", b"/%A0\xc3\xa0"], ids=ascii
)
def test_bytes_that_are_white_space_in_unicode_cut_no_target_off(target: bytes, port: int) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        found = environ["PATH_INFO"].encode("latin-1") + b"?" + unquote_to_bytes(environ["QUERY_STRING"])
        start_response("200 OK", [("Content-Length", str(len(found)))])
        return [found]

    server = Server(listen("127.0.0.1", 0), app)
    server.start()
    raw = exchange(int(server.server_port), b"GET %s HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n" % target)
    path, _, query = target.removeprefix(b"http://test").partition(b"?")
    assert parse(raw).body == unquote_to_bytes(path) + b"?" + query
    server.stop(1.0)


def test_values_have_white_space_around_them(port: int) -> None:
    request = b"POST / HTTP/1.1\r\nHost:test\r\nConnection: close\r\nContent-Length: \t 2 \t\r\n\r\nhi"
    assert parse(exchange(port, request)).body == b"ok:hi"


def test_a_value_of_white_space_costs_no_more_than_its_length(port: int) -> None:
    server = Server(listen("127.0.0.1", 0), Recorder(), max_request_head=1_000_000)
    server.start()
    began = process_time()
    lines = {f"X-{n}": "a" + " " * 9_000 + "b" for n in range(90)}
    assert parse(exchange(server.server_port, get("/", {"Connection": "close", **lines}), 30)).status == 200
    assert process_time() - began < 3
    server.stop(1.0)


# time ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [b"", b"GET", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: te", b"GET / HTTP/1.1\r\nHost: test\r\n"],
    ids=["nothing", "half a request line", "a request line", "half a header line", "no blank line"],
)
def test_a_head_that_stops_is_closed_at_the_deadline(
    start: bytes, impatient: Server, port: int, log: Callable[[], list[str]]
) -> None:
    began = monotonic()
    assert exchange(port, start) == b""
    assert monotonic() - began >= DEADLINE * 0.9
    assert log() == []
    assert recovers(impatient)


@pytest.mark.slow
def test_a_head_that_trickles_in_is_closed_at_the_deadline(impatient: Server, port: int, app: Recorder) -> None:
    with connected(port, b"GET / HTTP/1.1\r\n") as sock:

        def trickle() -> None:
            try:
                while True:
                    sock.sendall(b"X: 1\r\n")
                    gevent.sleep(DEADLINE / 8)
            except OSError:
                pass

        trickler = gevent.spawn(trickle)
        assert read_to_end(sock) == b""
        trickler.kill()
    assert app.seen == []


@pytest.mark.slow
def test_a_connection_that_is_idle_between_requests_is_closed_at_the_deadline(impatient: Server, port: int) -> None:
    began = monotonic()
    with connected(port, get("/")) as sock:
        assert b"ok:" in read_to_end(sock)
    assert monotonic() - began >= DEADLINE * 0.9


@pytest.mark.slow
def test_the_time_for_a_head_begins_with_its_first_byte(server: Server, port: int) -> None:
    waits = server.request_timeout = 2.0
    with connected(port) as sock:
        wait_for(lambda: server.new, "it waits for the first byte")
        # From then on there is more time, so that this process may stand still. What was left of the first wait is not enough.
        server.request_timeout = PATIENCE
        sock.sendall(b"GET / HTTP/1.1\r\n")
        gevent.sleep(waits + 0.2)
        sock.sendall(b"Host: test\r\n\r\n")
        read_until(sock, b"ok:")


def test_a_client_may_leave_at_any_moment(server: Server, port: int, log: Callable[[], list[str]]) -> None:
    request = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello"
    descriptors = open_descriptors()
    for length in range(0, len(request), 3):
        for linger in (False, True):
            with connected(port, request[:length]) as sock:
                if linger:  # the close is then a reset
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_for(
        lambda: not server.pool and open_descriptors() <= descriptors, "all handlers ended, and closed their sockets"
    )
    assert all(line.startswith('127.0.0.1 "POST /"') for line in log())
    assert still_serves(port)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_no_descriptor_and_no_greenlet_is_left_of_a_refused_client(server: Server, port: int) -> None:
    still_serves(port)
    descriptors = open_descriptors()
    for request in BAD_HEADS.values():
        exchange(port, request)
    wait_for(
        lambda: not server.pool and open_descriptors() <= descriptors, "all handlers ended, and closed their sockets"
    )


# more than one request on a connection -----------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(port: int, app: Recorder) -> None:
    body = b"POST /b HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi"
    raw = exchange(port, get("/a") + body + get("/c", {"Connection": "close"}))
    assert app.seen == ["GET /a", "POST /b", "GET /c"]
    assert raw.count(b"200 OK") == 3 and raw.count(b"ok:hi") == 1


def test_a_malformed_request_behind_a_good_one_ends_the_connection(port: int, app: Recorder) -> None:
    raw = exchange(port, get("/a") + b"GET /b\r\n\r\n" + get("/c"))
    assert app.seen == ["GET /a"]
    assert raw.count(b"HTTP/1.1 200") == 1 and raw.count(b"HTTP/1.1 400") == 1


def test_http_1_0_is_served_and_closed(port: int) -> None:
    answer = parse(exchange(port, b"GET / HTTP/1.0\r\n\r\n"))
    assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"ok:", "close")


def test_http_1_0_keeps_the_connection_when_asked_to(port: int) -> None:
    with connected(port, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n") as sock:
        assert b"Connection: keep-alive" in read_until(sock, b"ok:")
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        read_until(sock, b"ok:")


def test_a_client_that_asks_for_the_end_is_told_so(port: int) -> None:
    assert ask(port, "/").headers["connection"] == "close"


# bodies --------------------------------------------------------------------------------------------------------------


def chunked(*parts: bytes) -> bytes:
    return b"POST /first HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(parts)


def test_a_chunked_body_is_read(port: int) -> None:
    with connected(port, chunked(b"3\r\nabc\r\n", b"2;ext=1\r\nde\r\n", b"0\r\n\r\n")) as sock:
        read_until(sock, b"ok:abcde")
        sock.sendall(get("/"))
        read_until(sock, b"ok:")


BAD_CHUNKS = {
    "no size": b"\r\nabc\r\n",
    "a size that is no number": b"zz\r\nabc\r\n",
    "a size of twenty digits": b"f" * 20 + b"\r\n",
    "no line end behind the chunk": b"3\r\nabcXX0\r\n\r\n",
    "an endless extension": b"3;" + b"x" * 9000,
    "extensions without end": b"1;" + b"x" * 1000 + b"\r\na\r\n",
    "a LF in an extension": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "a CR in an extension": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "a NUL in an extension": b"3;a\0b\r\nabc\r\n0\r\n\r\n",
    "a LF behind the chunk": b"3\r\nabc\n0\r\n\r\n",
    "a space before the size": b" 3\r\nabc\r\n0\r\n\r\n",
    "a plus before the size": b"+3\r\nabc\r\n0\r\n\r\n",
    "a LF in a trailer": b"0\r\nX: a\nY: b\r\n\r\n",
    "trailers without end": b"0\r\n" + b"X: 1\r\n" * 4000,
    "a bare LF": b"3\nabc\r\n0\r\n\r\n",
    "a trailer that is no header": b"0\r\n(bad)\r\n\r\n",
}


@pytest.mark.parametrize("chunk", BAD_CHUNKS.values(), ids=list(BAD_CHUNKS))
def test_a_malformed_chunk_ends_the_connection_with_400(
    chunk: bytes, port: int, app: Recorder, log: Callable[[], list[str]]
) -> None:
    raw = exchange(port, chunked(chunk * (20 if chunk.startswith(b"1;") else 1), SMUGGLED))
    assert parse(raw).status == 400
    assert app.seen == ["POST /first"]
    assert log() == ['127.0.0.1 "POST /first" 400']


@pytest.mark.parametrize("trailers", [False, True], ids=["extensions", "trailers"])
@pytest.mark.parametrize(("count", "status"), [(10, 200), (20, 400)])
def test_extensions_and_trailers_are_limited(count: int, status: int, trailers: bool, port: int, app: Recorder) -> None:
    if trailers:
        parts = [b"0\r\n", *[b"X: " + b"x" * 997 + b"\r\n"] * count, b"\r\n"]
    else:
        parts = [b"1;" + b"x" * 1000 + b"\r\na\r\n"] * count + [b"0\r\n\r\n"]
    head = b"POST /a HTTP/1.1\r\nHost: t\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert parse(exchange(port, head + b"".join(parts))).status == status


def ignore_body(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("403 Forbidden", [("Content-Type", "text/plain")])
    return [b"no"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /first HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        chunked(b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n"),
        b"GET /first HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc" + SMUGGLED,
    ],
    ids=["with a length", "chunked", "of a GET"],
)
def test_a_body_that_is_not_read_ends_the_connection(request_bytes: bytes, port: int, app: Recorder) -> None:
    app.handle = ignore_body
    answer = parse(exchange(port, request_bytes))
    assert (answer.status, answer.headers["connection"]) == (403, "close")
    assert len(app.seen) == 1


def test_a_client_that_uploads_too_much_still_gets_the_answer(port: int, app: Recorder) -> None:
    app.handle = ignore_body
    assert ask(port, "/", "POST", b"x" * 5_000_000).status == 403


@pytest.mark.slow
def test_a_client_that_goes_on_uploading_is_cut_off(port: int, app: Recorder) -> None:
    app.handle = ignore_body
    began = monotonic()
    head = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000000000\r\n\r\n"
    with connected(port, head) as sock, pytest.raises(OSError):
        while monotonic() - began < 20:
            sock.sendall(b"x" * 10000)
            gevent.sleep(0.01)
    assert monotonic() - began < 15


@pytest.mark.slow
def test_a_body_that_stops_is_cut_off_at_the_deadline(
    impatient: Server, port: int, app: Recorder, log: Callable[[], list[str]]
) -> None:
    began = monotonic()
    assert exchange(port, b"POST /first HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nabc") == b""
    assert monotonic() - began >= DEADLINE * 0.9
    assert app.seen == ["POST /first"]
    assert len(log()) == 1


def serving(app: Recorder, **options: Any) -> Any:
    running = Server(listen("127.0.0.1", 0), app, **options)
    running.start()
    return running


@pytest.mark.slow
def test_a_body_at_a_fair_pace_may_take_longer_than_the_deadline(app: Recorder) -> None:
    # Each part gives back all of the patience, of which the pause takes a quarter. This process may stand still for the rest.
    server = serving(app, request_timeout=4.0)
    with connected(server.server_port, b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 80000\r\n\r\n") as sock:
        for _ in range(5):
            gevent.sleep(1.0)
            sock.sendall(b"x" * 16000)
        read_until(sock, b"ok:x")
    server.stop(1.0)


TRICKLED = {
    "with a length": (b"Content-Length: 100000", b"x"),
    "in chunks": (b"Transfer-Encoding: chunked", b"1\r\nx\r\n"),
    "in an endless size of a chunk": (b"Transfer-Encoding: chunked", b"0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("line", [False, True], ids=["read", "readline"])
@pytest.mark.parametrize(("header", "part"), TRICKLED.values(), ids=list(TRICKLED))
def test_bodies_that_trickle_in_hold_no_place(
    header: bytes, part: bytes, line: bool, server: Server, port: int, app: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgbus_gevent.hosts.pywsgi.LINGER", 0.1)

    def handle(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"]
        body.readline() if line else body.read()
        raise AssertionError("it has no end")

    app.handle = handle
    head = b"POST / HTTP/1.1\r\nHost: test\r\n" + header + b"\r\n\r\n"
    socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    wait_for(lambda: len(server.new) == 20, "all are accepted")
    server.request_timeout = DEADLINE  # of the bodies; each connection has more time for its first byte
    for sock in socks:
        sock.sendall(head)
    wait_for(lambda: len(app.seen) == 20, "all are being served")
    began = monotonic()
    while server.pool and monotonic() - began < 40:
        for sock in socks:
            try:
                sock.sendall(part)
            except OSError:
                pass
        gevent.sleep(DEADLINE / 8)
    assert not server.pool
    for sock in socks:
        sock.close()


@pytest.mark.slow
@pytest.mark.parametrize("trickle", [False, True], ids=["not at all", "now and then"])
@pytest.mark.parametrize("parts", [1, 1000], ids=["in one piece", "in many"])
def test_answers_that_are_not_read_hold_no_place(
    parts: int, trickle: bool, server: Server, port: int, app: Recorder, log: Callable[[], list[str]]
) -> None:
    def handle(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (b"x" * (20_000_000 // parts) for _ in range(parts))

    app.handle = handle
    socks = []
    for _ in range(20):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", port))
        socks.append(sock)
    wait_for(lambda: len(server.new) == 20, "all are accepted")
    server.request_timeout = DEADLINE  # of the answers; each connection has more time for its first byte
    for sock in socks:
        sock.sendall(get("/"))
    wait_for(lambda: len(app.seen) == 20, "all are being served")
    server.request_timeout = PATIENCE
    began = monotonic()
    while server.pool and monotonic() - began < 40:
        for sock in socks if trickle else []:
            try:
                sock.recv(10)
            except OSError:
                pass
        gevent.sleep(0.1)
    assert not server.pool
    assert all("failed" not in line for line in log())
    for sock in socks:
        # With its part of the answer, the kernel would go on for minutes.
        sock.settimeout(5.0)
        with pytest.raises(ConnectionResetError):
            while sock.recv(65536):
                pass
        sock.close()
    assert still_serves_after(port, app)


@pytest.mark.slow
def test_an_answer_that_is_written_slowly_and_read_at_once_is_not_cut_off(
    impatient: Server, port: int, app: Recorder
) -> None:
    def handle(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        for _ in range(4):
            gevent.sleep(DEADLINE)
            yield b"part"

    app.handle = handle
    assert ask(port, "/").body == b"part" * 4


def test_an_answer_on_a_kept_connection_does_not_wait_for_an_acknowledgement(port: int, app: Recorder) -> None:
    times = []
    with connected(port) as sock:
        for _ in range(40):
            began = monotonic()
            sock.sendall(get("/"))
            read_until(sock, b"ok:")
            times.append(monotonic() - began)
    # With Nagle's algorithm each would wait 40 ms, except for the first few, which the kernel acknowledges at once.
    assert min(times[20:]) < 0.02


def test_a_client_that_leaves_in_its_body_costs_one_log_line(
    server: Server, port: int, log: Callable[[], list[str]]
) -> None:
    with connected(port, b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nabc"):
        wait_for(lambda: len(server.pool) == 1 and not server.idle, "it is being served")
    wait_for(lambda: not server.pool, "the handler ended")
    assert len(log()) == 1


def test_expect_continue_is_answered_when_the_body_is_read(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    with connected(port, head) as sock:
        assert read_until(sock, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hi")
        read_until(sock, b"ok:hi")


def test_a_client_that_expects_a_continue_and_is_refused_need_not_send_the_body(port: int, app: Recorder) -> None:
    app.handle = ignore_body
    head = b"POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    with connected(port, head) as sock:
        assert read_until(sock, b"no").startswith(b"HTTP/1.1 403")


# answers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, iter], ids=["a list", "an iterator"])
def test_the_answer_to_head_has_no_body_even_if_the_application_returns_one(
    kind: Any, port: int, app: Recorder
) -> None:
    def handle(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return kind([b"body", b"more"])

    app.handle = handle
    raw = exchange(port, b"HEAD /a HTTP/1.1\r\nHost: test\r\n\r\n" + get("/b", {"Connection": "close"}))
    first_answer, _, second = raw.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in first_answer.lower()
    assert second.startswith(b"HTTP/1.1 200")
    assert app.seen == ["HEAD /a", "GET /b"]


def test_the_answer_to_head_keeps_the_length_that_the_application_gives(port: int) -> None:
    answer = ask(port, "/", "HEAD")
    assert (answer.headers["content-length"], answer.body) == ("3", b"")


def test_an_application_passes_the_standard_validator(port: int, app: Recorder) -> None:
    def handle(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read(5)]

    app.handle = validator(handle)
    assert ask(port, "/a%2Fb?c=d", "POST", b"hello").body == b"hello"


@pytest.mark.parametrize("error", [TimeoutError, ConnectionResetError, OSError, Secretive])
def test_an_error_without_arguments_or_a_traceback_gets_500_and_one_log_record(
    error: type[Exception], port: int, app: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise error

    app.handle = handle
    assert ask(port, "/page").status == 500
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == ["GET /page failed"]
    assert still_serves_after(port, app)


@pytest.mark.parametrize("headers", [[], [("Content-Length", "4")]], ids=["chunked", "length"])
def test_a_text_in_place_of_bytes_gets_a_whole_500(
    headers: Any, port: int, app: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", headers)
        return ["text"]

    app.handle = handle
    answer = ask(port, "/page")
    assert (answer.status, answer.body) == (500, b"Internal Server Error")
    assert "GET /page failed" in caplog.text
    assert still_serves_after(port, app)


def test_an_application_that_ends_its_own_greenlet_gets_500_and_a_log_record(
    port: int, app: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise gevent.GreenletExit

    app.handle = handle
    assert ask(port, "/page").status == 500
    assert "GET /page failed" in caplog.text


def test_an_answer_each_of_whose_attributes_raises_gets_500(port: int, app: Recorder) -> None:
    app.handle = lambda environ, start_response: Liar(SystemExit())
    assert ask(port, "/page").status == 500
    assert still_serves_after(port, app)


def test_an_application_that_raises_gets_500_and_one_log_record(
    port: int, app: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise RuntimeError("a bug")

    app.handle = handle
    answer = ask(port, "/page?token=secret")
    assert (answer.status, answer.headers["connection"]) == (500, "close")
    (error,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert error.getMessage() == "GET /page failed" and error.exc_info is not None
    assert "secret" not in caplog.text
    assert still_serves_after(port, app)


def still_serves_after(port: int, app: Recorder) -> bool:
    app.handle = app.answer
    return still_serves(port)


def test_an_application_that_raises_in_its_body_ends_the_connection(port: int, app: Recorder) -> None:
    def handle(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"part"
        raise RuntimeError("a bug")

    app.handle = handle
    raw = exchange(port, get("/"))
    assert raw.endswith(b"4\r\npart\r\n")  # without the last chunk, so that the client notices
    assert still_serves_after(port, app)


def test_the_access_log_has_neither_the_query_nor_a_signed_name(port: int, log: Callable[[], list[str]]) -> None:
    signed = Signer(["a secret of the test"]).sign("orders", 2e9)
    ask(port, f"/pgbus/streams/{signed}?since=1&token=secret")
    ask(port, '/a"b')
    assert log() == ['127.0.0.1 "GET /pgbus/streams/<signed>" 200', '127.0.0.1 "GET /a%22b" 200']


def test_the_access_log_leaves_out_reads_of_edges_and_nothing_else(port: int, log: Callable[[], list[str]]) -> None:
    ask(port, "/pgbus/edges/reads")
    ask(port, "/pgbus/metrics?x=/edges/reads")
    assert log() == ['127.0.0.1 "GET /pgbus/metrics" 200']


# handing the socket over ---------------------------------------------------------------------------------------------


class Adopter:
    """An application that takes its socket over, and writes to it once."""

    def __init__(self) -> None:
        self.adopted: list[socket.socket] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("content-type", "text/event-stream"), ("content-length", "7")])
        environ[TAKE_OVER].give_socket(self, StreamRequest(()))
        return []

    def take_over(self, request: StreamRequest, sock: socket.socket, head: bytes, chunked: bool = False) -> None:
        self.adopted.append(sock)
        body = b"data: 1\n\n"
        sock.send(head + (chunk(body) + LAST if chunked else body))

    def close(self) -> None:
        for sock in self.adopted:
            sock.close()


@pytest.fixture
def adopter() -> Iterator[Adopter]:
    adopting = Adopter()
    yield adopting
    adopting.close()


def head_of(port: int, version: str = "1.1") -> Answer:
    with connected(port, get("/", version=version)) as sock:
        return parse(read_until(sock, b"data: 1\n\n" if version == "1.0" else LAST))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_socket_is_handed_over_with_the_head_and_the_handler_ends(
    version: str, server: Server, port: int, app: Recorder, adopter: Adopter, log: Callable[[], list[str]]
) -> None:
    app.handle = adopter
    answer = head_of(port, version)
    assert set(answer.headers) - {"transfer-encoding"} == {"content-type", "connection", "date"}
    assert answer.headers.get("transfer-encoding") == (None if version == "1.0" else "chunked")
    assert answer.headers["connection"] == "close"
    wait_for(lambda: not server.pool, "the handler ended")
    assert log() == ['127.0.0.1 "GET /" 200']


def adding(app: Any) -> Any:
    """Middleware as it is usually written."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Any:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            return start_response(status, [*headers, ("X-Request-Id", "7")], exc_info)

        return app(environ, start)

    return middleware


def iterating(app: Any) -> Any:
    """Middleware that is a generator: it calls the application when the server asks for the first chunk."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield from app(environ, start_response)

    return middleware


def listing(app: Any) -> Any:
    """Middleware that reads the whole body before it returns."""
    return lambda environ, start_response: list(app(environ, start_response))


def test_the_headers_of_a_middleware_are_kept(port: int, app: Recorder, adopter: Adopter) -> None:
    app.handle = adding(adopter)
    assert head_of(port).headers["x-request-id"] == "7"


@pytest.mark.parametrize("middleware", [iterating, listing])
def test_a_socket_is_handed_over_behind_a_middleware_that_iterates_the_body(
    middleware: Any, port: int, app: Recorder, adopter: Adopter
) -> None:
    app.handle = adding(middleware(adopter))
    assert head_of(port).headers["x-request-id"] == "7"


def test_a_middleware_that_answers_instead_of_the_application_keeps_the_socket(
    port: int, app: Recorder, adopter: Adopter
) -> None:
    def handle(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        adopter(environ, lambda *_: None)
        start_response("402 Payment Required", [("Content-Type", "text/plain")])
        return []

    app.handle = handle
    assert ask(port, "/").status == 402
    assert adopter.adopted == []


def test_a_socket_that_is_not_taken_over_is_closed(port: int, app: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    def handle(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        environ[TAKE_OVER].give_socket(SimpleNamespace(take_over=lambda *given: 1 / 0), StreamRequest(()))
        return []

    app.handle = handle
    descriptors = open_descriptors()
    assert exchange(port, get("/")) == b""
    wait_for(lambda: open_descriptors() <= descriptors, "the socket was closed")
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == ["GET / failed"]
    assert still_serves_after(port, app)


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT"])
def test_only_a_get_is_offered_its_socket(method: str, port: int, app: Recorder) -> None:
    offered: list[bool] = []

    def handle(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        offered.append(TAKE_OVER in environ)
        return app.answer(environ, start_response)

    app.handle = handle
    ask(port, "/", method)
    ask(port, "/", "GET")
    assert offered == [False, True]


def test_a_tls_connection_is_not_offered_its_socket(app: Recorder, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=test", "-keyout", key, "-out", certificate],
        capture_output=True,
    )  # fmt: skip
    if made.returncode != 0:
        pytest.skip("no openssl to make a certificate with")
    offered: list[bool] = []

    def handle(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        offered.append(TAKE_OVER in environ)
        return app.answer(environ, start_response)

    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(certificate, key)
    server = Server(listen("127.0.0.1", 0), handle, ssl_context=served)
    server.start()
    context = ssl.create_default_context(cafile=str(certificate))
    with connected(server.server_port) as plain, context.wrap_socket(plain, server_hostname="test") as sock:
        sock.sendall(get("/"))
        read_until(sock, b"ok:")
    server.stop(1.0)
    assert offered == [False]


# life ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stop_lets_the_request_in_work_finish_and_ends_idle_connections_at_once(
    server: Server, port: int, app: Recorder
) -> None:
    def handle(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        gevent.sleep(0.2)
        return app.answer(environ, start_response)

    with connected(port) as idle, connected(port) as new, connected(port) as working:
        idle.sendall(get("/"))
        wait_for(lambda: len(server.idle) == 1 and len(server.new) == 2, "one is idle, two have asked nothing yet")
        app.handle = handle
        working.sendall(get("/"))
        wait_for(lambda: len(app.seen) == 2, "one is in work")
        began = monotonic()
        server.stop(20.0)
        assert 0.1 < monotonic() - began < 15.0
        assert parse(read_to_end(idle)).status == 200 and read_to_end(new) == b""
        answer = parse(read_to_end(working))
    assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_a_stop_cuts_off_requests_that_are_not_done_in_time(server: Server, port: int, app: Recorder) -> None:
    ended: list[str] = []

    def handle(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            gevent.sleep(60)
        finally:
            ended.append("ended")
        return []

    app.handle = handle
    with connected(port, get("/")) as sock:
        wait_for(lambda: app.seen, "it is in work")
        server.stop(0.1)
        assert ended == ["ended"]
        assert b"200" not in read_to_end(sock)


def test_a_stopped_server_takes_no_connection(server: Server, port: int) -> None:
    server.stop(0.1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)


def test_a_port_that_is_taken_is_an_os_error_and_leaves_no_descriptor(port: int) -> None:
    descriptors = open_descriptors()
    with pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", port)
    assert open_descriptors() == descriptors


def test_several_servers_may_share_a_port_that_was_opened_for_it() -> None:
    with ExitStack() as stack:
        one = stack.enter_context(listen("127.0.0.1", 0, reuse_port=True))
        two = stack.enter_context(listen("127.0.0.1", one.getsockname()[1], reuse_port=True))
        assert one.getsockname() == two.getsockname()


def test_it_serves_on_a_unix_socket(app: Recorder, tmp_path: Path, log: Callable[[], list[str]]) -> None:
    path = str(tmp_path / "socket")
    listener = gevent.socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    server = Server(listener, app)
    server.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(get("/a", {"Connection": "close"}))
        assert parse(read_to_end(sock)).status == 200
    server.stop(1.0)
    assert log() == ['- "GET /a" 200']


def test_running_out_of_descriptors_is_one_line_at_a_time_and_passes() -> None:
    program = """
        from gevent import monkey; monkey.patch_all()
        import logging, os, resource, socket, gevent
        from pgbus_gevent.hosts.pywsgi import Server, listen
        logging.basicConfig(level=logging.ERROR, format="%(message)s")
        def app(environ, start_response):
            start_response("200 OK", [])
            return [b"fine"]
        server = Server(listen("127.0.0.1", 0), app)
        server.start()
        clients = [socket.socket() for _ in range(8)]
        limit = len(os.listdir("/proc/self/fd")) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        for client in clients:
            client.connect(("127.0.0.1", server.server_port))
        gevent.sleep(0.3)
        for client in clients[1:]:
            client.close()
        last = clients[0]
        last.settimeout(20)
        last.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        while data := last.recv(1000):
            print(data.decode())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert "fine" in done.stdout
    assert "cannot accept connections: Too many open files" in done.stderr
    assert "Traceback" not in done.stderr


def test_under_gunicorn_a_refused_head_costs_no_traceback_and_signed_names_are_hidden(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "app.py").write_text(
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'fine']\n"
    )
    worker = ["-k", "pgbus_gevent.gunicorn_worker.Worker", "app:app", "--no-control-socket"]
    log = tmp_path / "log"
    port = free_port()
    signed = Signer(["a secret of the test"]).sign("orders")
    with open(log, "w") as output:
        gunicorn = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *worker, "-b", f"127.0.0.1:{port}", "--access-logfile", "-"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(lambda: "Booting worker" in log.read_text(), "gunicorn is up", 60)
        assert parse(exchange(port, get(f"/{signed}") + b"GET /b\r\n\r\n", 15)).status == 200
        assert parse(exchange(port, b"GET /b\r\n\r\n")).status == 400
        wait_for(lambda: "GET /<signed> HTTP/1.1" in log.read_text(), "the access log has it")
    finally:
        gunicorn.terminate()
        gunicorn.wait(60)
    assert "Traceback" not in log.read_text() and signed not in log.read_text()
    assert log.read_text().count('" 200 ') == 1
