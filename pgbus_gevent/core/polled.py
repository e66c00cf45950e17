"""The answer to a poll: what a stream would have sent until now, mostly as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from .board import Board
from .client import Client
from .cursor import start_id
from .sse_parser import ParsedFrame, Parser

MAX_POLL = 60
"""The longest time, in seconds, that a poll can be asked to wait."""

FULL = 64 * 1024
"""Bytes of frames after which an answer takes no more. The last send may exceed it: by a page of the database, or one message."""

_CACHED = 16 * 1024  # bytes; larger sends are not kept, so that all that are kept take at most a megabyte
_IDENTITY = b"event: pgbus:identity\n"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def settled(board: Board, client: Client) -> bool:
    """Whether a client has been sent all that its worker knows of; True for one that has left."""
    return all(
        each.cursor is not None
        and each.lost is None
        and each not in board.ready
        and each not in board.waiting(each.log)
        and each.log not in board.moved
        for each in client.subscriptions
    )


class Refusal(NamedTuple):
    """An answer that is no JSON, because the poll ended before it had a cursor. ``retry_after`` is in whole seconds."""

    status: int
    line: str
    retry_after: int | None


class Polled:
    """Collects what one poll is sent, as whole frames, and makes the answer of it."""

    __slots__ = ("_parts", "size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0
        """Bytes of frames that wait for the answer."""

    @property
    def full(self) -> bool:
        """Whether the answer takes no more."""
        return self.size >= FULL

    def add(self, data: bytes) -> bool:
        """Take frames. Return whether there is something among them for which the client waits: a message or a gap."""
        self._parts.append(data)
        self.size += len(data)
        return not data.startswith(_IDENTITY)

    def frames(self, greeting: bytes, farewell: bytes) -> bytes:
        """Return the frames as they are, between those with which a stream would have begun and ended."""
        data = b"".join([greeting, *self._parts, farewell])
        self._clear()
        return data

    def _clear(self) -> None:
        self._parts.clear()
        self.size = 0

    def answer(self, streams: Sequence[str], cursors: Sequence[int], greeting: bytes, farewell: bytes = b"") -> bytes:
        """Return the answer as JSON. ``streams`` and ``cursors`` are those of the client, in its order.

        ``greeting`` and ``farewell`` are the frames with which a stream would have begun and ended; the latter is empty for the
        normal end of a poll.
        """
        messages: list[str] = []
        events: list[dict[str, Any]] = []
        facts: dict[str, Any] = {}
        for part in [greeting, *self._parts, farewell]:
            if len(streams) == 1 and len(part) <= _CACHED and b"event: pgbus:" not in part:
                messages += _messages_of(part, streams[0])
                continue
            for frame in Parser().feed(part):
                if not frame.event.startswith("pgbus:"):
                    messages.append(_message(frame, streams))
                elif frame.event == "pgbus:connected":
                    facts = json.loads(frame.data)
                else:
                    events.append({"event": frame.event, "data": json.loads(frame.data), "after": len(messages)})
                    if frame.retry is not None:
                        facts["retry"] = frame.retry
        self._clear()
        cursor: int | str = cursors[0] if len(cursors) == 1 else start_id(cursors)
        rest = _encode({"cursor": cursor, "events": events, **facts})
        return f'{{"messages":[{",".join(messages)}],{rest[1:]}\n'.encode()


def refused(farewell: bytes) -> Refusal:
    """Return the answer of a poll that ends with the frames ``farewell``, and has no cursor yet."""
    (last,) = Parser().feed(farewell)
    reason = json.loads(last.data)["reason"]
    status = {"too-many-connections": 429, "expired": 403, "revoked": 403}.get(reason, 503)
    retry = None if status == 403 else max(1, round((last.retry or 2000) / 1000))
    return Refusal(status, f"not now: {reason}", retry)


@lru_cache(maxsize=64)
def _messages_of(part: bytes, stream: str) -> tuple[str, ...]:
    """Return messages as JSON. Clients that wait for the same messages are sent the same bytes, so they are parsed once."""
    return tuple(_message(frame, (stream,)) for frame in Parser().feed(part))


def _message(frame: ParsedFrame, streams: Sequence[str]) -> str:
    """Return a message as JSON. With several streams, its id names its stream, or a comment does (:func:`sse.of_stream`)."""
    index, id = 0, frame.id
    if len(streams) > 1:
        if id is not None:
            first, _, cursors = id.partition("~")
            index = int(first)
            id = cursors.split(".")[index]
        else:
            index = int((frame.comment or "stream 0").rpartition(" ")[2])
    event = None if frame.event == "message" else frame.event
    return _encode(
        {"id": None if id is None else int(id), "event": event, "data": frame.data, "stream": streams[index]}
    )
