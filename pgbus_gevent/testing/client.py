"""A client of an event stream for tests: it keeps every frame, and its waits have deadlines."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import gevent
from gevent.event import Event

from ..core.sse_parser import ParsedFrame, Parser


class Response(NamedTuple):
    """The status and headers that came before the stream. Header names are in lower case."""

    status: int
    headers: dict[str, str]


class StreamClient:
    """A client that connects to ``url`` + ``path`` when it is made. A greenlet reads until :meth:`close`.

    ``since`` is the cursor that is sent in the query, and ``headers`` are more request headers. All timeouts are in seconds.
    Raises OSError if it cannot connect.

    :attr:`frames` holds all frames so far, including comments and control frames. :attr:`times` holds the monotonic time at
    which each frame came. :attr:`last_id`, a ``str`` or None, is the cursor, as a browser keeps it. :meth:`next` returns
    messages one by one.
    """

    patience: float = 5.0
    """Seconds that a wait without a ``timeout`` may take. Set it on the class if the machine that runs the tests is busy."""

    def __init__(
        self, url: str, path: str, *, since: int | str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        self.url = url
        self._path = path
        self._since = since
        self._headers = dict(headers or {})
        self.frames: list[ParsedFrame] = []
        self.times: list[float] = []
        self.last_id: str | None = None
        self.response: Response | None = None
        self._raw = bytearray()
        self._taken = 0
        self._news = Event()
        self._reading = Event()
        self._reading.set()
        self._socket: socket.socket | None = None
        self._reader: gevent.Greenlet[..., None] | None = None
        self.closed = True
        self.resume()

    # connecting

    def resume(self) -> None:
        """Connect again, to the present :attr:`url`, and send the cursor as ``Last-Event-ID`` as a browser does. Raises OSError."""
        self.drop()
        address = urlsplit(self.url)
        self._socket = socket.create_connection((address.hostname or "127.0.0.1", address.port or 80), 10)
        self.closed = False
        self._reading.set()
        self._raw = bytearray()
        self.response = None
        separator = "&" if "?" in self._path else "?"
        query = "" if self._since is None else f"{separator}since={self._since}"
        headers = {"Host": address.netloc, "Accept": "text/event-stream", **self._headers}
        if self.last_id is not None:
            headers["Last-Event-ID"] = self.last_id
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._socket.sendall(f"GET {self._path}{query} HTTP/1.1\r\n{lines}\r\n".encode())
        self._reader = gevent.spawn(self._read, self._socket)

    def drop(self) -> None:
        """Close the connection. Idempotent; the frames stay."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.kill()
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()
        self.closed = True

    close = drop

    def pause(self) -> None:
        """Stop reading after the receive call that is waiting now. The kernel's buffers still take some hundred kilobytes."""
        self._reading.clear()

    def go_on(self) -> None:
        """Read again."""
        self._reading.set()

    def __enter__(self) -> StreamClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, sock: socket.socket) -> None:
        parser = Parser()
        sock.settimeout(None)
        try:
            head = b""
            while b"\r\n\r\n" not in head:
                data = sock.recv(65536)
                if not data:
                    return
                head += data
            head, _, body = head.partition(b"\r\n\r\n")
            self.response = _response(head)
            chunked = "chunked" in self.response.headers.get("transfer-encoding", "")
            decode = _Dechunker().feed if chunked else bytes
            self._news.set()
            while True:
                self._take(decode(body), parser)
                self._reading.wait()
                body = sock.recv(65536)
                if not body:
                    return
        except OSError:
            return
        finally:
            self.closed = True
            self._news.set()

    def _take(self, data: bytes, parser: Parser) -> None:
        self._raw += data
        now = monotonic()
        for frame in parser.feed(data):
            self.frames.append(frame)
            self.times.append(now)
            if frame.id is not None:
                self.last_id = frame.id
        self._news.set()

    # looking

    def next(self, event: str | None = None, timeout: float | None = None) -> ParsedFrame:
        """Return the next message, or the next frame named ``event``, which may be a control frame.

        Raises AssertionError if none comes within ``timeout`` seconds.
        """
        timeout = self.patience if timeout is None else timeout
        deadline = monotonic() + timeout
        while True:
            while self._taken < len(self.frames):
                frame = self.frames[self._taken]
                self._taken += 1
                wanted = frame.event == event if event is not None else not frame.event.startswith("pgbus:")
                if frame.dispatches and wanted:
                    return frame
            if self.closed or monotonic() >= deadline:
                what = event or "a message"
                raise AssertionError(f"{what} did not come within {timeout:g} s{' (closed)' if self.closed else ''}")
            self._wait(deadline)

    def wait_for_response(self, timeout: float | None = None) -> Response:
        """Wait for the status and headers. Raises AssertionError if they do not come within ``timeout`` seconds."""
        timeout = self.patience if timeout is None else timeout
        deadline = monotonic() + timeout
        while self.response is None:
            assert not self.closed, "the server closed before it answered"
            assert monotonic() < deadline, f"no answer within {timeout:g} s"
            self._wait(deadline)
        return self.response

    def wait_started(self, timeout: float | None = None) -> None:
        """Wait until the stream starts for the first time, is refused or ends, but at most ``timeout`` seconds.

        A stream starts with the frame ``pgbus:connected``. The client gets every message that is published after it.
        """
        timeout = self.patience if timeout is None else timeout
        deadline = monotonic() + timeout
        while not (self.closed or self._refused or any(frame.event == "pgbus:connected" for frame in self.frames)):
            if monotonic() >= deadline:
                return
            self._wait(deadline)

    @property
    def _refused(self) -> bool:
        return self.response is not None and self.response.status != 200

    def wait_closed(self, timeout: float | None = None) -> None:
        """Wait until the server closes the connection. Raises AssertionError if it does not within ``timeout`` seconds."""
        timeout = self.patience if timeout is None else timeout
        deadline = monotonic() + timeout
        while not self.closed:
            assert monotonic() < deadline, f"still open after {timeout:g} s"
            self._wait(deadline)

    def quiet(self, seconds: float) -> bool:
        """Return True if no message comes within ``seconds``. A message that comes is not returned by :meth:`next` any more."""
        try:
            self.next(timeout=seconds)
        except AssertionError:
            return True
        return False

    def _wait(self, deadline: float) -> None:
        self._news.clear()
        self._news.wait(max(0.0, min(0.25, deadline - monotonic())))

    @property
    def raw(self) -> bytes:
        """The body of the present connection so far, without HTTP's chunked coding."""
        return bytes(self._raw)

    @property
    def messages(self) -> list[ParsedFrame]:
        """All messages so far, without control frames and comments."""
        return [frame for frame in self.frames if frame.dispatches and not frame.event.startswith("pgbus:")]


def stream_path(prefix: str, stream: str | Sequence[str]) -> str:
    """Return the path of a stream, or of several streams on one connection. Names are signed or public."""
    if not isinstance(stream, str):
        return f"{prefix}/streams?" + "&".join(f"stream={quote(name, safe='')}" for name in stream)
    return f"{prefix}/streams/{quote(stream, safe='')}"


def _response(head: bytes) -> Response:
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Response(int(status_line.split()[1]), headers)


class _Dechunker:
    """Decodes the chunked transfer coding (RFC 9112, section 7.1)."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        found = b""
        while b"\r\n" in self._buffer:
            size_line, _, rest = self._buffer.partition(b"\r\n")
            size = int(size_line.split(b";")[0] or b"0", 16)
            if len(rest) < size + 2:
                break
            found += rest[:size]
            self._buffer = rest[size + 2 :]
        return found
