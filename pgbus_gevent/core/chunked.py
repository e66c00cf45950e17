"""HTTP's chunked transfer coding, as bytes: https://www.rfc-editor.org/rfc/rfc9112#section-7.1.

With it an HTTP library hands each write to its caller at once. If a response has neither a length nor chunks, urllib3 and the
libraries built on it hold small messages back until several hundred bytes have arrived.
"""

from __future__ import annotations

from functools import lru_cache

LAST = b"0\r\n\r\n"
"""The last chunk. It ends the body, so the client knows that nothing is missing."""

COPIED = 4096
"""Up to this many bytes, copying data with :func:`chunk` is cheaper than writing size line, data and end as three pieces."""

END = b"\r\n"


def size_line(size: int) -> bytes:
    """Return the line that precedes ``size`` bytes of data; :data:`END` follows them."""
    return b"%x\r\n" % size


@lru_cache(maxsize=16)
def chunk(data: bytes) -> bytes:
    """Return ``data`` as a whole HTTP chunk.

    The cache returns the same object for all connections of a pass, so connections that are blocked share its memory.
    """
    return b"%x\r\n%b\r\n" % (len(data), data)
