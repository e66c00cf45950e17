"""The memory that a process uses of what it has taken from the system. It runs inside that process.

Resident memory also counts what was freed and kept by the allocators for later: whole pages, and holes between blocks that are in
use. It can rise although no more is in use.
"""

from __future__ import annotations

import ctypes
import sys


class _Info(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33 and later, in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def in_use() -> dict[str, int]:
    """Return the number of Python's small blocks, and how many bytes of malloc's heap are in use and free.

    Without glibc, only the blocks are counted.
    """
    found = {"blocks": sys.getallocatedblocks()}
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is not None:
        ask.restype = _Info
        info = ask()
        found |= {"heap": info.uordblks + info.hblkhd, "free": info.fordblks}
    return found


def trim() -> None:
    """Give the free pages of malloc's heap back to the system, as far as the C library can."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
