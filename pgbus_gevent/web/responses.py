"""Answers as values, and the headers that they share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

Environ = Mapping[str, Any]
Headers = list[tuple[str, str]]
StartResponse = Callable[..., Any]

STREAM_HEADERS: Headers = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache, no-transform"),
    # nginx would keep everything to itself until its buffer is full.
    ("x-accel-buffering", "no"),
    ("x-content-type-options", "nosniff"),
]


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    headers: Headers


class Flow(NamedTuple):
    """An answer whose body comes bit by bit; ``chunks`` begins it."""

    headers: Headers
    chunks: Callable[[], Iterable[bytes]]


class Refused(Exception):
    """Ends a request with :attr:`answer`."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def text(status: int, line: str, *headers: tuple[str, str]) -> Answer:
    """One line of text/plain."""
    return Answer(
        status,
        f"{line}\n".encode(),
        [("content-type", "text/plain; charset=utf-8"), ("cache-control", "no-store"), *headers],
    )


def json_answer(status: int, value: Mapping[str, Any], *headers: tuple[str, str]) -> Answer:
    """A JSON object."""
    return Answer(
        status,
        json.dumps(value).encode() + b"\n",
        [("content-type", "application/json"), ("cache-control", "no-store"), *headers],
    )


def stream_headers(environ: Environ) -> Headers:
    """The headers of an event stream."""
    if str(environ.get("SERVER_SOFTWARE", "")).startswith("gevent/"):
        return [*STREAM_HEADERS, ("connection", "close")]
    # Other servers end the connection in their own way; PEP 3333 lets them refuse an application's.
    return list(STREAM_HEADERS)


def accepts_stream(environ: Environ) -> bool:
    """Whether the client asks for an event stream by name, as an EventSource does."""
    return "text/event-stream" in str(environ.get("HTTP_ACCEPT", "")).lower()


_FIELD_NAMES = re.compile(r"[A-Za-z0-9-]{1,64}(?:[ \t]*,[ \t]*[A-Za-z0-9-]{1,64}){0,31}")


def preflight_headers(environ: Environ) -> Headers:
    """What a page of a configured origin may ask; it is trusted, so it may send whatever headers it names."""
    headers = [("access-control-allow-methods", "GET, HEAD, POST"), ("access-control-max-age", "600")]
    wanted = str(environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")).strip()
    if _FIELD_NAMES.fullmatch(wanted):
        headers.append(("access-control-allow-headers", wanted))
    return headers


def send(answer: Answer, environ: Environ, start_response: StartResponse, extra: Headers) -> Iterable[bytes]:
    """Give the server an answer; without the body for a HEAD."""
    headers = [*answer.headers, *extra]
    if answer.status not in (204, 304):  # there it would be the length of what is not sent
        headers.append(("content-length", str(len(answer.body))))
    start_response(status_line(answer.status), headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]


def status_line(status: int) -> str:
    """As WSGI wants it, for example ``404 Not Found``."""
    return f"{status} {HTTPStatus(status).phrase}"
