"""How a request's socket is had from the server that it came in by.

Under a server of ours the handler offers it. gunicorn's gevent worker and uWSGI let a request have their socket too; there we
take a duplicate, and the server closes its own. From any other server, where TLS ends in the process, and where something between
the server and us makes the answer its own, no socket is to be had, and the response body has to do.
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
"""The environ key under which a server of ours offers its socket, as an :class:`Offer`."""


class Taker(Protocol):
    """Who serves a request on its socket; :class:`pgbus_gevent.streamer.clients.Clients` does."""

    def take_over(self, request: StreamRequest, sock: Any, head: bytes, chunked: bool = False) -> object:
        """Serve ``request`` on ``sock``. ``head`` is the head of the answer, which announces chunks if ``chunked`` says so."""


class Offer(Protocol):
    """A request whose server can let go of the socket, once the application has returned."""

    def give_socket(self, taker: Taker, request: StreamRequest) -> None:
        """Have ``taker`` serve ``request`` on the socket."""


class Taken(NamedTuple):
    """A socket, the head of the answer that is to be written to it first, and whether that announces chunks."""

    sock: Any
    head: bytes
    chunked: bool


def take_socket(environ: Environ, start_response: StartResponse, headers: Headers) -> Taken | None:
    """The socket of a request whose server is not ours; None where none is to be had, and then nothing was done."""
    for offer in (_from_gunicorn, _from_uwsgi):
        descriptor = offer(environ, start_response, headers)
        if descriptor is not None:
            chunked = takes_chunks(environ["SERVER_PROTOCOL"])
            return Taken(_plain(descriptor), _head(headers, chunked), chunked)
    return None


def takes_chunks(protocol: str | None) -> bool:
    """Whether a client of this version of HTTP knows the chunked transfer coding; HTTP/1.0 has the end of the connection alone."""
    return protocol == "HTTP/1.1"


def framing(chunked: bool) -> Headers:
    """The headers that tell where the body ends."""
    return [("transfer-encoding", "chunked"), ("connection", "close")] if chunked else [("connection", "close")]


def _from_gunicorn(environ: Environ, start_response: StartResponse, headers: Headers) -> int | None:
    sock = environ.get("gunicorn.socket")
    # Its sync and thread workers have no event loop for us; HTTP/2 has many requests on one socket.
    if (
        sock is None
        or "gunicorn.workers.ggevent" not in sys.modules
        or not environ["SERVER_PROTOCOL"].startswith("HTTP/1")
    ):
        return None
    # A middleware with a start_response of its own would have gunicorn write its answer where ours has begun.
    response: Any = getattr(start_response, "__self__", None)
    if not _is_plain(sock) or not hasattr(response, "headers_sent") or not hasattr(response, "force_close"):
        return None
    descriptor = os.dup(sock.fileno())
    start_response(status_line(200), headers)
    # So that it writes its line to the access log and closes its copy, and sends nothing.
    response.headers_sent = True
    response.chunked = False
    response.force_close()
    return descriptor


def _from_uwsgi(environ: Environ, start_response: StartResponse, headers: Headers) -> int | None:
    # Its own start_response is built in; one of a middleware's means that what we return is not what uWSGI gets.
    if "uwsgi.version" not in environ or not isinstance(start_response, BuiltinFunctionType):
        return None
    if environ.get("wsgi.url_scheme") == "https":
        return None
    try:
        import uwsgi  # only there inside uWSGI
    except ImportError:
        return None
    return os.dup(uwsgi.connection_fd())


def _is_plain(sock: Any) -> bool:
    """Whether bytes go over it as they are: not so with TLS."""
    return isinstance(sock, socket.socket) and not hasattr(sock, "cipher")


def _plain(descriptor: int) -> Any:
    import _socket  # the class below gevent's and Python's own, which have no part in it from here

    return _socket.socket(fileno=descriptor)


def _head(headers: Headers, chunked: bool) -> bytes:
    kept = [header for header in headers if header[0] != "connection"]
    lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in kept + framing(chunked))]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
