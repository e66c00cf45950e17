"""Takes the socket of a request over from the server.

Our own server offers the socket. From the gevent worker of gunicorn and from uWSGI we take a duplicate, and the server closes its
own. Other servers do not give a socket away. It cannot be taken either if TLS ends in this process, or if a middleware changes the
answer. Then the stream is sent as a response body.
"""

from __future__ import annotations

import os
import socket
import sys
from types import BuiltinFunctionType
from typing import Any, NamedTuple, Protocol

from ..core.client import StreamRequest
from .responses import Environ, Headers, StartResponse, status_line

TAKE_OVER = "pgbus_gevent.take_over"
"""The environ key under which our server offers its socket, as an :class:`Offer`."""


class Taker(Protocol):
    """Serves requests on their sockets, as :class:`pgbus_gevent.streamer.clients.Clients` does."""

    def take_over(self, request: StreamRequest, sock: Any, head: bytes, chunked: bool = False) -> object:
        """Serve ``request`` on ``sock``. ``head`` is the head of the answer, which announces chunks if ``chunked`` is true."""


class Offer(Protocol):
    """A request whose server gives the socket away when the application has returned.

    :class:`pgbus_gevent.hosts.pywsgi.Handler` is one.
    """

    def give_socket(self, taker: Taker, request: StreamRequest) -> None:
        """Let ``taker`` serve ``request`` on the socket."""


class Taken(NamedTuple):
    """A socket, the head of the answer, which has to be written first, and whether the head announces the chunked coding."""

    sock: Any
    head: bytes
    chunked: bool


def take_socket(
    environ: Environ, start_response: StartResponse, headers: Headers, *, whole: bool = False
) -> Taken | None:
    """The socket of a request from a server that is not ours. None if it cannot be taken; then nothing has been changed.

    ``whole`` says that the answer is sent with its length, so not in chunks.
    """
    for offer in (_from_gunicorn, _from_uwsgi):
        descriptor = offer(environ, start_response, headers)
        if descriptor is not None:
            chunked = takes_chunks(environ["SERVER_PROTOCOL"]) and not whole
            return Taken(_plain(descriptor), _head(headers, chunked), chunked)
    return None


def takes_chunks(protocol: str | None) -> bool:
    """Whether a client of this HTTP version knows the chunked coding. In HTTP/1.0 only the end of the connection ends a body."""
    return protocol == "HTTP/1.1"


def framing(chunked: bool) -> Headers:
    """The headers that say where the body ends."""
    return [("transfer-encoding", "chunked"), ("connection", "close")] if chunked else [("connection", "close")]


def _from_gunicorn(environ: Environ, start_response: StartResponse, headers: Headers) -> int | None:
    sock = environ.get("gunicorn.socket")
    # The sync and thread workers of gunicorn have no event loop. HTTP/2 carries many requests on one socket.
    if (
        sock is None
        or "gunicorn.workers.ggevent" not in sys.modules
        or not environ["SERVER_PROTOCOL"].startswith("HTTP/1")
    ):
        return None
    # If a middleware has its own start_response, gunicorn would write its answer to a socket on which ours has begun.
    response: Any = getattr(start_response, "__self__", None)
    if not _is_plain(sock) or not hasattr(response, "headers_sent") or not hasattr(response, "force_close"):
        return None
    descriptor = os.dup(sock.fileno())
    start_response(status_line(200), headers)
    # With these gunicorn writes its line to the access log and closes its socket, but sends nothing.
    response.headers_sent = True
    response.chunked = False
    response.force_close()
    return descriptor


def _from_uwsgi(environ: Environ, start_response: StartResponse, headers: Headers) -> int | None:
    # The start_response of uWSGI is a builtin. If a middleware has replaced it, uWSGI does not get what we return.
    if "uwsgi.version" not in environ or not isinstance(start_response, BuiltinFunctionType):
        return None
    if environ.get("wsgi.url_scheme") == "https":
        return None
    try:
        import uwsgi  # exists only inside uWSGI
    except ImportError:
        return None
    return os.dup(uwsgi.connection_fd())


def _is_plain(sock: Any) -> bool:
    """Whether the socket sends bytes unchanged, which one with TLS does not."""
    return isinstance(sock, socket.socket) and not hasattr(sock, "cipher")


def _plain(descriptor: int) -> Any:
    import _socket  # the base class of gevent's and Python's sockets; those would try to manage the descriptor too

    return _socket.socket(fileno=descriptor)


def _head(headers: Headers, chunked: bool) -> bytes:
    kept = [header for header in headers if header[0] != "connection"]
    lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in kept + framing(chunked))]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
