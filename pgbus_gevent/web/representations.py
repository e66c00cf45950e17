"""Files and pages as the client accepts them: plain, or compressed with gzip or brotli, each with its own strong ETag.

Whatever the package serves to browsers, but for streams and JSON, is answered by :func:`file_answer` or :func:`page_answer`.

The length of a compressed answer tells whether two texts in it are alike. Who chooses one of them, and sees how long the
encrypted answers are, can guess the other (BREACH). So nothing is compressed that has a secret beside text which others choose:
the files have no secrets, the console's two pages are such files, and the demo's pages show what everybody may see. The console's
data, the metrics and the streams are not compressed.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import brotli
import gevent
from gevent.lock import RLock

from .responses import Answer, Environ, Headers

BROTLI, GZIP, IDENTITY = "br", "gzip", "identity"
_CODINGS = (BROTLI, GZIP, IDENTITY)
"""In the order in which we choose among those that the client likes best: the smaller one first."""

_ONCE: dict[str, Callable[[bytes], bytes]] = {
    BROTLI: lambda plain: _brotli(plain, 11),
    GZIP: lambda plain: gzip.compress(plain, 9, mtime=0),
}
_EACH_TIME: dict[str, Callable[[bytes], bytes]] = {
    BROTLI: lambda plain: _brotli(plain, 5),
    GZIP: lambda plain: gzip.compress(plain, 6, mtime=0),
}


class Representation(NamedTuple):
    """What is sent of a file or a page in one coding."""

    coding: str
    body: bytes
    etag: str


def file_answer(environ: Environ, path: Path, headers: Headers, status: int = 200) -> Answer:
    """Answer with a file that does not change while the process runs. ``headers`` has its content-type.

    The first answer in a coding waits until a thread has compressed the file as well as it can.
    """
    return _answer(environ, _file(path).in_coding(_wanted(environ)), headers, status)


def page_answer(environ: Environ, page: bytes, headers: Headers, status: int = 200) -> Answer:
    """Answer with a page that was made for this request. It is compressed quickly, in about a millisecond for 50 kB."""
    coding = _wanted(environ)
    return _answer(environ, _represented(page, coding, _EACH_TIME), headers, status)


def _answer(environ: Environ, found: Representation, headers: Headers, status: int) -> Answer:
    headers = [*headers, ("vary", "accept-encoding")]
    if status == 200:
        # Other statuses are about the request, and conditions do not apply to them (RFC 9110, section 13.2.1).
        headers.append(("etag", found.etag))
        if has(str(environ.get("HTTP_IF_NONE_MATCH", "")), found.etag):
            return Answer(304, b"", [(name, value) for name, value in headers if name.lower() != "content-type"])
    if found.coding != IDENTITY:
        headers.append(("content-encoding", found.coding))
    return Answer(status, found.body, headers)


class _File:
    """The representations of one file. Each is made once, by the first request for it."""

    def __init__(self, path: Path) -> None:
        self._plain = path.read_bytes()
        self._made = {IDENTITY: _represented(self._plain, IDENTITY, _ONCE)}
        self._lock = RLock()

    def in_coding(self, coding: str) -> Representation:
        if coding not in self._made:
            with self._lock:
                if coding not in self._made:
                    # Brotli at its best takes up to 0.3 seconds for the files of this package. No stream may wait that long.
                    pool = gevent.get_hub().threadpool
                    self._made[coding] = pool.apply(_represented, (self._plain, coding, _ONCE))
        return self._made[coding]


_file = cache(_File)


def _represented(plain: bytes, coding: str, compress: dict[str, Callable[[bytes], bytes]]) -> Representation:
    body = plain if coding == IDENTITY else compress[coding](plain)
    return Representation(coding, body, f'"{sha256(body).hexdigest()[:32]}"')


def _brotli(plain: bytes, quality: int) -> bytes:
    # A larger window than the text only takes memory: 30 MB while a file is compressed. Brotli's bounds are 10 and 24.
    window = min(max(len(plain).bit_length(), 10), 24)
    return bytes(brotli.compress(plain, mode=brotli.MODE_TEXT, quality=quality, lgwin=window))


# the request ----------------------------------------------------------------------------------------------------------

_ITEM = re.compile(r"([!#$%&'*+.^_`|~0-9a-z-]+)(?:[ \t]*;[ \t]*q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?")


def _wanted(environ: Environ) -> str:
    return coding_for(str(environ.get("HTTP_ACCEPT_ENCODING", "")))


def coding_for(accept_encoding: str) -> str:
    """The coding that a client likes best, by RFC 9110, section 12.5.3. If it accepts none of ours, ``identity``.

    What does not have the form of that section counts as not written.
    """
    weights: dict[str, float] = {}
    for written in accept_encoding.lower().split(","):
        item = _ITEM.fullmatch(written.strip(" \t"))
        if item is not None:
            name = item[1].removeprefix("x-") if item[1] == "x-gzip" else item[1]
            weights.setdefault(name, float(item[2] or 1))
    rest = weights.get("*", 0.0)
    best = max(_CODINGS, key=lambda coding: weights.get(coding, rest))
    return best if weights.get(best, rest) > 0 else IDENTITY


_ETAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')


def has(if_none_match: str, etag: str) -> bool:
    """Whether the client has the representation with this ETag.

    The comparison is weak (RFC 9110, section 13.1.2), as proxies that compress make an ETag weak.
    """
    return if_none_match.strip() == "*" or etag in _ETAG.findall(if_none_match)
