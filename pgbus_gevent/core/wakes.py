"""Wakes: the payloads of notifications, parsed. The functions in database/sql make the payloads."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from ..messages import MAX_ID
from .names import check_data, check_event, check_name
from .traces import sampled

CONTROL = '["control"]'
"""The payload of a :class:`Control`."""


class NewMessage(NamedTuple):
    """A stored message, complete. ``prev_id`` is the id of the message before it, None if the publisher could not know it.

    ``created_at`` is the database's clock at the append, in Unix seconds, or None if the payload has no finite number there.
    ``trace`` is the ``traceparent`` that the publisher gave, or None. Only a payload with a trace has this element, because
    releases before schema 8 do not know it.
    """

    stream: str
    id: int
    prev_id: int | None
    created_at: float | None
    event: str | None
    data: str
    visible_to: str | None
    exclude: str | None
    trace: str | None = None


class Moved(NamedTuple):
    """The names of streams that have new messages. None means that some streams have, too many to name."""

    streams: list[str] | None


class Ephemeral(NamedTuple):
    """An ephemeral message. If it was too large for a notification, ``data`` is None and only stream and number are set."""

    stream: str
    number: int
    event: str | None
    data: str | None
    visible_to: str | None
    exclude: str | None


class Control(NamedTuple):
    """Something other than a message has changed, such as a revocation. The tables hold the details."""


Wake = NewMessage | Moved | Ephemeral | Control


def parse(payload: str) -> Wake:
    """Return the wake in a payload. A payload that cannot be read becomes ``Moved(None)``.

    Any database role may NOTIFY, so every part is checked. An invalid part must not get into a frame or a query.
    """
    try:
        kind, *rest = json.loads(payload)
        if kind == "message":
            return _message(*rest)
        if kind == "ephemeral":
            return _ephemeral(*rest)
        if kind == "large":
            stream, number = rest
            return Ephemeral(check_name(stream), _id(number), None, None, None, None)
        if kind == "control" and not rest:
            return Control()
        if kind == "moved" and rest:
            return Moved([check_name(name) for name in rest])
    except (ValueError, TypeError, OverflowError, RecursionError):
        pass
    return Moved(None)


def _message(
    stream: Any,
    id: Any,
    prev_id: Any,
    created_at: Any,
    event: Any,
    data: Any,
    visible_to: Any,
    exclude: Any,
    trace: Any = None,
) -> NewMessage:
    known = None if prev_id is None else _id(prev_id)
    if trace is not None and sampled(trace) is None:
        raise ValueError(trace)
    content = _content(event, data, visible_to, exclude)
    return NewMessage(check_name(stream), _id(id), known, _time(created_at), *content, trace)


def _ephemeral(stream: Any, number: Any, event: Any, data: Any, visible_to: Any, exclude: Any) -> Ephemeral:
    return Ephemeral(check_name(stream), _id(number), *_content(event, data, visible_to, exclude))


def _content(event: Any, data: Any, visible_to: Any, exclude: Any) -> tuple[str | None, str, str | None, str | None]:
    for label in (visible_to, exclude):
        if label is not None:
            check_data(label)
    return check_event(event), check_data(data), visible_to, exclude


def _time(value: Any) -> float | None:
    if value is None:
        return None  # an origin does not know it for each message
    if type(value) not in (int, float):
        raise ValueError(value)
    seconds = float(value)  # OverflowError for a number of many digits
    return seconds if math.isfinite(seconds) else None


def _id(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise ValueError(value)
    return value
