"""What the published messages carry, so that who receives them can count and time them without parsing anything.

A mark of one byte can never be split over two reads, and nothing else that servers send has it. The time stamp after it is
of the monotonic clock, which is one for all processes of a machine.
"""

from __future__ import annotations

from time import monotonic_ns

MARK = b"@"
"""Once in every message."""

DIGITS = 16
"""Of the time stamp that follows, in microseconds."""

_FIELDS = len("data: \nid: 1700000000000000\n\n")


def now() -> int:
    """Microseconds of the monotonic clock."""
    return monotonic_ns() // 1000


def data(size: int, stamp: int) -> str:
    """The data of a message whose frame is about ``size`` bytes, with a time stamp.

    At its end, so that a large message is timed when all of it is there.
    """
    return f"@{stamp:0{DIGITS}d};".rjust(size - _FIELDS, "x")


def frame(data: str) -> bytes:
    """The same as a whole frame, for servers that pass on bytes as they are."""
    return f"data: {data}\nid: 1700000000000000\n\n".encode()
