"""The value that everything else passes about: one message of one stream."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

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
