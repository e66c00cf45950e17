"""HTTP from the client's side: bytes out, bytes in, each with a deadline."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from time import monotonic
from typing import Any, NamedTuple

import gevent

TIMEOUT = 10.0
"""Seconds until an exchange is given up."""

PATIENCE = 20.0
"""Seconds that a condition may take which holds within one on a machine of its own."""


def read_head(sock: socket.socket) -> bytes | None:
    """Return what comes up to the end of a head, and perhaps more; None if the connection ends before."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = sock.recv(65536)
        if not data:
            return None
        head += data
    return head


class Answer(NamedTuple):
    """One answer, as the standard library's parser reads it. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def line(self) -> str:
        """Return the body, which must be one line of text/plain."""
        assert self.headers["content-type"] == "text/plain; charset=utf-8"
        text = self.body.decode()
        assert text.endswith("\n") and text.count("\n") == 1 and "\r" not in text
        return text[:-1]


def ask(port: int, target: str, method: str = "GET", body: Any = None, **headers: str) -> Answer:
    """Send one request on a new connection. An underscore in a header's name stands for a hyphen."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, {"Connection": "close", **names})
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def exchange(port: int, request: bytes, timeout: float = TIMEOUT) -> bytes:
    """Send bytes, and return the bytes that come back until the server closes. Raises AssertionError if it does not."""
    with socket.create_connection(("127.0.0.1", port), timeout) as sock:
        sock.sendall(request)
        return read_to_end(sock, timeout)


def read_to_end(sock: socket.socket, timeout: float = TIMEOUT) -> bytes:
    """Return all bytes until the end. Raises AssertionError if it does not come in time."""
    deadline, found = monotonic() + timeout, b""
    while True:
        sock.settimeout(max(0.01, deadline - monotonic()))
        try:
            data = sock.recv(65536)
        except TimeoutError:
            raise AssertionError(f"the server kept the connection for {timeout} s; it sent {found!r}") from None
        except ConnectionResetError:
            return found
        if not data:
            return found
        found += data


def read_until(sock: socket.socket, mark: bytes, timeout: float = TIMEOUT) -> bytes:
    """Return the bytes up to ``mark`` at least."""
    deadline, found = monotonic() + timeout, b""
    while mark not in found:
        sock.settimeout(max(0.01, deadline - monotonic()))
        data = sock.recv(65536)
        assert data, f"the server closed after {found!r}"
        found += data
    return found


def parse(raw: bytes, method: str = "GET") -> Answer:
    """Return the first answer in ``raw``."""

    class Socket:
        def makefile(self, *_: Any) -> BytesIO:
            return BytesIO(raw)

    response = http.client.HTTPResponse(Socket(), method=method)  # type: ignore[arg-type]
    response.begin()
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


@contextmanager
def connected(port: int, data: bytes = b"") -> Iterator[socket.socket]:
    """Yield a connection on which ``data`` was sent."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as sock:
        sock.sendall(data)
        yield sock


def get(target: str, headers: Mapping[str, str] | None = None, version: str = "1.1") -> bytes:
    """Return the bytes of a GET."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "test", **(headers or {})}.items())
    return f"GET {target} HTTP/{version}\r\n{lines}\r\n".encode("latin-1")


def wait_for(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> None:
    """Return once ``condition`` holds. Raises AssertionError if it does not in time."""
    deadline = monotonic() + timeout
    while not condition():
        assert monotonic() < deadline, f"{what} within {timeout} s"
        gevent.sleep(0.01)
