"""What the streamer's reads give, and what they are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ..core.client import Subscription
from ..core.stream_log import StreamLog


class Row(NamedTuple):
    """A stored message as the streamer reads it: what a frame and an audience check need, and no more.

    ``prev_id`` is the stream's message before it, None where its publisher could not know.
    """

    id: int
    event: str | None
    data: str
    visible_to: str | None
    exclude: str | None
    prev_id: int | None = None


class Page(NamedTuple):
    """What a stream holds above a cursor, oldest first: complete from the cursor to the last row.

    ``horizon`` is the highest id that pruning removed (0: none). Without ``more``, nothing is above the last row; with
    it something may be: a page that is full to the byte does not look further. ``anchor`` is the newest id above the horizon
    and not above the cursor, 0 where there is none: the cursor itself, as long as its message is there. ``forgotten`` is the
    highest horizon of any stream that was forgotten.
    """

    rows: list[Row]
    horizon: int
    more: bool
    anchor: int = 0
    forgotten: int = 0


class TailRow(NamedTuple):
    """A new message of any stream, and the id of the one before it in its stream, None where its publisher could not know.

    ``data`` is None where it was not fetched.
    """

    id: int
    stream: str
    prev_id: int | None
    event: str | None
    data: str | None
    visible_to: str | None
    exclude: str | None


class Opening(NamedTuple):
    """The state of a stream in one snapshot, and its newest messages.

    ``rows`` are the newest ones, oldest first, complete above ``floor``. ``oldest`` is the oldest retained id (0:
    none). ``start`` is the cursor that ``replay`` messages back amounts to (0: from the oldest).
    """

    head: int
    horizon: int
    oldest: int
    start: int
    floor: int
    rows: list[Row]


class OpenQuestion(NamedTuple):
    """A stream to open: the lowest cursor that somebody has on it (None: all are new), and how far back to go."""

    stream: str
    cursor: int | None
    replay: int | None


def replays(waiting: Iterable[Subscription]) -> list[int]:
    """How far back those want to go whose start only the database can tell."""
    return [
        subscription.place.replay
        for subscription in waiting
        if subscription.start is None and subscription.place.replay is not None
    ]


def question(log: StreamLog, waiting: Iterable[Subscription]) -> OpenQuestion:
    """What to ask of a stream, so that the answer serves all who wait for it."""
    counts = replays(waiting)
    cursor = min((subscription.start for subscription in waiting if subscription.start is not None), default=None)
    if log.is_open:
        cursor = None  # its ring is there already, only the start is asked for
    elif counts:
        cursor = 0
    return OpenQuestion(log.name, cursor, max(counts, default=None))


class EphemeralRow(NamedTuple):
    """A large ephemeral message; its stream is here, and not what a notification says of it."""

    stream: str
    event: str | None
    data: str
    visible_to: str | None
    exclude: str | None
