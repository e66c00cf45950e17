"""What the demo's pages have in common: their headers, files and templates, and who may post to them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import bottle

__all__ = ["HEADERS", "add_assets", "cursor_before", "json_answer", "posted", "refusal", "template", "unavailable"]

FOLDER = Path(__file__).parent
ASSETS = {
    "site.css": "text/css",
    "board.css": "text/css",
    "lab.css": "text/css",
    "site.js": "text/javascript",
    "board.js": "text/javascript",
    "lab.js": "text/javascript",
}

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

MAX_BODY = 4096
"""Bytes of a posted form."""

_UNAVAILABLE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="dark light"><meta http-equiv="refresh" content="5"><title>pgbus_gevent</title></head>
<body><h1>The board is dark</h1><p>Its database cannot be reached. This page tries again every five seconds.</p></body>
</html>
"""

_CURSOR_BEFORE = """
select coalesce((select msg_id from pgbus.messages where stream = %s order by msg_id desc offset %s limit 1), 0)
"""

log = logging.getLogger(__name__)


def template(name: str) -> bottle.SimpleTemplate:
    """The template in that file of this folder; it can include others."""
    return bottle.SimpleTemplate(source=(FOLDER / name).read_text(encoding="utf-8"), lookup=[str(FOLDER)])


def add_assets(app: bottle.Bottle) -> None:
    """Serve the scripts and styles below ``/demo/``, each with its ETag, and nothing else of the folder."""

    @app.get("/demo/<name>")  # type: ignore[untyped-decorator]
    def show_asset(name: str) -> Any:
        if name not in ASSETS:
            bottle.abort(404, "there is no such file")
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return bottle.static_file(name, root=str(FOLDER), mimetype=ASSETS[name], headers=headers)


def json_answer(value: object, status: int = 200) -> bottle.HTTPResponse:
    """A value as JSON, with the headers of the pages."""
    return bottle.HTTPResponse(json.dumps(value), status, headers=HEADERS | {"Content-Type": "application/json"})


def unavailable(error: Exception) -> bottle.HTTPResponse:
    """The answer while the database cannot be reached."""
    log.warning("the demo has nothing to show: %s", error)
    return bottle.HTTPResponse(_UNAVAILABLE, 503, headers=HEADERS | {"Retry-After": "5"})


def cursor_before(cursor: Any, stream: str, count: int) -> int:
    """The cursor of who wants the newest `count` messages of a stream, and what comes; in the caller's transaction."""
    cursor.execute(_CURSOR_BEFORE, (stream, count))
    (found,) = cursor.fetchone()
    return int(found)


def posted() -> dict[str, Any]:
    """The JSON object that one of our own pages has posted. Raises the HTTP answer for everything else."""
    if not _from_our_own_page(bottle.request.environ):
        raise refusal(403, "this is for pages of the demo itself")
    # A page of another site can post this type only after asking, and it would be refused.
    if bottle.request.content_type.partition(";")[0].strip().lower() != "application/json":
        raise refusal(415, "post application/json")
    length = bottle.request.content_length
    if not 0 <= length <= MAX_BODY:
        raise refusal(411 if length < 0 else 413, f"post at most {MAX_BODY} bytes, and say how many")
    try:
        found = json.loads(bottle.request.body.read(MAX_BODY))
    except (ValueError, RecursionError):
        raise refusal(400, "that is not JSON") from None
    if not isinstance(found, dict):
        raise refusal(400, "post a JSON object")
    return found


def refusal(status: int, why: str) -> bottle.HTTPResponse:
    """The answer, to be raised, to a request that makes no sense."""
    return bottle.HTTPResponse(why, status, headers=HEADERS | {"Content-Type": "text/plain; charset=utf-8"})


def _from_our_own_page(environ: dict[str, Any]) -> bool:
    """Whether a browser says so, or it is no browser's request: a browser sends at least one of the two with a POST."""
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return bool(site == "same-origin")
    origin = environ.get("HTTP_ORIGIN")
    return origin is None or str(origin).partition("://")[2] == environ.get("HTTP_HOST")
