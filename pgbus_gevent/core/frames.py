"""Encoded messages: a frame for each message, and the chunks of consecutive frames that are sent in one go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..errors import InvalidEvent
from . import sse
from .filters import NOBODY
from .names import check_event


class Stored(Protocol):
    """A stored message, as a row of the database or a notification brings it."""

    @property
    def id(self) -> int: ...
    @property
    def event(self) -> str | None: ...
    @property
    def data(self) -> str: ...
    @property
    def visible_to(self) -> str | None: ...
    @property
    def exclude(self) -> str | None: ...
    @property
    def prev_id(self) -> int | None: ...
    @property
    def created_at(self) -> float | None: ...
    @property
    def trace(self) -> str | None: ...


class Frame(NamedTuple):
    """An encoded message, with its audience.

    ``prev_id`` is the id that the row names as the message before it: 0 for the first message of a stream, -1 if the row names
    none.
    """

    id: int
    data: bytes
    visible_to: str | None
    exclude: str | None
    prev_id: int = -1

    @property
    def restricted(self) -> bool:
        """Whether some connections may not see the message, so that each has to be checked."""
        return self.visible_to is not None or self.exclude is not None


def predecessor(row: Stored) -> int:
    """Return the id of the message before a stored message, as the row names it: 0 for the first message, -1 if it names none."""
    if row.prev_id is None or not 0 <= row.prev_id < row.id:
        return -1  # an id that is not possible proves nothing
    return row.prev_id


def encode(row: Stored) -> Frame:
    """Return the frame of a stored message. If its event name is invalid, nobody may see the frame.

    Such a row was written into the table by hand. An event name with a line break could forge other frames.
    """
    prev_id = predecessor(row)
    try:
        check_event(row.event)
    except InvalidEvent:
        return Frame(row.id, b"", NOBODY, None, prev_id)
    return Frame(row.id, sse.message(row.data, event=row.event, id=row.id), row.visible_to, row.exclude, prev_id)


def data_size(frame: Frame) -> int:
    """Return the size of a message's data in bytes; each line break counts as one."""
    lines = [line for line in frame.data.split(b"\n") if line.startswith(b"data: ")]
    return sum(map(len, lines)) - len(b"data: ") * len(lines) + max(0, len(lines) - 1)


def same(one: Frame, other: Frame) -> bool:
    """Whether two frames are the same message."""
    # Not the predecessor, which a publisher in REPEATABLE READ may not have known.
    return one[:4] == other[:4]


def agree(frames: Sequence[Frame], rows: Sequence[Stored], *, above: int, up_to: int) -> bool:
    """Whether frames of a ring and rows of the table are the same messages ``above`` an id, ``up_to`` another one."""
    here = [frame for frame in frames if above < frame.id <= up_to]
    there = [encode(row) for row in rows if above < row.id <= up_to]
    return len(here) == len(there) and all(map(same, here, there))


_NONE: frozenset[str] = frozenset()


class Chunk(NamedTuple):
    """Consecutive frames of a stream that are sent in one go, and the cursor of a client that has got them.

    ``data`` is all frames joined, if every client may see every frame and there is no gap. Otherwise it is None, and the frames
    have to be checked for each client. ``gap`` is True if messages between the given cursor and the first frame are gone.
    ``suspect`` is True if the first frame names a message below the given cursor as its predecessor; then the cursor may be that
    of a lost message.

    If ``data`` is None, ``labels`` and ``excluded`` are the labels of the frames and the connections that they exclude, and
    ``unlabelled`` is the frames without a label, joined: what a connection may see that has none of these labels. ``open`` is how
    many of the frames have no label.
    """

    frames: Sequence[Frame]
    cursor: int
    data: bytes | None
    gap: bool = False
    suspect: bool = False
    labels: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    unlabelled: bytes = b""
    open: int = 0


def make_chunk(frames: Sequence[Frame], after: int = 0) -> Chunk:
    """Join frames once for all connections whose cursor is ``after``.

    If the first frame names a message above ``after`` as its predecessor, that message is gone, which is a gap. A client with
    the cursor 0 asks for everything that is retained, so it misses nothing.
    """
    gap = 0 < after < frames[0].prev_id
    suspect = 0 <= frames[0].prev_id < after
    labels = excluded = _NONE
    if any(frame.restricted for frame in frames):
        labels = frozenset(frame.visible_to for frame in frames if frame.visible_to is not None)
        excluded = frozenset(frame.exclude for frame in frames if frame.exclude is not None)
    free = [frame.data for frame in frames if frame.visible_to is None]
    data, last = b"".join(free), frames[-1].id
    if not (gap or labels or excluded):
        return Chunk(frames, last, data, suspect=suspect, open=len(free))
    return Chunk(frames, last, None, gap, suspect, labels, excluded, data, len(free))


def up_to_a_gap(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Return the frames before the first one whose predecessor is missing."""
    for n in range(1, len(frames)):
        if frames[n].prev_id > frames[n - 1].id:
            return frames[:n]
    return frames
