"""HTTP's chunked transfer coding, as bytes: https://www.rfc-editor.org/rfc/rfc9112#section-7.1.

With it a client of an HTTP library gets each write as it comes. Without a length and without chunks, urllib3, and what is built
upon it, hold small messages back until some hundred bytes or more are there.
"""

from __future__ import annotations

from functools import lru_cache

LAST = b"0\r\n\r\n"
"""Ends the body: the client knows that nothing is missing."""

COPIED = 4096
"""Bytes up to which :func:`chunk` is cheaper than writing head, data and end as they are."""

END = b"\r\n"


def head(size: int) -> bytes:
    """What stands before ``size`` bytes of data; :data:`END` goes behind them."""
    return b"%x\r\n" % size


@lru_cache(maxsize=16)
def chunk(data: bytes) -> bytes:
    """A whole chunk of little data; it is the same object for all connections of a pass, which keep what they have yet to send."""
    return b"%x\r\n%b\r\n" % (len(data), data)
