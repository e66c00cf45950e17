"""How a request's socket is had from the server that it came in by.

Under a server of ours the handler offers it. gunicorn's gevent worker and uWSGI let a request have their socket too; there we
take a duplicate, and the server closes its own. From any other server, and where TLS ends in the process, no socket is to be
had, and the response body has to do.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any

from .responses import Environ, Headers, StartResponse, status_line

TAKE_OVER = "pgbus_gevent.take_over"
"""The environ key under which our server offers its socket: a function, given what to call with socket and head."""

Adopt = Callable[[Any, bytes], object]


def take_over(
    environ: Environ, start_response: StartResponse, headers: Headers, adopt: Adopt
) -> Iterable[bytes] | None:
    """Give the request's socket to ``adopt``, with the head of the answer, and return what the application is to return.

    None where no socket is to be had; then nothing was done.
    """
    ours = environ.get(TAKE_OVER)
    if ours is not None:
        start_response(status_line(200), headers)
        ours(adopt)
        return []
    for offer in (_from_gunicorn, _from_uwsgi):
        found = offer(environ)
        if found is not None:
            descriptor, answer = found
            adopt(_plain(descriptor), _head(headers))
            iterable: Iterable[bytes] = answer
            return iterable
    return None


def _from_gunicorn(environ: Environ) -> tuple[int, Any] | None:
    sock = environ.get("gunicorn.socket")
    # Bottle looks into what an application returns, and would not pass on what tells gunicorn that all is done.
    if sock is None or not _is_plain(sock) or "bottle.request" in environ:
        return None
    from gunicorn.workers.base_async import ALREADY_HANDLED

    # Its sync and thread workers do not know the word, and have no event loop for us anyway.
    if "gunicorn.workers.ggevent" not in sys.modules:
        return None
    return os.dup(sock.fileno()), ALREADY_HANDLED


def _from_uwsgi(environ: Environ) -> tuple[int, Any] | None:
    if "uwsgi.version" not in environ or environ.get("wsgi.url_scheme") == "https":
        return None
    try:
        import uwsgi  # only there inside uWSGI
    except ImportError:
        return None
    return os.dup(uwsgi.connection_fd()), []


def _is_plain(sock: Any) -> bool:
    """Whether bytes go over it as they are: not so with TLS."""
    return isinstance(sock, socket.socket) and not hasattr(sock, "cipher")


def _plain(descriptor: int) -> Any:
    import _socket  # the class below gevent's and Python's own, which have no part in it from here

    return _socket.socket(fileno=descriptor)


def _head(headers: Headers) -> bytes:
    lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in headers if name != "connection")]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1")
