"""Serves ``static/pgbus.js``, the element for browsers, without comments and indentation, and compressed."""

from __future__ import annotations

import gzip
import re
from functools import cache
from hashlib import sha256
from pathlib import Path

from .responses import Answer, Environ, Headers

_SOURCE = Path(__file__).with_name("static") / "pgbus.js"
# Comments that have their lines to themselves, and the space before lines. No string in the file spans several lines.
_NOT_SENT = re.compile(r"^\s*/\*\*.*?\*/\s*|^\s*//[^\n]*\n|^\s+", re.MULTILINE | re.DOTALL)

# A short time, because the URL does not change with the version. After it, the browser asks again and gets a 304.
_CACHED: Headers = [
    ("cache-control", "public, max-age=300"),
    ("vary", "accept-encoding"),
    ("x-content-type-options", "nosniff"),
]


def element(environ: Environ) -> Answer:
    """The module, or a 304 if the client has it already."""
    zipped = _takes_gzip(str(environ.get("HTTP_ACCEPT_ENCODING", "")))
    body, etag = _module(zipped)
    headers = [("etag", etag), *_CACHED]
    if _has(str(environ.get("HTTP_IF_NONE_MATCH", "")), etag):
        return Answer(304, b"", headers)
    if zipped:
        headers.append(("content-encoding", "gzip"))
    return Answer(200, body, [("content-type", "text/javascript; charset=utf-8"), *headers])


@cache
def _module(zipped: bool) -> tuple[bytes, str]:
    """The body, and its strong ETag."""
    body = _NOT_SENT.sub("", _SOURCE.read_text(encoding="utf-8")).encode()
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
