"""Marks and time stamps in the published messages, by which clients count and time them without parsing.

The mark is one byte, so it is never split over two reads, and servers send it nowhere else. The time stamp after it is from
the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

from time import monotonic_ns

MARK = b"@"
"""The mark, once in every message."""

DIGITS = 16
"""The digits of the time stamp that follows, in microseconds."""

_FIELDS = len("data: \nid: 1700000000000000\n\n")


def now() -> int:
    """Return the monotonic time in microseconds."""
    return monotonic_ns() // 1000


def data(size: int, stamp: int) -> str:
    """Return the data of a message whose frame has about ``size`` bytes, with a time stamp.

    The stamp is at the end, so that a large message is timed once all of it has arrived.
    """
    return f"@{stamp:0{DIGITS}d};".rjust(size - _FIELDS, "x")


def frame(data: str) -> bytes:
    """Return the data as a whole frame, for servers that pass on bytes unchanged."""
    return f"data: {data}\nid: 1700000000000000\n\n".encode()
