"""Where a request ends: our parser reads nothing that h11, which we did not write, reads differently."""

from __future__ import annotations

import random
import socket
from typing import Any

import pytest
from raw_http import connected, read_to_end

from pgbus_gevent.hosts.pywsgi import Server, listen

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n"
VALID = [
    b"POST /a HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nhello" + SMUGGLED,
    b"POST /a HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n" + SMUGGLED,
    b"GET /a HTTP/1.1\r\nHost: t\r\nX: y\r\n\r\n" + SMUGGLED,
]
SLIPS = (
    b"\r", b"\n", b"\r\n", b" ", b"\t", b"\0", b"\x0b", b"\x0c", b":", b",", b";", b"0", b"5", b"+", b"-", b"x", b"\x7f",
    b"Content-Length: 0\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n",
    b"Host: u\r\n", b"\r\n\r\n", b"HTTP/1.0",
)  # fmt: skip
Asked = list[tuple[str, str, bytes]]


def slipped(rng: random.Random) -> bytes:
    """A request with one or two faults in it, and another request behind it."""
    raw = bytearray(rng.choice(VALID))
    for _ in range(rng.randrange(1, 3)):
        at = rng.randrange(len(raw) - len(SMUGGLED) + 1)
        raw[at : at + rng.choice((0, 0, 0, 1))] = rng.choice((b"", *SLIPS))
    return bytes(raw)


h11: Any = pytest.importorskip("h11")


def as_h11_reads(raw: bytes) -> Asked:
    """The requests that are complete before the first malformed one."""
    connection, found, body = h11.Connection(h11.SERVER), [], b""
    connection.receive_data(raw)
    connection.receive_data(b"")
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                method, target, body = event.method.decode(), event.target.decode(), b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found.append((method, target.partition("?")[0], body))
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
            else:
                return found
    except h11.ProtocolError:
        return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_no_request_is_read_that_h11_reads_differently(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgbus_gevent.hosts.pywsgi.LINGER", 0.02)
    # h11 does not skip empty lines before a request.
    monkeypatch.setattr("pgbus_gevent.hosts.pywsgi.EMPTY_LINES", 0)
    asked: Asked = []

    def handle(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["wsgi.input"].read()))
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    server = Server(listen("127.0.0.1", 0), handle, request_timeout=5.0)
    server.start()
    rng = random.Random(seed)
    for _ in range(300):
        raw = slipped(rng)
        asked.clear()
        with connected(int(server.server_port), raw) as sock:
            sock.shutdown(socket.SHUT_WR)
            read_to_end(sock)
        judged = as_h11_reads(raw)
        assert len(asked) <= len(judged) and asked == judged[: len(asked)], raw
    server.stop(1.0)
