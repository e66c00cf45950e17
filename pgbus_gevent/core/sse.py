"""Frames of an event stream, as bytes.

The format is https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation: a line break of any kind
ends a line, so data with line breaks becomes one ``data`` field for each of its lines, and no other field may have one
in it. The functions return whole frames, each ended by a blank line, but for :func:`retry` and :func:`heartbeat`: a blank line
behind those would be an empty event to clients that dispatch every one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .cursor import start_id

_LINE_BREAK = re.compile("\r\n|\r|\n")
# str.splitlines would also split at U+2028 and others, which are no line breaks to an event stream.


def message(data: str, *, event: str | None = None, id: int | str | None = None) -> bytes:
    """A message; one without an id leaves the client's cursor where it is.

    The id is last: many clients take it when its line arrives, and would otherwise lose a message that is cut in the middle.
    """
    head = f"event: {event}\n" if event else ""
    tail = f"id: {id}\n\n" if id is not None else "\n"
    if "\n" in data or "\r" in data:
        data = "\ndata: ".join(_LINE_BREAK.split(data))
    return f"{head}data: {data}\n{tail}".encode()


def readdressed(frame: bytes, id: str) -> bytes:
    """A message's frame with another id: its last line is the id, and all else is as it was encoded once for everybody."""
    return b"%sid: %s\n\n" % (frame[: frame.rindex(b"\n", 0, -2) + 1], id.encode())


def of_stream(frame: bytes, index: int) -> bytes:
    """A frame without an id, with a comment in it that tells which of a connection's streams it is of, counted from 0."""
    return b": stream %d\n%s" % (index, frame)


def retry(seconds: float) -> bytes:
    """How long the client is to wait before it connects again; the line alone, to go before a frame."""
    return b"retry: %d\n" % round(seconds * 1000)


def heartbeat(now: float) -> bytes:
    """The comment that keeps a quiet connection alive, a line alone; ``now`` in Unix seconds."""
    return b": heartbeat %d\n" % now


def control(name: str, value: Mapping[str, Any], *, id: str | None = None) -> bytes:
    """A control frame: ``pgbus:<name>`` with JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return message(text, event=f"pgbus:{name}", id=id)


class Opened(NamedTuple):
    """One stream of a connection: from which cursor it starts, the stream's last id, and as whom it is followed."""

    name: str
    since: int
    last_id: int
    identity: str | None = None


def connected(
    connection_id: str,
    streams: Sequence[Opened],
    *,
    retry_after: float,
    heartbeat: float,
    identity: str | None = None,
) -> bytes:
    """The first frame: when to come back, what is open and from where, and the facts of the connection.

    One frame, as some clients take each blank line for the end of an event. Its id is where the client starts: one that is cut off
    before its first message comes back from there. ``retry_after`` and ``heartbeat``, the interval, are in seconds. ``identity``
    is that of the whole connection; a stream tells its own where that is another.
    """
    # For somebody with curl.
    comments = "".join(f": pgbus open stream={stream.name} since={stream.since}\n" for stream in streams)
    facts = {
        "connectionId": connection_id,
        "heartbeat": int(heartbeat) if heartbeat == int(heartbeat) else heartbeat,
        "identity": identity,
        "streams": [{"name": each.name, "lastId": each.last_id, **_own(each.identity, identity)} for each in streams],
    }
    frame = control("connected", facts, id=start_id([stream.since for stream in streams]))
    return retry(retry_after) + comments.encode() + frame


def identified(identity: str | None, streams: Sequence[tuple[str, str | None]]) -> bytes:
    """The connection goes on as somebody else's: its identity from here on, and that of each stream, by name."""
    listed = [{"name": name, **_own(own, identity)} for name, own in streams]
    return control("identity", {"identity": identity, "streams": listed})


def _own(identity: str | None, whole: str | None) -> dict[str, Any]:
    return {} if identity == whole else {"identity": identity}


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
