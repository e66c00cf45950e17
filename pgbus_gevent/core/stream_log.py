"""What a worker knows of one stream that it serves: the head, and the newest frames.

A frame is encoded once, when it enters, and shared by every connection. The ring is bounded in messages and bytes by its own
limits, and together with all others by a :class:`RingBudget`. Nothing here yields, so that each method is atomic.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from ..errors import InvalidEvent
from . import sse
from .filters import NOBODY
from .names import check_event

MAX_LOST = 8
"""Ranges of lost ids that are remembered for clients that come back with one."""


class Stored(Protocol):
    """A row as it comes from the database."""

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


class Frame(NamedTuple):
    """An encoded message and for whom it is. ``restricted`` ones need a look at each connection.

    ``prev_id`` is the id that its row names as the one before it, 0 for the first of its stream, -1 where it names none.
    """

    id: int
    data: bytes
    visible_to: str | None
    exclude: str | None
    prev_id: int = -1

    @property
    def restricted(self) -> bool:
        return self.visible_to is not None or self.exclude is not None


def encode(row: Stored) -> Frame:
    """The frame of a stored message; one whose event name no broadcast would take is for nobody.

    Somebody wrote that into the table by hand. With a line break in it, it could pass for other frames.
    """
    prev_id = -1 if row.prev_id is None else row.prev_id
    if not 0 <= prev_id < row.id:
        prev_id = -1  # nonsense, which proves nothing
    try:
        check_event(row.event)
    except InvalidEvent:
        return Frame(row.id, b"", NOBODY, None, prev_id)
    return Frame(row.id, sse.message(row.data, event=row.event, id=row.id), row.visible_to, row.exclude, prev_id)


class Chunk(NamedTuple):
    """Consecutive frames of a stream, to be sent in one go, and the cursor of who has got them.

    ``data`` is the whole where every frame is for everybody, else None and ``frames`` are to be looked at one by one.
    ``hole`` tells that messages are gone between the cursor that was asked for and the first frame; ``data`` is None then.
    ``strange`` tells that the first frame names a message below that cursor as the one before it: so the cursor may be of one that
    was lost.
    """

    frames: Sequence[Frame]
    cursor: int
    data: bytes | None
    hole: bool = False
    strange: bool = False


def make_chunk(frames: Sequence[Frame], after: int = 0) -> Chunk:
    """Join frames, once for all connections that stand at ``after`` and need just these.

    A first frame that names a message above ``after`` as the one before it proves that this one is gone. Who stands at zero
    asks for what there is, and misses nothing.
    """
    hole = 0 < after < frames[0].prev_id
    whole = not hole and not any(frame.restricted for frame in frames)
    strange = 0 <= frames[0].prev_id < after
    return Chunk(frames, frames[-1].id, b"".join(frame.data for frame in frames) if whole else None, hole, strange)


def up_to_a_hole(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Those before the first one that names a message which is not there."""
    for n in range(1, len(frames)):
        if frames[n].prev_id > frames[n - 1].id:
            return frames[:n]
    return frames


