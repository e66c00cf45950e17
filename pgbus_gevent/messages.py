"""The values that the public methods return: a message of a stream, and a member at a stream."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

MAX_ID = 2**53 - 1
"""The largest id. It is JavaScript's Number.MAX_SAFE_INTEGER, because browsers handle ids as numbers."""


class Message(NamedTuple):
    """A message of a stream.

    ``id`` and ``created_at`` are None for an ephemeral message, which is not stored. ``created_at`` is the time of the append by
    the database's clock, with a time zone. ``event``, ``visible_to`` and ``exclude`` are None if the message has none.
    """

    stream: str
    id: int | None
    created_at: datetime | None
    event: str | None
    data: str
    visible_to: str | None = None
    exclude: str | None = None


class Member(NamedTuple):
    """A member at a stream.

    ``metadata`` is the metadata of its newest connection. ``joined_at`` is the time at which it joined, by the database's clock,
    with a time zone. ``connections`` is the number of its open connections. It is 0 while the member has none but may still
    return, for example during a reload.
    """

    member: str
    metadata: dict[str, Any]
    joined_at: datetime
    connections: int = 1
