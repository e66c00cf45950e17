"""Cursors as clients write them: digits, nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import InvalidCursor
from ..messages import MAX_ID

_DIGITS = re.compile(r"[0-9]{1,16}", re.ASCII)


def parse_cursor(text: str, name: str = "since") -> int:
    """The cursor that ``text`` says; ``name`` is what to call it in the error, an :class:`InvalidCursor`.

    Clients bring back what they like: Last-Event-ID crosses origins without a preflight. So it is judged by one strict
    pattern, and an error shows it escaped and cut.
    """
    value = int(text) if _DIGITS.fullmatch(text) else None
    if value is None or value > MAX_ID:
        raise InvalidCursor(f"{name}={text[:40]!a} is not a cursor: it is a number from 0 to {MAX_ID}")
    return value


def parse_replay(text: str) -> int:
    """How many messages back ``replay`` asks for. Raises :class:`InvalidCursor`."""
    return parse_cursor(text, "replay")


def composite_id(index: int, cursors: Sequence[int]) -> str:
    """The id of a frame on a connection with several streams: which stream it is of, and where the client stands in all.

    Sent back by the client, it resumes every stream (:func:`parse_composite`).
    """
    return f"{index}~{'.'.join(map(str, cursors))}"


def start_id(cursors: Sequence[int]) -> str:
    """The id that tells where a client starts, in the order of its streams."""
    return str(cursors[0]) if len(cursors) == 1 else composite_id(0, cursors)


def parse_composite(text: str, streams: int, name: str = "since") -> list[int]:
    """The cursors of so many streams, in their order. Raises :class:`InvalidCursor`."""
    index, _, rest = text.partition("~")
    cursors = rest.split(".")
    if len(cursors) != streams or not _DIGITS.fullmatch(index) or int(index) >= streams:
        raise InvalidCursor(f"{name}={text[:40]!a} is not a cursor of {streams} streams")
    return [parse_cursor(cursor, name) for cursor in cursors]


def is_composite(text: str) -> bool:
    """Whether it has the form of an id of a connection with several streams."""
    return "~" in text
