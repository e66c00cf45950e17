"""The common parts of the demo's pages: headers, files, templates, and the check of posted data."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bottle

from ..errors import InvalidArgument, PgbusError
from ..web.representations import file_answer, page_answer
from ..web.requests import read_body
from ..web.responses import Answer, Refused

if TYPE_CHECKING:
    from pgbus_gevent import Bus

__all__ = [
    "HEADERS",
    "add_assets",
    "cursor_before",
    "json_answer",
    "page",
    "posted",
    "posted_text",
    "refusal",
    "template",
    "unavailable",
]

FOLDER = Path(__file__).parent
ASSETS = {
    "site.css": "text/css; charset=utf-8",
    "board.css": "text/css; charset=utf-8",
    "lab.css": "text/css; charset=utf-8",
    "site.js": "text/javascript; charset=utf-8",
    "board.js": "text/javascript; charset=utf-8",
    "lab.js": "text/javascript; charset=utf-8",
    "dark.js": "text/javascript; charset=utf-8",
    "hello.js": "text/javascript; charset=utf-8",
    "latency.js": "text/javascript; charset=utf-8",
}

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

MAX_BODY = 4096
"""The most bytes of a posted form."""

_BODY_WAIT = 5.0  # seconds within which it has to come

_UNAVAILABLE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="dark light"><title>pgbus_gevent</title><link rel="stylesheet" href="demo/site.css">
<script type="module" src="demo/dark.js"></script></head>
<body><main><h1>The board is dark</h1><p>The database cannot be reached. The board comes back by itself once it can.
<a href="">Try again</a></p></main></body>
</html>
"""

_CURSOR_BEFORE = """
select coalesce((select msg_id from pgbus.messages where stream = %s order by msg_id desc offset %s limit 1), 0)
"""

log = logging.getLogger(__name__)


def template(name: str) -> bottle.SimpleTemplate:
    """Return the template in a file of this folder. It can include others."""
    return bottle.SimpleTemplate(source=(FOLDER / name).read_text(encoding="utf-8"), lookup=[str(FOLDER)])


def add_assets(app: bottle.Bottle) -> None:
    """Serve the scripts and styles below ``/demo/``, each with its ETag. Other files of the folder are not served."""

    @app.get("/demo/<name>")  # type: ignore[untyped-decorator]
    def show_asset(name: str) -> Any:
        if name not in ASSETS:
            bottle.abort(404, "there is no such file")
        headers = [("Content-Type", ASSETS[name]), ("Cache-Control", "no-cache"), ("X-Content-Type-Options", "nosniff")]
        return _response(file_answer(bottle.request.environ, FOLDER / name, headers))


def page(html: str, status: int = 200, *more: tuple[str, str]) -> bottle.HTTPResponse:
    """Return a page with the pages' headers. It is compressed, so it must not have secrets: web/representations.py says why."""
    headers = [("Content-Type", "text/html; charset=utf-8"), *HEADERS.items(), *more]
    return _response(page_answer(bottle.request.environ, html.encode(), headers, status))


def json_answer(value: object, status: int = 200) -> bottle.HTTPResponse:
    """Return a value as a JSON response with the pages' headers."""
    return bottle.HTTPResponse(json.dumps(value), status, headers=HEADERS | {"Content-Type": "application/json"})


def unavailable(error: Exception) -> bottle.HTTPResponse:
    """Log the error, and return the response for a page whose data cannot be read."""
    log.warning("the demo cannot read its data: %s", error)
    return page(_UNAVAILABLE, 503, ("Retry-After", "5"))


def cursor_before(database_cursor: Any, stream: str, count: int) -> int:
    """Return the cursor after which the newest ``count`` messages of a stream follow. Reads in the caller's transaction."""
    database_cursor.execute(_CURSOR_BEFORE, (stream, count))
    (found,) = database_cursor.fetchone()
    return int(found)


def posted() -> dict[str, Any]:
    """Return the JSON object that a page of the demo has posted. Raises the HTTP response for other requests."""
    if not _from_our_own_page(bottle.request.environ):
        raise refusal(403, "only pages of the demo may post here")
    # A page of another site can post this type only after a CORS preflight, which fails.
    if bottle.request.content_type.partition(";")[0].strip().lower() != "application/json":
        raise refusal(415, "post application/json")
    try:
        found = json.loads(_body())
    except (ValueError, RecursionError):
        raise refusal(400, "the body is not JSON") from None
    if not isinstance(found, dict):
        raise refusal(400, "post a JSON object")
    return found


def posted_text() -> str:
    """Return the body of a POST by a program. Raises the HTTP response if it is too long or no text."""
    return _body()


def _body() -> str:
    length = bottle.request.content_length
    if not 0 <= length <= MAX_BODY:
        raise refusal(411 if length < 0 else 413, f"post at most {MAX_BODY} bytes, with a Content-Length")
    try:
        return read_body(bottle.request.environ, limit=MAX_BODY, timeout=_BODY_WAIT)
    except Refused as refused:
        raise refusal(refused.answer.status, refused.answer.body.decode().strip()) from None


@contextmanager
def publishing(bus: Bus) -> Iterator[Any]:
    """Run the block in a transaction, with its cursor. What is wrong with a message, or with the database, becomes the response."""
    try:
        with bus.transaction() as database_cursor:
            yield database_cursor
    except InvalidArgument as error:
        raise refusal(400, str(error)) from error
    except PgbusError as error:
        raise unavailable(error) from error


def refusal(status: int, why: str) -> bottle.HTTPResponse:
    """Return the response to a bad request, for the caller to raise."""
    return bottle.HTTPResponse(why, status, headers=HEADERS | {"Content-Type": "text/plain; charset=utf-8"})


def _response(answer: Answer) -> bottle.HTTPResponse:
    return bottle.HTTPResponse(answer.body, answer.status, answer.headers)


def _from_our_own_page(environ: dict[str, Any]) -> bool:
    """Whether the request is from a page of this origin, or not from a browser: browsers send one of these headers with a POST."""
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return bool(site == "same-origin")
    origin = environ.get("HTTP_ORIGIN")
    return origin is None or str(origin).partition("://")[2] == environ.get("HTTP_HOST")
