"""The questions and answers of the streamer's reads, and of the steward."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

LARGE = 8000
"""A message with so many bytes of data is read by pages alone, and no notification carries it."""


class Row(NamedTuple):
    """A stored message, with the columns that a frame and an audience check need.

    ``prev_id`` is the id of the stream's previous message, None if the publisher could not know it. ``created_at`` is the
    database's clock at the append, in Unix seconds. ``trace`` is the ``traceparent`` that the publisher gave. Both are None if
    they are not known.
    """

    id: int
    event: str | None
    data: str
    visible_to: str | None
    exclude: str | None
    prev_id: int | None = None
    created_at: float | None = None
    trace: str | None = None


class PageRows(NamedTuple):
    """A stream's messages above a cursor, oldest first, complete from the cursor to the last row.

    ``horizon`` is the highest id that pruning removed (0: none). If ``more`` is False, there are no messages above the last
    row. If it is True there may be, because a page that is full does not look further. ``anchor`` is the newest id that is
    above the horizon and not above the cursor (0: none); it equals the cursor while the cursor's message exists.
    ``forgotten`` is the highest horizon of all streams that were forgotten.
    """

    rows: list[Row]
    horizon: int
    more: bool
    anchor: int = 0
    forgotten: int = 0


class TailRow(NamedTuple):
    """A new message of any stream. The columns are as in :class:`Row`; ``data`` is None if it was not fetched."""

    id: int
    stream: str
    prev_id: int | None
    event: str | None
    data: str | None
    visible_to: str | None
    exclude: str | None
    created_at: float | None = None
    trace: str | None = None


class Opening(NamedTuple):
    """The state of a stream in one snapshot, and its newest messages.

    ``rows`` are those messages, oldest first, complete above ``floor``. ``oldest`` is the oldest retained id (0: none).
    ``start`` is the cursor from which ``replay`` messages follow (0: all that are retained).
    """

    head: int
    horizon: int
    oldest: int
    start: int
    floor: int
    rows: list[Row]


class OpenQuestion(NamedTuple):
    """A stream to open: ``cursor`` is the lowest cursor of its clients (None: no messages are needed), ``replay`` the most
    messages that a client wants replayed (None: no client wants any)."""

    stream: str
    cursor: int | None
    replay: int | None


class MessageReads(Protocol):
    """The reads that bring messages; :class:`pgbus_gevent.database.queries.Queries` has them."""

    def openings(self, questions: Sequence[OpenQuestion], *, limit: int, size: int) -> list[Opening]: ...
    def pages(self, after: Sequence[tuple[str, int]], *, limit: int, size: int) -> list[PageRows]: ...


class ChangeReads(Protocol):
    """The reads that show what has changed; :class:`pgbus_gevent.database.queries.Queries` has them."""

    def moved(self, heads: dict[str, int], pruned: Collection[str]) -> tuple[int, dict[str, int]]: ...
    def inventory(self, ranges: Sequence[tuple[str, int, int]]) -> list[tuple[int, int, int]]: ...


class EphemeralRow(NamedTuple):
    """A large ephemeral message. Its stream comes from this row, because the notification may be forged."""

    stream: str
    event: str | None
    data: str
    visible_to: str | None
    exclude: str | None


class DutyQuestion(NamedTuple):
    """What the worker with the number ``me`` tells when it asks who is the steward.

    If there is no steward, or it has given no sign for ``lease`` seconds, this worker becomes the steward if it ``may_lead``.
    ``hears`` says whether it hears notifications, and ``rings`` whether it rings for messages that did not ring. ``rank`` is 0 if
    it cannot relay messages to Redis, 1 if it can, and 2 if it does nothing else. It takes the place of a steward of lower rank.
    """

    me: int
    may_lead: bool
    lease: float
    hears: bool
    rings: bool
    rank: int = 0


class DutyAnswer(NamedTuple):
    """``leads`` says whether the worker that asked is the steward.

    ``age`` is how many seconds ago the steward gave its last sign (None: there is none), and ``rings`` says whether it rings for
    messages that did not ring. ``company`` says whether there are other workers that hear.
    """

    leads: bool
    age: float | None
    rings: bool
    company: bool


class IdRow(NamedTuple):
    """The id of a message, and its stream."""

    id: int
    stream: str


class IdTailRows(NamedTuple):
    """What the steward's tail has read: the messages in ``holes``, and those ``above`` its position, by rising ids.

    ``ended_below`` is the transaction id below which all transactions had ended, and ``last`` the last id that was drawn.
    ``bound`` is a new transaction id, if one was asked for.
    """

    duty: DutyAnswer
    ended_below: int
    last: int
    bound: int | None
    holes: list[IdRow]
    above: list[IdRow]


class Mark(NamedTuple):
    """How far revocations have been read: all those of the transactions below ``xid``.

    The number means something only in ``home``, which is one run of a server on one file of the table.
    """

    home: str
    xid: int


class Revoked(NamedTuple):
    """Revocations, each with its id and the owner, and the mark up to which all have been read now."""

    rows: list[tuple[int, str]]
    mark: Mark
