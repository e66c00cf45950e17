"""What a server without an application of its own answers beside its streams.

``python -m pgbus_gevent.serve --no-demo`` serves the streams alone, with :func:`application` at the root. An edge without an
application gets :func:`edge`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

StartResponse = Callable[..., Any]


def application(environ: Mapping[str, Any], start_response: StartResponse) -> list[bytes]:
    """One line of text at the root, and 404 elsewhere."""
    return _page(environ, start_response, b"This is a server of pgbus-gevent. It serves streams.\n")


def edge(environ: Mapping[str, Any], start_response: StartResponse) -> list[bytes]:
    """The same, for an edge."""
    return _page(environ, start_response, b"This is an edge of pgbus-gevent. It serves the streams of its origin.\n")


def _page(environ: Mapping[str, Any], start_response: StartResponse, text: bytes) -> list[bytes]:
    found = environ.get("PATH_INFO") == "/"
    body = text if found else b"not found\n"
    headers = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body)))]
    start_response("200 OK" if found else "404 Not Found", headers)
    return [body]