class RingBudget:
    """The bytes that all rings of a worker may hold together; over it, the stream that was quiet longest gives its up."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._logs: dict[StreamLog, None] = {}  # in the order of their last message

    def took(self, log: StreamLog, size: int) -> None:
        """``log`` has grown by ``size`` bytes."""
        self.used += size
        self._logs.pop(log, None)
        self._logs[log] = None
        while self.used > self.limit and self._logs:
            next(iter(self._logs)).forget()

    def gave(self, log: StreamLog, size: int, *, all_of_it: bool) -> None:
        """``log`` has shrunk by ``size`` bytes."""
        self.used -= size
        if all_of_it:
            self._logs.pop(log, None)


class StreamLog:
    """The head of a stream and the ring of its newest frames.

    ``head`` is the last id that this worker knows; ``floor`` is the cursor above which the ring is complete, so that who stands
    at ``floor`` or higher needs no read. Before :meth:`open` neither is known. ``epoch`` counts how often the table turned out to
    have lost what was here: what was read or joined in an earlier one is worth nothing. ``doubts`` counts how often that became
    possible, as a session with the database was lost or is new; :attr:`in_doubt` tells that the table has not been asked since.
    """

    __slots__ = (
        "__weakref__", "_budget", "_bytes", "_frames", "_ids", "_lost", "_max_bytes", "_max_frames", "_settled",
        "appended_at", "doubts", "epoch", "floor", "head", "horizon", "is_open", "name", "oldest",
    )  # fmt: skip

    def __init__(self, name: str, budget: RingBudget, *, max_frames: int, max_bytes: int) -> None:
        self.name = name
        self.head = 0
        self.floor = 0
        self.oldest = 0  # the oldest retained id when the stream was last looked at
        self.horizon = 0  # the highest id that pruning had removed then
        self.is_open = False
        self.appended_at: float | None = None  # of the oldest message that waits for a pass, where its ring told
        self.epoch = 0
        self.doubts = 0
        self._settled = 0
        self._lost: list[tuple[int, int]] = []
        self._ids: list[int] = []
        self._frames: list[Frame] = []
        self._bytes = 0
        self._budget = budget
        self._max_frames = max_frames
        self._max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"<StreamLog {self.name!r} head={self.head} frames={len(self._ids)}>"

    def open(self, *, head: int, horizon: int, oldest: int, floor: int, rows: Iterable[Stored]) -> None:
        """Start from a snapshot: ``rows`` are the newest messages, complete above ``floor``."""
        self.is_open = True
        self.head = self.floor = min(floor, head)
        self.horizon = horizon
        self.oldest = oldest
        self.extend(rows)
        self.head = max(self.head, head)

    def note(self, *, horizon: int) -> None:
        """Remember how far the stream has been pruned.

        Beyond the head, that were messages which never came here: the ring would go on behind a hole without a word. So it
        begins anew at the horizon, and those below have to read a page, which tells them.
        """
        self.horizon = max(self.horizon, horizon)
        self.oldest = max(self.oldest, self.horizon)
        if self.is_open and self.horizon > self.head:
            self.forget()
            self.head = self.floor = self.horizon

    def follows(self, prev_id: int | None) -> bool:
        """Whether a message that names ``prev_id`` as the one before it is the next one here."""
        return self.is_open and prev_id == self.head

    def extend(self, rows: Iterable[Stored]) -> int:
        """Take messages that are complete from some id at or below the head; those that are here already are passed over.

        Returns how many were new.
        """
        frames = [encode(row) for row in rows if row.id > self.head]
        if not frames:
            return 0
        if self._lost:
            # Cursors from the first one on are of messages that are there.
            self._lost = [(below, min(last, frames[0].id - 1)) for below, last in self._lost]
        self._ids.extend(frame.id for frame in frames)
        self._frames.extend(frames)
        self.head = frames[-1].id
        self.oldest = self.oldest or frames[0].id
        size = sum(len(frame.data) for frame in frames)
        self._bytes += size
        self._budget.took(self, size)
        self._trim()
        return len(frames)

    def _trim(self) -> None:
        drop = max(0, len(self._ids) - self._max_frames)
        size = sum(len(frame.data) for frame in self._frames[:drop])
        # The newest stays whatever its size: else every connection would read it from the database by itself.
        while drop < len(self._ids) - 1 and self._bytes - size > self._max_bytes:
            size += len(self._frames[drop].data)
            drop += 1
        if drop:
            self._drop(drop, size)

    def _drop(self, count: int, size: int) -> None:
        self.floor = self._ids[count - 1]
        del self._ids[:count], self._frames[:count]
        self._bytes -= size
        self._budget.gave(self, size, all_of_it=not self._ids)

    def forget(self) -> None:
        """Give the whole ring up; the head stays."""
        if self._ids:
            self._drop(len(self._ids), self._bytes)

    def rewind(self, to: int, *, horizon: int) -> None:
        """The table has no message from ``to`` up to the head: begin anew at ``to``, the newest that it has or had.

        ``horizon`` is how far it says that it was pruned.
        """
        self._lost = [*self._lost[1 - MAX_LOST :], (to, self.head)]
        self.forget()
        self.head = self.floor = to
        self.horizon = horizon
        self.oldest = min(self.oldest, to)
        self.appended_at = None
        self.epoch += 1

    @property
    def in_doubt(self) -> bool:
        """Whether the table may have lost what is here: nobody starts from it before the table was asked."""
        return self._settled < self.doubts

    def settle(self, doubts: int) -> None:
        """The table was asked by a statement that began when there were so many doubts."""
        self._settled = max(self._settled, doubts)

    def was_lost(self, cursor: int) -> bool:
        """Whether ``cursor``, which is not above the head, is of a message that the table has lost, as far as is known here."""
        return any(below < cursor <= last for below, last in self._lost)

    @property
    def pruned(self) -> bool:
        """Whether all that was here is known to have been pruned: then a head that the table does not have tells nothing."""
        return self.horizon >= self.head

    @property
    def ids(self) -> list[int]:
        """Those of the ring, lowest first."""
        return list(self._ids)

    def retire(self) -> None:
        """Keep no frames from now on: nobody watches any more. A read that is still under way may bring some."""
        self._max_frames = 0
        self.forget()

    @property
    def retired(self) -> bool:
        """Whether the stream's last client has left."""
        return self._max_frames == 0

    def after(self, cursor: int, max_bytes: int) -> Chunk | None:
        """The frames above ``cursor`` up to the next hole, at least one and up to about ``max_bytes``; None where the ring does not
        reach so far.

        Only for a cursor below the head.
        """
        if cursor < self.floor:
            return None
        start = bisect_right(self._ids, cursor)
        end = start + 1
        size = len(self._frames[start].data)
        while end < len(self._ids) and size < max_bytes:
            size += len(self._frames[end].data)
            end += 1
        return make_chunk(up_to_a_hole(self._frames[start:end]), cursor)

    def missing(self, cursor: int) -> int:
        """How many frames who stands at ``cursor`` lacks, as far as the ring knows."""
        return len(self._ids) - bisect_right(self._ids, cursor)

    def back(self, count: int) -> int | None:
        """The cursor that ``count`` messages back amounts to; None where the ring does not reach so far."""
        if count == 0:
            return self.head
        # Not the floor, which may be a cursor that somebody made up: this one will be brought back as a message's.
        return self._ids[-count - 1] if count < len(self._ids) else None
