"""Answers as values, and their common headers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from ..streamer.poll_connection import Answer as PollAnswer

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
StartResponse = Callable[..., Any]

STREAM_HEADERS: Headers = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache, no-transform"),
    # Without this, nginx buffers the stream until its buffer is full.
    ("x-accel-buffering", "no"),
    ("x-content-type-options", "nosniff"),
]

POLL_HEADERS: Headers = [("content-type", "application/json"), ("cache-control", "no-store"), STREAM_HEADERS[-1]]
"""The headers of the answer to a poll, but for its length."""


class Answer(NamedTuple):
    """An answer with its whole body."""

    status: int
    body: bytes
    headers: Headers


class Refused(Exception):
    """Raised to end a request with :attr:`answer`."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def text(status: int, line: str, *headers: tuple[str, str]) -> Answer:
    """An answer with one line of text/plain."""
    return Answer(
        status,
        f"{line}\n".encode(),
        [("content-type", "text/plain; charset=utf-8"), ("cache-control", "no-store"), *headers],
    )


def json_answer(status: int, value: Mapping[str, Any], *headers: tuple[str, str]) -> Answer:
    """An answer with a JSON object."""
    return Answer(
        status,
        json.dumps(value).encode() + b"\n",
        [("content-type", "application/json"), ("cache-control", "no-store"), *headers],
    )


def polled(found: PollAnswer, headers: Headers) -> Answer:
    """The answer to a poll whose server keeps the socket. ``headers`` are those of an answer with status 200."""
    headers = [("content-type", found.content_type.decode()), *headers[1:]]
    if found.retry_after is not None:
        headers.append(("retry-after", str(found.retry_after)))
    return Answer(found.status, found.body, headers)


def stream_headers(environ: Environ) -> Headers:
    """The headers of an event stream."""
    if str(environ.get("SERVER_SOFTWARE", "")).startswith("gevent/"):
        return [*STREAM_HEADERS, ("connection", "close")]
    # Other servers end the connection themselves. PEP 3333 lets them reject a hop-by-hop header of an application.
    return list(STREAM_HEADERS)


def accepts_stream(environ: Environ) -> bool:
    """Whether the Accept header names event streams, as that of an EventSource does."""
    return "text/event-stream" in str(environ.get("HTTP_ACCEPT", "")).lower()


_FIELD_NAMES = re.compile(r"[A-Za-z0-9-]{1,64}(?:[ \t]*,[ \t]*[A-Za-z0-9-]{1,64}){0,31}")


def preflight_headers(environ: Environ) -> Headers:
    """What a page of a configured origin may request. It is trusted, so it may send all headers that it names."""
    headers = [("access-control-allow-methods", "GET, HEAD, POST"), ("access-control-max-age", "600")]
    wanted = str(environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")).strip()
    if _FIELD_NAMES.fullmatch(wanted):
        headers.append(("access-control-allow-headers", wanted))
    return headers


def send(answer: Answer, environ: Environ, start_response: StartResponse, extra: Headers) -> Iterable[bytes]:
    """Return an answer to the server, without the body if the request is a HEAD."""
    headers = [*answer.headers, *extra]
    if answer.status not in (204, 304):  # these have no body
        headers.append(("content-length", str(len(answer.body))))
    start_response(status_line(answer.status), headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]


def status_line(status: int) -> str:
    """The status line for WSGI, for example ``404 Not Found``."""
    return f"{status} {HTTPStatus(status).phrase}"
