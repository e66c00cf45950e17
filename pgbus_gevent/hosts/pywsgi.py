"""gevent's WSGI server, hardened, and able to give a connection's socket away."""

from __future__ import annotations

import _socket
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

import gevent
from gevent import pywsgi

from ..web.stream_app import TAKE_OVER

logger = logging.getLogger("pgbus_gevent.access")

BACKLOG = 4096
"""Connections that the kernel holds until they are accepted, as far as net.core.somaxconn lets it."""

Adopt = Callable[[socket.socket, bytes], object]


# The stubs know neither the hooks nor that status and headers are bytes by the time that a response is sent.
_pywsgi: Any = pywsgi
_WSGIHandler: Any = pywsgi.WSGIHandler
_WSGIServer: Any = pywsgi.WSGIServer


class SlowClient(OSError):
    """A request's head did not come in time."""


class _Head:
    """Reads a request's header lines, as many bytes of them as are allowed."""

    def __init__(self, file: Any, limit: int) -> None:
        self._file = file
        self._left = limit

    def readline(self, size: int = -1) -> bytes:
        line: bytes = self._file.readline(min(size, self._left + 1) if size > 0 else self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise _pywsgi._InvalidClientRequest("the headers are too large")
        return line


class Handler(_WSGIHandler):  # type: ignore[misc]
    """One client's requests. What gevent's parser lets pass and a proxy may read otherwise is refused with 400."""

    server: Server
    _requests = 0
    _deadline: gevent.Timeout | None = None
    _adopt: Adopt | None = None

    def read_requestline(self) -> str:
        # One deadline for the whole head; between two requests of one client it is how long it may be idle.
        self._deadline = gevent.Timeout.start_new(
            self.server.request_timeout, SlowClient(errno.ETIMEDOUT, "the request did not come in time")
        )
        line: str = ""
        try:
            line = super().read_requestline()
            return line
        finally:
            if not line:
                self._deadline.close()

    def MessageClass(self, file: Any, *args: Any) -> Any:
        return super().MessageClass(_Head(file, self.server.max_request_head), *args)

    def read_request(self, raw_requestline: str) -> Any:
        try:
            found = super().read_request(raw_requestline)
        finally:
            if self._deadline is not None:
                self._deadline.close()
        self._check_head()
        return found

    def _check_head(self) -> None:
        headers = self.headers
        encodings = headers.get_all("transfer-encoding") or ()
        lengths = headers.get_all("content-length") or ()
        if (
            headers.defects
            or self.request_version == "HTTP/0.9"
            or (encodings and [value.strip().lower() for value in encodings] != ["chunked"])
            or len(lengths) > 1
            or (lengths and not (lengths[0].isascii() and lengths[0].isdigit()))
            or (self.request_version == "HTTP/1.1" and len(headers.get_all("host") or ()) != 1)
        ):
            raise _pywsgi._InvalidClientRequest("the request's head is malformed")

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environ()
        if self.command == "GET" and isinstance(self.socket, gevent.socket.socket):
            environ[TAKE_OVER] = self._take_over
        return environ

    def _take_over(self, adopt: Adopt) -> None:
        self._adopt = adopt

    def process_result(self) -> None:
        adopt, self._adopt = self._adopt, None
        if adopt is None:
            super().process_result()
            return
        head = self._response_head()
        # The handler ends here: with no socket left it has nothing to close, and its greenlet is free.
        self.close_connection = True
        plain: Any = _socket.socket(fileno=self.socket.detach())  # a socket that gevent has no part in
        self.socket = None
        adopt(plain, head)

    def _response_head(self) -> bytes:
        """Status line and headers, those that middleware added included; ours say what holds for a stream."""
        lines = [b"HTTP/1.1 " + self.status]
        for name, value in self.response_headers:
            if name.lower() not in (b"content-length", b"connection", b"transfer-encoding"):
                lines.append(name + b": " + value)
        lines.append(b"Connection: close\r\n\r\n")
        return b"\r\n".join(lines)

    def _handle_client_error(self, ex: Exception) -> Any:
        # gevent's own prints a traceback for each, which makes a log of what anybody sends.
        if isinstance(ex, SlowClient):
            logger.debug("%s: %s", self.client_address, ex)
            self.close_connection = True
            return None
        if not isinstance(ex, (ValueError, _pywsgi._InvalidClientInput)):
            ex = _pywsgi._InvalidClientRequest("the request's head is malformed")
        return super()._handle_client_error(ex)

    def log_request(self) -> None:
        # Without the query: it may hold a token.
        logger.info(
            '%s "%s %s" %s',
            self.client_address[0] if isinstance(self.client_address, tuple) else "-",
            getattr(self, "command", None) or "-",
            (getattr(self, "path", None) or "-").partition("?")[0],
            (getattr(self, "_orig_status", None) or getattr(self, "status", None) or "-"),
        )


class Server(_WSGIServer):  # type: ignore[misc]
    """Serves a WSGI application; offers each request's socket to it, for :class:`StreamApp` to take over.

    ``request_timeout`` bounds, in seconds, how long the head of a request may take, and how long a connection may be idle;
    ``max_request_head`` bounds its size in bytes.
    """

    handler_class = Handler

    def __init__(
        self,
        listener: Any,
        application: Any,
        *,
        request_timeout: float = 10.0,
        max_request_head: int = 16 * 1024,
        **options: Any,
    ) -> None:
        self.request_timeout = request_timeout
        self.max_request_head = max_request_head
        # Without a SERVER_NAME gevent asks the name service for it, which may take as long as it likes.
        options.setdefault("environ", {"SERVER_NAME": "pgbus"})
        options.setdefault("log", None)
        options.setdefault("error_log", logging.getLogger("pgbus_gevent.server"))
        super().__init__(listener, application, **options)


def listen(host: str, port: int, *, reuse_port: bool = False) -> Any:
    """A listening socket on ``host`` and ``port`` (0: any that is free). Raises OSError where it cannot be had."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = gevent.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
