"""The HTTP client of ``doctor URL``: requests and streams over HTTP/1.1, with the times at which things came."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from time import monotonic
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import gevent
from gevent.event import Event

from ..core.sse_parser import ParsedFrame, Parser
from ..errors import InvalidArgument

EVENTS = "text/event-stream"

_HEARTBEAT = re.compile(rb": heartbeat \d")

_ENOUGH = 64 * 1024  # bytes of an answer that is no stream


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object in ``text``, or an empty one if it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class Reply(NamedTuple):
    """A whole answer, and the seconds that it took. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: str
    seconds: float

    @property
    def line(self) -> str:
        """The first line of the body, shortened."""
        return self.body.strip().partition("\n")[0][:120]


class Address:
    """The address that is tried: the URL of the mount, such as ``https://example.org/pgbus``, and headers for each request.

    ``timeout``, in seconds, is for connecting and for answers. Raises :class:`InvalidArgument` for a URL that is none.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, *, prefix: str, timeout: float = 10.0
    ) -> None:
        try:
            parts = urlsplit(url)
            self.host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise InvalidArgument(f"{url!r} is not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not self.host or parts.query or parts.fragment or parts.username:
            raise InvalidArgument(f"{url!r} is not an address such as https://example.org{prefix}")
        self.tls = parts.scheme == "https"
        self.port = port or (443 if self.tls else 80)
        self.mount = parts.path.rstrip("/") or prefix
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self.timeout = timeout
        self._headers = dict(headers or {})

    def connect(self, *, alpn: tuple[str, ...] = ()) -> socket.socket:
        """Open a connection; with TLS, offer the protocols. Raises OSError, of which ``ssl.SSLError`` is one."""
        sock = socket.create_connection((self.host, self.port), self.timeout)
        if not self.tls:
            return sock
        context = ssl.create_default_context()
        if alpn:
            context.set_alpn_protocols(list(alpn))
        try:
            return context.wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise

    def request(self, path: str, headers: Mapping[str, str], timeout: float | None) -> http.client.HTTPConnection:
        """Send a GET for ``path`` below the mount, and return the connection. Raises OSError or HTTPException."""
        connection = http.client.HTTPConnection(self.host, self.port)
        connection.sock = self.connect(alpn=("http/1.1",))
        connection.sock.settimeout(timeout)
        try:
            connection.putrequest("GET", self.mount + path, skip_accept_encoding=True, skip_host=True)
            default = self.port == (443 if self.tls else 80)
            host = f"[{self.host}]" if ":" in self.host else self.host
            for name, value in {
                "Host": host if default else f"{host}:{self.port}",
                "Accept-Encoding": "gzip",  # as browsers do, so that a proxy that compresses does so here too
                "Connection": "close",
                **self._headers,
                **headers,
            }.items():
                connection.putheader(name, value)
            connection.endheaders()
        except BaseException:
            connection.close()
            raise
        return connection

    def ask(self, path: str, headers: Mapping[str, str] | None = None, *, timeout: float | None = None) -> Reply:
        """Return the answer to a GET. Raises OSError, or HTTPException for an answer that is not HTTP.

        If the answer is a stream, only its status and headers count, because it has no end.
        """
        began = monotonic()
        with (
            gevent.Timeout(timeout or self.timeout, TimeoutError("the answer did not come in time")),
            closing(self.request(path, headers or {}, None)) as connection,
            closing(connection.getresponse()) as response,
        ):
            known = {name.lower(): value for name, value in response.getheaders()}
            stream = known.get("content-type", "").startswith(EVENTS)
            body = b"" if stream else response.read(_ENOUGH)
        if known.get("content-encoding") == "gzip" and body:
            body = zlib.decompressobj(47).decompress(body)
        return Reply(response.status, known, body.decode("utf-8", "replace"), monotonic() - began)

    def ask_nonsense(self) -> str:
        """Return the answer to a malformed request, which whatever stands in front answers itself; empty if there is none."""
        try:
            with self.connect(alpn=("http/1.1",)) as sock:
                sock.settimeout(self.timeout)
                sock.sendall(f"GET / HTTP/1.1\r\nHost: {self.host}\r\nno header\r\n\r\n".encode())
                return sock.recv(4096).decode("latin-1")
        except OSError:
            return ""

    def protocol(self) -> str | None:
        """Return the protocol that the address chooses for a browser, as ALPN names it; None without TLS, "" if it names none."""
        if not self.tls:
            return None
        with self.connect(alpn=("h2", "http/1.1")) as sock:
            assert isinstance(sock, ssl.SSLSocket)
            return sock.selected_alpn_protocol() or ""


class Stream:
    """An event stream that a greenlet reads until :meth:`close`. All times are on the monotonic clock."""

    def __init__(self, address: Address, path: str, headers: Mapping[str, str] | None = None) -> None:
        self.began = monotonic()
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.body = ""
        """The beginning of the body, if the answer is no stream."""
        self.frames: list[tuple[float, ParsedFrame]] = []
        self.beats: list[float] = []
        self.first_byte: float | None = None
        self.last_byte: float | None = None
        self.ended: float | None = None
        self.cause = ""
        """How the stream ended, unless it simply ended."""
        self._news = Event()
        request = {"Accept": EVENTS, "Cache-Control": "no-cache", **(headers or {})}  # what an EventSource sends
        self._reader = gevent.spawn(self._read, address, path, request)

    def _read(self, address: Address, path: str, headers: Mapping[str, str]) -> None:
        try:
            with (
                closing(address.request(path, headers, None)) as connection,
                closing(connection.getresponse()) as response,
            ):
                self._take(response)
        except (OSError, http.client.HTTPException, zlib.error) as error:
            self.cause = str(error) or type(error).__name__
        finally:
            self.ended = monotonic()
            self._news.set()

    def _take(self, response: http.client.HTTPResponse) -> None:
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.status = response.status
        self._news.set()
        if not self.is_stream:
            self.body = response.read1(_ENOUGH).decode("utf-8", "replace")
            return
        parser, rest = Parser(), b""
        unzip = zlib.decompressobj(47).decompress if self.headers.get("content-encoding") == "gzip" else bytes
        while True:
            data = response.read1(65536)
            if not data:
                return
            now = monotonic()
            self.first_byte = self.first_byte or now
            self.last_byte = now
            text = unzip(data)
            *lines, rest = (rest + text).split(b"\n")
            self.beats += [now for line in lines if _HEARTBEAT.match(line)]
            self.frames += [(now, frame) for frame in parser.feed(text)]
            self._news.set()

    @property
    def is_stream(self) -> bool:
        """Whether the answer is an event stream."""
        return self.status == 200 and self.headers.get("content-type", "").startswith(EVENTS)

    @property
    def is_other(self) -> bool:
        """Whether the answer has begun, and is no event stream."""
        return self.status is not None and not self.is_stream

    def wait(self, condition: Callable[[], object], seconds: float) -> bool:
        """Wait until ``condition`` holds, the stream has ended, or the time is over. Return whether it holds."""
        deadline = monotonic() + seconds
        while not condition() and self.ended is None and monotonic() < deadline:
            self._news.clear()
            self._news.wait(max(0.0, min(0.25, deadline - monotonic())))
        return bool(condition())

    def control(self, name: str) -> dict[str, Any] | None:
        """Return what the first control frame ``pgbus:name`` says, empty if it cannot be read; None if there is none."""
        frame = next((frame for _, frame in self.frames if frame.event == f"pgbus:{name}"), None)
        return None if frame is None else json_object(frame.data)

    def arrival(self, data: str) -> float | None:
        """Return when the message with these data came, or None."""
        return next((at for at, frame in self.frames if frame.data == data), None)

    @property
    def messages(self) -> list[ParsedFrame]:
        """The messages so far, without control frames."""
        return [frame for _, frame in self.frames if frame.dispatches and not frame.event.startswith("pgbus:")]

    def close(self) -> None:
        """End the stream. Idempotent."""
        self._reader.kill()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
