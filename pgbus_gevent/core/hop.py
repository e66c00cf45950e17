"""The hop between an edge and its origin: addresses, headers, and the questions and answers of reads, as JSON.

Both sides use this module, so what one side writes the other one reads. A release that changes any of it in a way that the other
side cannot read changes :data:`HOP`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from ..messages import MAX_ID
from .names import check_data, check_name
from .rows import ChangeReads, Mark, MessageReads, Opening, OpenQuestion, PageRows, Revoked, Row

HOP = 1
"""The version of the hop."""

VERSION_HEADER = "pgbus-hop"
"""The header with the version, in requests and answers."""

VIA_HEADER = "pgbus-via"
"""The header with the ids of the edges that a read has passed, separated by commas."""

MAX_EDGES = 8
"""The most edges that a read may pass."""

WAKES, READS = "/edges/wakes", "/edges/reads"
"""The paths below the prefix: for the connection on which new messages come, and for reads."""

GREETING = "pgbus:hop"
"""The event of the first frame of a connection for new messages."""

SHUTDOWN = "pgbus:shutdown"
"""The event of the last frame of a connection that its origin ends."""

HEARTBEAT = 2.0
"""Seconds of quiet after which the origin sends a heartbeat. An edge gives a connection up after three times as long."""

MAX_BODY = 32 * 1024 * 1024
"""The largest body of a request, in bytes: enough for the names and heads of more than a hundred thousand streams."""

MAX_ROWS, MAX_SIZE = 10_000, 1024 * 1024
"""The most messages, and about the most bytes, that a read may ask for of one stream."""


class Source(MessageReads, ChangeReads, Protocol):
    """The reads of the streamer that an edge asks its origin for."""

    def revocations(self, after: Mark | None = None, *, recent: bool = False) -> Revoked: ...


def written(value: Any) -> bytes:
    """Return a question or an answer as JSON, as short as it can be."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def answer(source: Source, read: Mapping[str, Any]) -> Any:
    """Return the answer to a read that an edge asks for, as a value that JSON can hold.

    Raises :class:`ValueError`, :class:`TypeError` or :class:`KeyError` if the question is malformed, and the errors of ``source``.
    """
    kind = read["read"]
    if kind == "openings":
        questions = [
            OpenQuestion(check_name(name), _maybe(cursor), _maybe(replay)) for name, cursor, replay in read["of"]
        ]
        found = source.openings(
            questions, limit=_at_most(read["limit"], MAX_ROWS), size=_at_most(read["size"], MAX_SIZE)
        )
        return [each._replace(rows=list(map(_written_row, each.rows))) for each in found]
    if kind == "pages":
        cursors = [(check_name(name), _id(cursor)) for name, cursor in read["of"]]
        pages = source.pages(cursors, limit=_at_most(read["limit"], MAX_ROWS), size=_at_most(read["size"], MAX_SIZE))
        return [each._replace(rows=list(map(_written_row, each.rows))) for each in pages]
    if kind == "moved":
        heads = {check_name(name): _id(head) for name, head in read["of"].items()}
        return source.moved(heads, {check_name(name) for name in read["pruned"]})
    if kind == "inventory":
        ranges = [(check_name(name), _id(floor), _id(head)) for name, floor, head in read["of"]]
        return source.inventory(ranges) if ranges else []
    if kind == "revocations":
        after = read["after"]
        return source.revocations(None if after is None else _mark(*after), recent=bool(read["recent"]))
    raise ValueError(f"unknown read {kind!r:.40}")


# Answers raise the same errors as questions if they are malformed. Otherwise what is wrong in them would end the part that reads.


def openings(found: Any, count: int) -> list[Opening]:
    """Return the answer to the read ``openings`` about ``count`` streams, from JSON."""
    return [
        Opening(_id(head), _id(horizon), _id(oldest), _id(start), _id(floor), [_row(*row) for row in rows])
        for head, horizon, oldest, start, floor, rows in _each(found, count)
    ]


def pages(found: Any, count: int) -> list[PageRows]:
    """Return the answer to the read ``pages`` about ``count`` streams, from JSON."""
    return [
        PageRows([_row(*row) for row in rows], _id(horizon), bool(more), *map(_id, facts))
        for rows, horizon, more, *facts in _each(found, count)
    ]


def moved(found: Any) -> tuple[int, dict[str, int]]:
    """Return the answer to the read ``moved``, from JSON."""
    newest, heads = found
    return _id(newest), {check_name(name): _id(head) for name, head in dict(heads).items()}


def inventory(found: Any, count: int) -> list[tuple[int, int, int]]:
    """Return the answer to the read ``inventory`` about ``count`` ranges, from JSON."""
    return [(_id(horizon), _id(number), _whole(total)) for horizon, number, total in _each(found, count)]


def revoked(found: Any) -> Revoked:
    """Return the answer to the read ``revocations``, from JSON."""
    rows, mark = found
    return Revoked([(_whole(id), check_data(owner)) for id, owner in rows], _mark(*mark))


def _each(found: Any, count: int) -> list[Any]:
    if not isinstance(found, list) or len(found) != count:
        raise ValueError(f"not a list of {count}")
    return found


def _written_row(row: Row) -> Any:
    """Return a row without time and trace, which this version of the hop does not have."""
    return row[:6]


def _row(id: Any, event: Any, data: Any, visible_to: Any, exclude: Any, prev_id: Any) -> Row:
    for text in (event, visible_to, exclude):
        if text is not None:
            check_data(text)
    return Row(_id(id), event, check_data(data), visible_to, exclude, None if prev_id is None else _whole(prev_id))


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"not a whole number: {value!r:.40}")
    return value


def streams_of(body: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the streams that an edge wants to follow, each with the edge's head, or None if it does not know the stream.

    Raises :class:`ValueError`, :class:`TypeError` or :class:`KeyError` if the body is malformed.
    """
    return {check_name(name): _maybe(cursor) for name, cursor in body["streams"].items()}


def _mark(home: Any, xid: Any) -> Mark:
    if type(home) is not str or type(xid) is not int:
        raise ValueError("not a mark")
    return Mark(home, xid)


def _id(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise ValueError(f"not an id: {value!r:.40}")
    return value


def _maybe(value: Any) -> int | None:
    return None if value is None else _id(value)


def _at_most(value: Any, most: int) -> int:
    return min(_id(value), most)
