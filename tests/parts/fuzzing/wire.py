"""A target that sends bytes to our server and compares what its application is asked with what h11 and RFC 9112 make of them."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote_to_bytes

import h11
from raw_http import connected, read_to_end
from support import until

from fuzzing.engine import Check, Target
from fuzzing.web import END
from pgbus_gevent.hosts import pywsgi
from pgbus_gevent.hosts.pywsgi import Server, listen

Asked = list[tuple[str, bytes, bytes]]
"""Method, path and body of each request."""

_LINE = re.compile(rb"(?:\r\n){0,4}[^ \r\n]+ (/[^ \r\n]*) HTTP/1\.[01]\r\n")


def as_h11_reads(raw: bytes) -> Asked:
    """Return the requests up to the first one that h11 takes for malformed."""
    connection, found, body = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000), [], b""
    connection.receive_data(raw)
    connection.receive_data(b"")
    method, path = "", b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                method, path, body = event.method.decode(), _path(event.target), b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found.append((method, path, body))
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
            else:
                return found
    except h11.ProtocolError:
        return found


def _path(target: bytes) -> bytes:
    return unquote_to_bytes(target.partition(b"?")[0])


@contextmanager
def requests() -> Iterator[Check]:
    """What the application is asked is what was sent: the path byte for byte, and the same bodies as h11 reads."""
    asked: Asked = []
    linger, pywsgi.LINGER = pywsgi.LINGER, 0.02

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(100_000)
        asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"].encode("latin-1"), body))
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    server = Server(listen("127.0.0.1", 0), app, request_timeout=10.0)
    server.start()

    def check(data: bytes) -> None:
        asked.clear()
        with connected(int(server.server_port), data) as sock:
            sock.shutdown(socket.SHUT_WR)
            answer = read_to_end(sock, END)
        until(lambda: not len(server.pool), "the handler has ended", END)
        assert not answer or re.match(rb"HTTP/1\.1 (100|200|400|414) ", answer), answer[:200]
        line = _LINE.match(data)
        if asked and line is not None:
            assert asked[0][1] == _path(line[1]), (asked[0], line[1])
        judged = as_h11_reads(data)
        for ours, theirs in zip(asked, judged, strict=False):
            assert ours == theirs
        # h11 refuses more than RFC 9112 asks: empty lines before a request, and bytes that are not ASCII in a target.
        plain = (
            data.isascii()
            and b"\r\n\r\n\r\n" not in data
            and not data.startswith(b"\r\n")
            and b"http" not in data.lower()
        )
        assert not plain or len(asked) <= len(judged) or b"GET http" in data, (asked, judged)

    try:
        yield check
    finally:
        server.stop(1.0)
        pywsgi.LINGER = linger


_HEAD = b" HTTP/1.1\r\nHost: t\r\n"

REQUESTS = Target(
    "requests", requests,
    (b"GET /a" + _HEAD + b"\r\n", b"POST /b" + _HEAD, b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n",
     b"5;a=b\r\nhello\r\n",
     b"5 ; a = \"b\"\r\nhello\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0;x\r\nX: y\r\nZ: \xa0\r\n\r\n",
     b"Content-Length: 5\r\n\r\nhello", b"\r\n",
     b"Content-Length: ", b"\r", b"\n", b" ", b"\t", b":", b";", b"=", b'"', b"\0", b"\x0b", b"\xa0", b"\x85", b"%A0",
     b"\xc3\xa0", b"0", b"5", b"+5",
     b"-1", b"0x5", b"5_0", b"ffffffff", b"GET /a\xa0b" + _HEAD + b"\r\n", b"Connection: close\r\n", b"HTTP/1.0",
     b"Host: u\r\n", b"?", b"#", b"//",
     b"Expect: 100-continue\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding:\tchunked\r\n"),
    most=40_000,
    about="what the application is asked, against h11: targets, bodies, chunks with extensions and trailers, pipelines",
)  # fmt: skip

TARGETS = (REQUESTS,)
