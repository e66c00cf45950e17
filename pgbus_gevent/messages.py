"""The values that everything else passes about: one message of one stream, one member at one."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

MAX_ID = 2**53 - 1
"""The largest id: JavaScript's Number.MAX_SAFE_INTEGER, as browsers handle ids as numbers too."""


class Message(NamedTuple):
    """A message as a reader sees it.

    ``id`` is None for an ephemeral message, which is not stored. ``created_at`` is the database's clock
    at the append, with a time zone. ``event``, ``visible_to`` and ``exclude`` are None where there is none.
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

    ``metadata`` is that of its newest connection. ``joined_at`` is the database's clock when the member came, with a time zone.
    ``connections`` is how many it has open; 0 while it is only expected back, as after a reload.
    """

    member: str
    metadata: dict[str, Any]
    joined_at: datetime
    connections: int = 1
