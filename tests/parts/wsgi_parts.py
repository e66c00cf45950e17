"""Calls a WSGI application as a server does, in this process."""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults


class Answer(NamedTuple):
    """One answer. The names of the headers are as the application wrote them."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(app: Any, method: str, path: str, most: int = 5, **environ: Any) -> Answer:
    """Return the answer of ``app``, with a limited number of pieces of the body."""
    environ = {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path, **environ}
    setup_testing_defaults(environ)
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        started.append((status, headers))
        return lambda data: None

    body = app(environ, start_response)
    try:
        pieces = [piece for piece, _ in zip(body, range(most), strict=False)]
    finally:
        getattr(body, "close", lambda: None)()
    ((status, headers),) = started
    return Answer(int(status[:3]), dict(headers), b"".join(pieces))
