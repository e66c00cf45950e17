"""Serves ``static/pgbus.js``, the element for browsers, and its source map. ``js/`` has its sources, and builds both."""

from __future__ import annotations

from pathlib import Path

from .representations import file_answer
from .responses import Answer, Environ, Headers

_STATIC = Path(__file__).with_name("static")

# A short time, because the URL does not change with the version. After it, the browser asks again and gets a 304.
_CACHED: Headers = [("cache-control", "public, max-age=300"), ("x-content-type-options", "nosniff")]


def element(environ: Environ) -> Answer:
    """The module, or a 304 if the client has it already."""
    return file_answer(environ, _STATIC / "pgbus.js", [("content-type", "text/javascript; charset=utf-8"), *_CACHED])


def source_map(environ: Environ) -> Answer:
    """The map from the module to its sources, which it contains. Only the tools of developers ask for it."""
    return file_answer(environ, _STATIC / "pgbus.js.map", [("content-type", "application/json"), *_CACHED])
