"""Bodies that are cut off, on a server that hands an application what came: the standard library's, over real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from io import BytesIO
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import gevent
import pytest
from raw_http import Answer, connected, parse, read_to_end

from pgbus_gevent.web.requests import read_body
from pgbus_gevent.web.responses import Refused

DEADLINE = 0.5
"""Seconds that the body may take."""


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server that answers with the body that it was sent."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            status, body = 200, read_body(environ, limit=100, timeout=DEADLINE).encode()
        except Refused as refused:
            status, body = refused.answer.status, refused.answer.body
        start_response(f"{status} told", [("Content-Type", "text/plain; charset=utf-8")])
        return [body]

    with make_server("127.0.0.1", 0, app, handler_class=Quiet) as server:
        serving = gevent.spawn(server.serve_forever, 0.01)
        yield server.server_port
        server.shutdown()
        serving.join()


def post(port: int, length: int, body: bytes, *, ends: bool = False) -> Answer:
    """Post a body that is said to have ``length`` bytes; ``ends`` closes the sending side of the connection after it."""
    head = f"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n"
    with connected(port, head.encode() + body) as sock:
        if ends:
            sock.shutdown(socket.SHUT_WR)
        return parse(read_to_end(sock))


@pytest.mark.parametrize("ends", [False, True])
def test_a_whole_body_is_taken(ends: bool, port: int) -> None:
    answer = post(port, 4, b"paid", ends=ends)
    assert (answer.status, answer.body) == (200, b"paid")


@pytest.mark.parametrize("body", [b"", b"paid"])
def test_a_body_that_ends_before_its_length_is_400(body: bytes, port: int) -> None:
    answer = post(port, 9, body, ends=True)
    assert (answer.status, answer.line) == (
        400,
        f"the body ended early: its Content-Length is 9, but {len(body)} bytes came",
    )


def test_a_body_that_stays_shorter_than_its_length_is_408(port: int) -> None:
    answer = post(port, 9, b"paid")
    assert (answer.status, answer.line) == (408, f"the body did not come within {DEADLINE:g} s")


def test_a_body_that_the_server_hands_over_in_pieces_is_taken_whole() -> None:
    class Pieces(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 3))

    environ = {"CONTENT_LENGTH": "10", "wsgi.input": Pieces(b"order paid and more")}
    assert read_body(environ, limit=100, timeout=DEADLINE) == "order paid"


@pytest.mark.parametrize("sent", [b"", b"paid"])
def test_a_body_without_a_length_ends_where_the_server_ends_it(sent: bytes) -> None:
    environ = {"wsgi.input_terminated": True, "wsgi.input": BytesIO(sent)}
    assert read_body(environ, limit=4, timeout=DEADLINE) == sent.decode()
