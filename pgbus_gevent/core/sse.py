"""Frames of an event stream, as bytes.

The format is https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation. A line break of any kind
ends a line. Data with line breaks therefore becomes one ``data`` field for each line, and no other field may contain a line
break. The functions return whole frames, which end with a blank line. :func:`retry` and :func:`heartbeat` return a line without
one, because some clients would dispatch an empty event at the blank line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .cursor import start_id

_HEARTBEAT = b": heartbeat "
_LINE_BREAK = re.compile("\r\n|\r|\n")
# Not str.splitlines, which also splits at U+2028 and other characters that do not end a line of an event stream.


def message(data: str, *, event: str | None = None, id: int | str | None = None) -> bytes:
    """Return the frame of a message. If it has no id, the client's cursor does not move.

    The id is the last field, because many clients store the id when its line arrives. If it came first, and the connection broke
    within the frame, they would resume after a message that they do not have.
    """
    head = f"event: {event}\n" if event else ""
    tail = f"id: {id}\n\n" if id is not None else "\n"
    if "\n" in data or "\r" in data:
        data = "\ndata: ".join(_LINE_BREAK.split(data))
    return f"{head}data: {data}\n{tail}".encode()


def readdressed(frame: bytes, id: str) -> bytes:
    """Return a message's frame with another id. Only the last line changes, so the rest need not be encoded again."""
    return b"%sid: %s\n\n" % (frame[: frame.rindex(b"\n", 0, -2) + 1], id.encode())


def of_stream(frame: bytes, index: int) -> bytes:
    """Return a frame without an id, after a comment with the index of its stream in the connection, from 0."""
    return b": stream %d\n%s" % (index, frame)


def retry(seconds: float) -> bytes:
    """Return the line that says how long a client waits before it connects again. It goes before a frame."""
    return b"retry: %d\n" % round(seconds * 1000)


def heartbeat(now: float) -> bytes:
    """Return the comment line that keeps a quiet connection alive. ``now`` is in Unix seconds."""
    return b"%s%d\n" % (_HEARTBEAT, now)


def is_heartbeat(data: bytes) -> bool:
    """Whether ``data`` is what :func:`heartbeat` has made."""
    return data.startswith(_HEARTBEAT)


def control(name: str, value: Mapping[str, Any], *, id: str | None = None) -> bytes:
    """Return a control frame: the event ``pgbus:<name>`` with ``value`` as JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return message(text, event=f"pgbus:{name}", id=id)


class StreamStart(NamedTuple):
    """One stream in the first frame of a connection: the cursor from which it starts, the stream's head, and its identity."""

    name: str
    since: int
    last_id: int
    identity: str | None = None


def connected(
    connection_id: str,
    streams: Sequence[StreamStart],
    *,
    retry_after: float,
    heartbeat: float,
    identity: str | None = None,
) -> bytes:
    """Return the first frame of a connection: the retry time, the streams with their cursors, and the facts of the connection.

    Everything is one frame, because some clients take each blank line for the end of an event. The frame's id holds the starting
    cursors, so a client that is cut off before its first message resumes from them. ``retry_after`` and ``heartbeat``, the
    interval, are in seconds. ``identity`` is that of the whole connection; a stream carries its own if it differs.
    """
    # Comments, for people who read the stream with curl.
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
    """Return the frame that tells a connection its new identity, and that of each stream, given by name."""
    listed = [{"name": name, **_own(own, identity)} for name, own in streams]
    return control("identity", {"identity": identity, "streams": listed})


def _own(identity: str | None, whole: str | None) -> dict[str, Any]:
    return {} if identity == whole else {"identity": identity}


def gap_detected(stream: str, *, requested: int | None, oldest: int, last: int, reason: str) -> bytes:
    """Return the frame that tells a client of a gap between the ids ``requested`` and ``oldest``.

    ``last`` is the newest id of the stream. ``reason`` is ``expired``, ``ahead`` or ``invalid-cursor``.
    """
    return control(
        "gap-detected",
        {"stream": stream, "requestedId": requested, "oldestId": oldest, "lastId": last, "reason": reason},
    )


def shutdown(reason: str, retry_after: float | None = None) -> bytes:
    """Return the last frame before a planned close, after a retry line if ``retry_after``, in seconds, is given."""
    frame = control("shutdown", {"reason": reason})
    return frame if retry_after is None else retry(retry_after) + frame
