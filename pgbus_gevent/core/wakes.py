"""What a notification says. The shapes are those that sql/0001_messages.sql rings with."""

from __future__ import annotations

import json
from typing import NamedTuple


class Ring(NamedTuple):
    """A stored message, whole; ``prev_id`` is the one before it, None where the publisher could not know."""

    stream: str
    id: int
    prev_id: int | None
    created_at: float
    event: str | None
    data: str
    visible_to: str | None
    exclude: str | None


class Moved(NamedTuple):
    """These streams have new messages; None: some streams have, too many to name."""

    streams: list[str] | None


class Ephemeral(NamedTuple):
    """An ephemeral message, whole, or (``data`` is None) only its number, as it was too large."""

    stream: str
    number: int
    event: str | None
    data: str | None
    visible_to: str | None
    exclude: str | None


Wake = Ring | Moved | Ephemeral


def parse(payload: str) -> Wake:
    """The wake in a payload. Whatever cannot be read, as anybody may NOTIFY, is taken for a hint that something moved."""
    try:
        kind, *rest = json.loads(payload)
        if kind == "message":
            return Ring(*rest)
        if kind == "ephemeral":
            return Ephemeral(*rest)
        if kind == "large":
            stream, number = rest
            return Ephemeral(stream, number, None, None, None, None)
        if kind == "moved" and rest and all(isinstance(name, str) for name in rest):
            return Moved(rest)
    except (ValueError, TypeError):
        pass
    return Moved(None)
