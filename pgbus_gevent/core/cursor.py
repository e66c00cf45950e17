"""Cursors as clients write them: decimal digits and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import InvalidCursor
from ..messages import MAX_ID

_DIGITS = re.compile(r"[0-9]{1,16}", re.ASCII)


def parse_cursor(text: str, name: str = "since") -> int:
    """Return the cursor in ``text``, or raise :class:`InvalidCursor`, which calls the value ``name``.

    The text is untrusted: browsers send Last-Event-ID to other origins without a preflight. It therefore has to match one
    strict pattern, and the error shows it escaped and cut to 40 characters.
    """
    return _number(text, name, "a cursor")


def parse_replay(text: str, name: str = "replay") -> int:
    """Return the count of messages in ``text``, or raise :class:`InvalidCursor`, which calls the value ``name``."""
    return _number(text, name, "a count of messages")


def _number(text: str, name: str, what: str) -> int:
    value = int(text) if _DIGITS.fullmatch(text) else None
    if value is None or value > MAX_ID:
        raise InvalidCursor(f"{name}={text[:40]!a} is not {what}: it is a number from 0 to {MAX_ID}")
    return value


def composite_id(index: int, cursors: Sequence[int]) -> str:
    """Return the id of a frame on a connection with several streams: the index of its stream, and the cursors in all streams.

    If the client sends it back, every stream resumes from it (:func:`parse_composite`).
    """
    return f"{index}~{'.'.join(map(str, cursors))}"


def start_id(cursors: Sequence[int]) -> str:
    """Return the id of a client's first frame, which holds the cursors from which it starts, in the order of its streams."""
    return str(cursors[0]) if len(cursors) == 1 else composite_id(0, cursors)


def parse_composite(text: str, streams: int, name: str = "since") -> list[int]:
    """Return the cursors of ``streams`` streams, in their order. Raises :class:`InvalidCursor`."""
    index, _, rest = text.partition("~")
    cursors = rest.split(".")
    if len(cursors) != streams or not _DIGITS.fullmatch(index) or int(index) >= streams:
        raise InvalidCursor(f"{name}={text[:40]!a} is not a cursor of {streams} streams")
    return [parse_cursor(cursor, name) for cursor in cursors]


def is_composite(text: str) -> bool:
    """Whether ``text`` has the form of an id of a connection with several streams."""
    return "~" in text
