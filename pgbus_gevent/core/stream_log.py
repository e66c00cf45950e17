"""The log of a stream: its head, and the ring of its newest frames.

A frame is encoded once, when it enters the ring, and shared by every connection. Each ring has limits in messages and bytes, and
a :class:`RingBudget` bounds the bytes of all rings together. Nothing here yields, so each method is atomic.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable

from .filters import NOBODY
from .frames import Chunk, Frame, Stored, data_size, encode, make_chunk, same, up_to_a_gap
from .ring_budget import RingBudget
from .ring_labels import RingLabels

MAX_LOST = 8
"""How many ranges of lost ids a log remembers, for clients that come back with a cursor in one of them."""


class StreamLog:
    """The head of a stream and the ring of its newest frames.

    ``head`` is the newest id that this worker knows. ``floor`` is the cursor above which the ring is complete; a client whose
    cursor is at the floor or higher needs no read. Neither is known before :meth:`open`.

    ``epoch`` counts how often the log was rewound. Messages that were read, or joined, in an earlier epoch must not be used.
    ``passed`` is the head up to which a pass has brought the connections, and ``passed_by_all`` the head of the last pass that
    looked at all of them. A pass looks only at the holders of a label if the messages are for nobody else. The cursors of the
    other connections then rest below the head.

    ``doubts`` counts how often the table may have lost messages, because a session with the database was lost or is new.
    :attr:`in_doubt` says that the table has not been asked since.

    ``recheck`` is the cursor above which the ring must be compared with the table, because of two messages with the same id, or a
    message that the ring lacks, one is not what the table has. It is None if there is no such contradiction.

    ``passed_over`` is the head at which the log last passed over pruned messages that it never had. The message of that head may
    have been pruned too, or lost. Clients at or below it are told that messages are gone, unless the pruning is lost before that.

    ``hinted`` is the head at which the table was known to have a newer message, until the table is asked for it.
    """

    __slots__ = (
        "__weakref__", "_budget", "_bytes", "_frames", "_ids", "_labels", "_lost", "_max_bytes", "_max_frames",
        "_settled", "announced", "appended_at", "doubts", "epoch", "floor", "head", "hinted", "horizon", "is_open", "name",
        "oldest", "passed", "passed_by_all", "passed_over", "recheck",
    )  # fmt: skip

    def __init__(self, name: str, budget: RingBudget, *, max_frames: int, max_bytes: int) -> None:
        self.name = name
        self.head = 0
        self.floor = 0
        self.oldest = 0  # the oldest retained id at the last look
        self.horizon = 0  # the highest id that pruning had removed at the last look
        self.is_open = False
        # When the oldest message that waits for a pass was appended, in Unix seconds, if its notification said so.
        self.appended_at: float | None = None
        # The highest id above the head that a wake or a probe has named.
        self.announced = 0
        self.epoch = 0
        self.passed = 0
        self.passed_by_all = 0
        self.passed_over = 0
        self.doubts = 0
        self.recheck: int | None = None
        self.hinted: int | None = None
        self._settled = 0
        self._lost: list[tuple[int, int]] = []
        self._ids: list[int] = []
        self._frames: list[Frame] = []
        self._labels = RingLabels()
        self._bytes = 0
        self._budget = budget
        self._max_frames = max_frames
        self._max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"<StreamLog {self.name!r} head={self.head} frames={len(self._ids)}>"

    def open(self, *, head: int, horizon: int, oldest: int, floor: int, rows: Iterable[Stored]) -> None:
        """Open the log with the state of the stream in one snapshot. ``rows`` are complete above ``floor``."""
        self.is_open = True
        self.head = self.floor = min(floor, head)
        self.horizon = horizon
        self.oldest = oldest
        self.extend(rows)
        self.head = max(self.head, head)

    def note(self, *, horizon: int) -> None:
        """Remember that the stream has been pruned up to ``horizon``.

        If the horizon is above the head, messages were pruned that never came here. The ring is then cleared and starts again at
        the horizon. Clients below it need a page, which tells them of the gap; otherwise they would miss messages silently.
        """
        self.horizon = max(self.horizon, horizon)
        self.oldest = max(self.oldest, self.horizon)
        if self.is_open and self.horizon > self.head:
            self.passed_over = self.head
            self.clear_ring()
            self.head = self.floor = self.horizon

    def follows(self, prev_id: int | None) -> bool:
        """Whether a message that names ``prev_id`` as its predecessor is the next one of this log."""
        return self.is_open and prev_id == self.head

    def extend(self, rows: Iterable[Stored]) -> int:
        """Add messages that are complete from an id at or below the head. Messages up to the head are ignored.

        Return how many were new.
        """
        frames = [encode(row) for row in rows if row.id > self.head]
        if not frames:
            return 0
        if self._lost:
            # Ids from the first new one on belong to messages that the table has, so they are no longer lost.
            self._lost = [(below, min(last, frames[0].id - 1)) for below, last in self._lost]
        for frame in frames:
            # A message before this one may be missing, and the connections that may have seen it must be told of the gap. So
            # everybody is checked for this one. So it is for NOBODY, whose filter writes a warning.
            label = None if frame.prev_id > self.head or frame.visible_to == NOBODY else frame.visible_to
            self._labels.add(frame.id, label)
            self.head = frame.id
        self._ids.extend(frame.id for frame in frames)
        self._frames.extend(frames)
        self.oldest = self.oldest or frames[0].id
        size = sum(len(frame.data) for frame in frames)
        self._bytes += size
        self._budget.took(self, size)
        self._trim()
        return len(frames)

    def _trim(self) -> None:
        drop = max(0, len(self._ids) - self._max_frames)
        size = sum(len(frame.data) for frame in self._frames[:drop])
        # The newest frame stays, however large it is. Otherwise every connection would need a page to get it.
        while drop < len(self._ids) - 1 and self._bytes - size > self._max_bytes:
            size += len(self._frames[drop].data)
            drop += 1
        if drop:
            self._drop(drop, size)

    def _drop(self, count: int, size: int) -> None:
        self.floor = self._ids[count - 1]
        self._labels.drop(
            self.floor, {frame.visible_to for frame in self._frames[:count] if frame.visible_to is not None}
        )
        del self._ids[:count], self._frames[:count]
        self._bytes -= size
        self._budget.gave(self, size, all_of_it=not self._ids)

    def clear_ring(self) -> None:
        """Drop all frames of the ring; the head stays."""
        if self._ids:
            self._drop(len(self._ids), self._bytes)

    def rewind(self, to: int, *, horizon: int) -> None:
        """Start again at ``to``, the newest id that the table has or has pruned, because it has no message above that.

        ``horizon`` is the highest id that pruning has removed.
        """
        self._lost = [*self._lost[1 - MAX_LOST :], (to, self.head)]
        self.clear_ring()
        self.head = self.floor = to
        self.horizon = horizon
        self.oldest = min(self.oldest, to)
        self.appended_at = None
        self.announced = 0
        self.recheck = self.hinted = None
        # The next messages are above `to`, and may be below a head that was passed before.
        self.passed = min(self.passed, to)
        self.passed_by_all = min(self.passed_by_all, to)
        self.epoch += 1

    @property
    def in_doubt(self) -> bool:
        """Whether the table may have lost messages of this log. No client starts from the log before the table was asked."""
        return self._settled < self.doubts

    def settle(self, doubts: int) -> None:
        """End the doubts that there were when a statement began; ``doubts`` is their number then."""
        self._settled = max(self._settled, doubts)

    @property
    def rewound_to(self) -> int:
        """Where the last rewind went. There must have been one."""
        return self._lost[-1][0]

    def was_lost(self, cursor: int) -> bool:
        """Whether this log knows that the table has lost the message ``cursor``. The cursor must not be above the head."""
        return any(below < cursor <= last for below, last in self._lost)

    def contradicts(self, row: Stored) -> bool:
        """Whether the ring has another message than ``row`` at its id, or none although it is complete there.

        Then one of the two was announced, but is not in the table. ``recheck`` is set.
        """
        return self._differs(row.id, lambda frame: same(frame, encode(row)))

    def lacks(self, id: int, size: int) -> bool:
        """The same for a row that was read without its data, of at least ``size`` bytes, which no notification can carry."""
        return self._differs(id, lambda frame: data_size(frame) >= size)

    def _differs(self, id: int, fits: Callable[[Frame], bool]) -> bool:
        if not self.is_open or not self.floor < id <= self.head:
            return False
        index = bisect_left(self._ids, id)
        if index < len(self._ids) and self._ids[index] == id and fits(self._frames[index]):
            return False
        self.doubt_above(self._ids[index - 1] if index else self.floor)
        self.doubts += 1  # so that only the primary is asked
        return True

    def doubt_above(self, cursor: int) -> None:
        """Have the ring compared with the table above ``cursor``."""
        self.recheck = cursor if self.recheck is None else min(self.recheck, cursor)

    def hint(self, head: int) -> None:
        """Note that the table has a message above ``head``, which was the log's, and that a look will bring it."""
        if self.is_open:
            self.hinted = head if self.hinted is None else min(self.hinted, head)

    def take_hint(self) -> int | None:
        """Forget the hint, because the table is asked now for what is above the head. Return the hint for a look that fails.

        If the head has moved since, a forged message may have taken the place of the one that the table has. The look would not
        find that one any more, so the ring must be compared with the table from there on.
        """
        hinted, self.hinted = self.hinted, None
        if hinted is not None and self.head > hinted:
            self.doubt_above(hinted)
            self.doubts += 1
        return None if hinted is None else self.head

    def read(self, start: int, end: int) -> None:
        """Note that the messages above ``start``, the head, up to ``end`` come from the table, and none by a notification."""
        if self.hinted is not None and start <= self.hinted < end:
            self.hinted = end  # so that a log that reads many pages does not read each of them again, to compare it

    def take_recheck(self) -> tuple[int, list[Frame]]:
        """Return the cursor to compare from, with the frames above it, and forget it. The ring may have dropped the first ones.

        It is forgotten before the table is asked: a contradiction that comes during the statement, which may not have its
        message, must be looked at again. The ring may drop frames meanwhile, which clients were sent.
        """
        cursor, self.recheck = max(self.recheck or 0, self.floor), None
        return cursor, self._frames[bisect_right(self._ids, cursor) :]

    @property
    def pruned(self) -> bool:
        """Whether every message up to the head was pruned. Then a head that the table does not have is no sign of a loss."""
        return self.horizon >= self.head

    @property
    def ids(self) -> list[int]:
        """The ids in the ring, lowest first."""
        return list(self._ids)

    def retire(self) -> None:
        """Keep no frames from now on, because the last client has left. A read that is under way may still bring some."""
        self._max_frames = 0
        self.clear_ring()

    @property
    def retired(self) -> bool:
        """Whether the stream's last client has left."""
        return self._max_frames == 0

    def after(self, cursor: int, max_bytes: int) -> Chunk | None:
        """Return the frames above ``cursor``, up to the next gap and up to about ``max_bytes``, but at least one.

        Return None if the cursor is below the floor. Call it only with a cursor below the head.
        """
        if cursor < self.floor:
            return None
        start = bisect_right(self._ids, cursor)
        end = start + 1
        size = len(self._frames[start].data)
        while end < len(self._ids) and size < max_bytes:
            size += len(self._frames[end].data)
            end += 1
        return make_chunk(up_to_a_gap(self._frames[start:end]), cursor)

    # cursors that rest

    def labels_above(self, cursor: int) -> set[str] | None:
        """Return the labels of the messages above ``cursor``. Return None if every client must be checked for one of them."""
        if cursor < self.floor or self._labels.everybody_above(cursor):
            return None
        return {
            frame.visible_to
            for frame in self._frames[bisect_right(self._ids, cursor) :]
            if frame.visible_to is not None
        }

    def note_pass(self, head: int, epoch: int, *, all_clients: bool) -> None:
        """Remember the end of a pass that began with this head and epoch."""
        if epoch == self.epoch:
            self.passed = max(self.passed, head)
            if all_clients:
                self.passed_by_all = max(self.passed_by_all, head)

    @property
    def must_pass_all(self) -> bool:
        """Whether the next pass must look at all connections, because otherwise the ring would soon drop what some lack.

        That is so when the ring is at least half full and the last such pass is older than the newer half of it.
        """
        ids = self._ids
        half_full = 2 * len(ids) >= self._max_frames or 2 * self._bytes >= self._max_bytes
        return half_full and bool(ids) and self.passed_by_all < ids[len(ids) // 2]

    def past_others(self, cursor: int, *labels: Collection[str]) -> int:
        """Return the cursor past the messages that are only for holders of other labels than ``labels``.

        Up to it, the ring is complete and nothing is for a client with these labels at ``cursor``. If the ring does not have the
        messages above ``cursor``, or the next one is proof against it, return ``cursor``.
        """
        if not self.floor <= cursor < self.head:
            return cursor
        label = self._frames[bisect_right(self._ids, cursor)].visible_to
        if label is None or any(label in some for some in labels):
            return cursor  # the usual case of a client that is behind
        id = self._labels.next_above(cursor, *labels)
        if id is None:
            return self.head
        index = bisect_left(self._ids, id)
        return max(cursor, self._ids[index - 1]) if index else cursor

    def suspects(self, cursor: int) -> bool:
        """Whether the first message above ``cursor`` in the ring names one below it as its predecessor."""
        index = bisect_right(self._ids, cursor)
        return index < len(self._ids) and 0 <= self._frames[index].prev_id < cursor

    def missing(self, cursor: int) -> int:
        """Return how many frames of the ring are above ``cursor``."""
        return len(self._ids) - bisect_right(self._ids, cursor)

    def back(self, count: int) -> int | None:
        """Return the cursor below the newest ``count`` messages, or None if the ring does not have enough messages."""
        if count == 0:
            return self.head
        # Not the floor, which may be a cursor that a client invented. The client will send this one back as a message's id.
        return self._ids[-count - 1] if count < len(self._ids) else None
