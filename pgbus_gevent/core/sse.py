"""Frames of an event stream, as bytes.

The format is https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation: a line break of any kind
ends a line, so data with line breaks becomes one ``data`` field for each of its lines, and no other field may have one
in it. Each function returns whole frames, each ended by a blank line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

_LINE_BREAK = re.compile("\r\n|\r|\n")
# str.splitlines would also split at U+2028 and others, which are no line breaks to an event stream.


def message(data: str, *, event: str | None = None, id: int | None = None) -> bytes:
    """A message; one without an id leaves the client's cursor where it is."""
    head = f"id: {id}\n" if id is not None else ""
    if event:
        head += f"event: {event}\n"
    if "\n" in data or "\r" in data:
        data = "\ndata: ".join(_LINE_BREAK.split(data))
    return f"{head}data: {data}\n\n".encode()


def readdressed(frame: bytes, id: str) -> bytes:
    """A message's frame with another id: its first line is the id, and all else is as it was encoded once for everybody."""
    return b"id: %s%s" % (id.encode(), frame[frame.index(b"\n") :])


def of_stream(frame: bytes, index: int) -> bytes:
    """A frame without an id, with a comment in it that tells which of a connection's streams it is of, counted from 0."""
    return b": stream %d\n%s" % (index, frame)


def comment(text: str) -> bytes:
    """A comment, which EventSource passes over."""
    return f": {text}\n\n".encode()


def retry(seconds: float) -> bytes:
    """How long the client is to wait before it connects again."""
    return b"retry: %d\n\n" % round(seconds * 1000)


def heartbeat(now: float) -> bytes:
    """The comment that keeps a quiet connection alive; ``now`` in Unix seconds."""
    return b": heartbeat %d\n\n" % now


def control(name: str, value: Mapping[str, Any]) -> bytes:
    """A control frame: ``pgbus:<name>`` with JSON. It has no id, so it never moves a cursor."""
    return message(json.dumps(value, ensure_ascii=False, separators=(",", ":")), event=f"pgbus:{name}")


def opened(stream: str, since: int) -> bytes:
    """The comment that tells somebody with curl what is open and from where."""
    return comment(f"pgbus open stream={stream} since={since}")


def connected(connection_id: str, streams: Iterable[tuple[str, int]]) -> bytes:
    """The first control frame: the connection's id, and of each stream its name and last id."""
    listed = [{"name": name, "lastId": last_id} for name, last_id in streams]
    return control("connected", {"connectionId": connection_id, "streams": listed})


def gap_detected(stream: str, *, requested: int | None, oldest: int, last: int, reason: str) -> bytes:
    """Messages between ``requested`` and ``oldest`` are gone; reasons: expired, ahead, invalid-cursor."""
    return control(
        "gap-detected",
        {"stream": stream, "requestedId": requested, "oldestId": oldest, "lastId": last, "reason": reason},
    )


def shutdown(reason: str, retry_after: float | None = None) -> bytes:
    """The last frame before a planned close; ``retry_after`` in seconds goes before it."""
    frame = control("shutdown", {"reason": reason})
    return frame if retry_after is None else retry(retry_after) + frame
