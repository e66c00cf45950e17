"""Serves ``static/pgbus.js``, the element for browsers, and its source map. ``js/`` has its sources, and builds both."""

from __future__ import annotations

import gzip
from functools import cache
from hashlib import sha256
from pathlib import Path

from .responses import Answer, Environ, Headers

_STATIC = Path(__file__).with_name("static")

# A short time, because the URL does not change with the version. After it, the browser asks again and gets a 304.
_CACHED: Headers = [
    ("cache-control", "public, max-age=300"),
    ("vary", "accept-encoding"),
    ("x-content-type-options", "nosniff"),
]


def element(environ: Environ) -> Answer:
    """The module, or a 304 if the client has it already."""
    return _file(environ, "pgbus.js", "text/javascript; charset=utf-8")


def source_map(environ: Environ) -> Answer:
    """The map from the module to its sources, which it contains. Only the tools of developers ask for it."""
    return _file(environ, "pgbus.js.map", "application/json")


def _file(environ: Environ, name: str, kind: str) -> Answer:
    zipped = _takes_gzip(str(environ.get("HTTP_ACCEPT_ENCODING", "")))
    body, etag = _read(name, zipped)
    headers = [("etag", etag), *_CACHED]
    if _has(str(environ.get("HTTP_IF_NONE_MATCH", "")), etag):
        return Answer(304, b"", headers)
    if zipped:
        headers.append(("content-encoding", "gzip"))
    return Answer(200, body, [("content-type", kind), *headers])


@cache
def _read(name: str, zipped: bool) -> tuple[bytes, str]:
    """The body, and its strong ETag."""
    body = (_STATIC / name).read_bytes()
    if zipped:
        body = gzip.compress(body, 9, mtime=0)
    return body, f'"{sha256(body).hexdigest()[:32]}"'


def _takes_gzip(accept_encoding: str) -> bool:
    """Whether the client accepts gzip: it names it, with a weight above 0 (RFC 9110, section 12.5.3)."""
    for coding in accept_encoding.lower().split(","):
        name, _, weight = coding.partition(";")
        if name.strip() == "gzip":
            return weight.strip().rstrip("0.") != "q="
    return False


def _has(if_none_match: str, etag: str) -> bool:
    """Whether the client has it. The comparison is weak (RFC 9110, section 13.1.2), as proxies that compress make an ETag weak."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or "*" in tags
