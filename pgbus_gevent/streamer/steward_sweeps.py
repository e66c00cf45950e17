"""The sweeps of the steward: finds the messages of all streams that did not ring, and rings for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import gevent

from ..core.board import Board
from ..core.id_tail import Hole, IdTail
from ..core.rows import IdRow, IdTailRows
from .steward_ear import Ear

RENEW = 0.4
"""The longest time between two tails, in seconds. Each is also a sign that the steward lives."""

AFTER_DOORBELL = (0.004, 0.02, 0.25)
"""Seconds from a notification to each of the tails that follow it. If one finds a message that did not ring, they start again."""

DEAF_PAUSE = 0.1
"""Seconds between two tails while the steward does not hear."""

GRACE = 0.003
"""How long the steward waits for the notifications of the messages that it has found, in seconds, before it rings for them."""

PAGE = 1000
"""The most messages that one tail reads. After some full pages the steward has everybody look instead."""

_PAGES = 5
_MAX_SHARE = 0.2  # the largest share of time that tails take
_LONGEST_REST = 0.02  # seconds; a tail takes long only if the database is busy


class Source(Protocol):
    """The statements that it needs; :class:`pgbus_gevent.database.stewardship.Stewardship` has them."""

    def ring_for(self, ids: Sequence[int]) -> bool: ...
    def ring_everybody(self) -> bool: ...


class Leader(Protocol):
    """Asks the database, in the steward's name; :class:`pgbus_gevent.streamer.steward.Steward` does."""

    @property
    def company(self) -> bool: ...
    def sign(self) -> None: ...
    def ask(self, above: int | None, holes: Sequence[Hole], *, bind: bool) -> tuple[float, IdTailRows]: ...


class StewardSweeps:
    """The sweeps of the steward, which calls it in a loop: :meth:`sweep`, and then :meth:`pause`.

    A new steward first has everybody look, because messages of the last seconds may have been missed; only then it ``rings``,
    and says so with its signs. It yields in statements and pauses. Meanwhile the ear hears notifications, so a message is looked
    up there only after the statement that found it.
    """

    def __init__(self, source: Source, board: Board, ear: Ear) -> None:
        self._source = source
        self._board = board
        self._ear = ear
        self._tail = IdTail()
        self._stage = 0
        self._asked_all = 0.0  # when all holes were last asked for, in monotonic seconds
        self.begins = True
        """Whether the next sweep begins anew."""
        self.rings = False
        """Whether it rings for the messages that it finds."""
        self.tails = 0
        self.rung = 0
        """For how many messages it has rung."""

    @property
    def top(self) -> int:
        """The highest id that was read."""
        return self._tail.top or 0

    def reset(self) -> None:
        """Forget everything, because this worker is not the steward."""
        self._tail, self._stage = IdTail(), 0
        self.begins, self.rings = True, False

    def pause(self, took: float) -> None:
        """Wait for the next tail. A notification begins a series of them. ``took`` is how long the last one took, in seconds."""
        gevent.sleep(min(took * (1 / _MAX_SHARE - 1), _LONGEST_REST))
        doorbell = self._ear.doorbell
        if self._stage == len(AFTER_DOORBELL):
            if not doorbell.wait(RENEW if self._ear.hears else DEAF_PAUSE):
                return
            self._stage = 0
        elif doorbell.is_set() and self._stage:
            self._stage = 0
        doorbell.clear()
        stage = self._stage
        gevent.sleep(AFTER_DOORBELL[stage] - (AFTER_DOORBELL[stage - 1] if stage else -self._board.pace))
        self._stage = stage + 1

    def sweep(self, leader: Leader, now: float) -> None:
        """Look once for messages that did not ring. ``now`` is in monotonic seconds. Raises :class:`DatabaseError`."""
        if self.begins:
            self._begin(leader)
            return
        if leader.company and not self.rings:
            leader.sign()
            if self.begins:
                return  # another worker is the steward
            self.rings = self._source.ring_everybody()
        heard = list(self._ear.heard)
        for page in range(_PAGES):
            rows = self._read(leader, now, first=page == 0)
            self._hand_on(leader, [*rows.holes, *rows.above])
            if len(rows.holes) == PAGE:
                break
            if len(rows.above) < PAGE or self.begins:
                # What rang before this tail and is not in the table was forged. The message that gets this id later must ring.
                self._ear.forget(heard)
                return
        self.begins = True

    def _begin(self, leader: Leader) -> None:
        """Begin at the newest messages, and have everybody look for those that were missed before."""
        asked, rows = leader.ask(None, [], bind=False)
        if not rows.duty.leads:
            return
        newest = [row.id for row in rows.above]
        self._tail.start(newest, asked, last=rows.last, complete=len(newest) < PAGE)
        self._stage = 0
        self.begins = False
        for outlet in self._ear.outlets:
            outlet.restarted()
        # What rang until now may be forgotten by the outlets, so the next tail finds it as a message that did not ring.
        self._ear.heard.clear()
        # If the notification queue is half full, the workers sweep for themselves until there is room.
        self.rings = leader.company and self._source.ring_everybody()

    def _read(self, leader: Leader, now: float, *, first: bool) -> IdTailRows:
        """Read a page. Only the ``first`` one asks for the holes, too."""
        self.tails += 1
        tail = (
            self._tail
        )  # the answer may say that this worker is not the steward any more, and then there is another one
        # While notifications never end, the series does not get to its end either.
        everything = self._stage == len(AFTER_DOORBELL) or now - self._asked_all >= RENEW
        holes = tail.question(now, everything=everything) if first else []
        if first and everything:
            self._asked_all = now
        asked, rows = leader.ask(tail.top, holes, bind=tail.needs_bound(now))
        tail.saw(
            holes,
            [row.id for row in rows.holes],
            [row.id for row in rows.above],
            ended_below=rows.ended_below,
            last=rows.last,
            now=asked,
        )
        if rows.bound is not None:
            tail.bind(rows.bound, asked)
        return rows

    def _hand_on(self, leader: Leader, found: Sequence[IdRow]) -> None:
        """Ring for the messages that did not ring."""
        unheard = [row for row in found if not self._ear.has_heard(*row)]
        if unheard and self._ear.hears:
            gevent.sleep(GRACE)
            unheard = [row for row in unheard if not self._ear.has_heard(*row)]
        if not unheard:
            return
        self._stage = 0
        ids = sorted(row.id for row in unheard)
        leader.sign()
        for outlet in self._ear.outlets:
            outlet.found(ids)
        leader.sign()
        if self.rings:  # False if another worker is the steward by now, which has everybody look
            self._ear.rang(ids)
            self.rings = self._source.ring_for(ids)
            self.rung += len(ids) * self.rings
