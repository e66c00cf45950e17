"""The clients: they read, stall, leave, and come back with their cursors, to any worker."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from random import Random
from typing import TYPE_CHECKING, Any

from pgbus_gevent.core.client import Place, StreamRequest, Subscriber

from . import clock
from .frames import Event, read
from .loop import CLOCK
from .oracle import Oracle
from .seat import Failure, Seat
from .wire import Line

if TYPE_CHECKING:
    from .world import Worker

_KEPT = 6  # pieces that may be under way when a line is cut


class Visitor:
    """A client with one stream or several. ``labels`` are those of its subscriber; ``rights`` those that filters give it."""

    def __init__(
        self,
        name: str,
        streams: tuple[str, ...],
        *,
        oracle: Oracle,
        chance: Random,
        labels: frozenset[str] = frozenset(),
        rights: frozenset[str] = frozenset(),
        pick: Callable[[], Worker | None],
        descriptor: Callable[[], int],
    ) -> None:
        self.name = name
        self.streams = streams
        self.labels = labels
        self.rights = set(rights)
        self._changed: dict[str, float] = {}
        self._oracle = oracle
        self._chance = chance
        self._pick = pick
        self._descriptor = descriptor
        self.cursors: list[int | None] = [None] * len(streams)
        self.replay: int | None = None
        self.line: Line | None = None
        self.worker: Worker | None = None
        self.seats: list[Seat] = []
        self.stalled = False
        self._stalled_at = 0.0
        self.greeted = False
        self.connection: str | None = None
        self.came_at = 0.0
        self.turned_away_at = 0.0
        """When it first came, if workers have sent it away since before they greeted it; else 0."""
        self.heard_at = 0.0
        """When it last got bytes."""
        self.gone = False
        self._hop: float | None = None
        self._pieces: deque[tuple[int, list[Event], list[int | None]]] = deque(maxlen=_KEPT)
        self._handed = 0

    # rights

    def may_see(self, label: str) -> bool:
        """Whether it may see messages with a label now."""
        return label in self.labels or label in self.rights

    def steady_since(self, label: str) -> float:
        """Return since when it has had, or lacked, this right."""
        return self._changed.get(label, 0.0)

    def change(self, label: str) -> None:
        """Give it a right, or take it."""
        self.rights ^= {label}
        self._changed[label] = CLOCK.now

    # coming and going

    def come(self) -> None:
        """Connect, unless it is connected or there is no worker."""
        if self.line is not None or self.gone:
            return
        worker = self._pick()
        if worker is None:
            self.turned_away_at = 0.0
            self._come_later(0.5)
            return
        self.worker = worker
        self.greeted = False
        self.came_at = CLOCK.now
        self.heard_at = CLOCK.now
        self.seats = [
            Seat(stream, self, cursor, self.replay if cursor is None else None)
            for stream, cursor in zip(self.streams, self.cursors, strict=True)
        ]
        self._pieces.clear()
        self._handed = 0
        line = self.line = Line(self._descriptor(), self._take, lambda: self._ended(line))
        if self.stalled:
            line.stall(0)
        subscriber = Subscriber(context=self, labels=self.labels)
        places = tuple(
            Place(stream, since=cursor, replay=self.replay if cursor is None else None, subscriber=subscriber)
            for stream, cursor in zip(self.streams, self.cursors, strict=True)
        )
        worker.instance.clients.take_over(StreamRequest(places, connection=self.connection), line, b"")  # type: ignore[arg-type]

    def _come_later(self, mean: float) -> None:
        clock.loop().timer(self._chance.uniform(0.1, 2 * mean)).start(self.come)

    def leave(self, *, pieces: int = 0, back: float | None = None) -> None:
        """Cut the line. Of what was sent last, ``pieces`` frames never arrive. It comes back after ``back`` seconds."""
        line = self.line
        if line is None:
            return
        self._remember(line, pieces)
        self._forget()
        self.turned_away_at = 0.0
        line.hang_up()
        if back is not None:
            clock.loop().timer(max(0.001, back)).start(self.come)

    def hop(self, back: float) -> None:
        """Come back to another worker, ``back`` seconds after the next message."""
        self._hop = back

    def _remember(self, line: Line, lost: int) -> None:
        """Note which cursors it comes back with: those of the last frames that arrived whole."""
        if not self._pieces:
            return
        cursors = list(self._pieces[0][2])
        arrived: list[tuple[int, ...]] = []
        steps: list[list[int | None]] = [cursors]
        for base, events, _ in self._pieces:
            for event in events:
                if base + event.end > line.accepted:
                    break
                if event.cursors:
                    steps.append(self._cursors_after(steps[-1], event))
                    arrived.append(event.cursors)
        self.cursors = steps[max(0, len(steps) - 1 - lost)]

    def _cursors_after(self, before: list[int | None], event: Event) -> list[int | None]:
        return list(event.cursors) if len(event.cursors) == len(self.streams) else before

    def _ended(self, line: Line) -> None:
        """The worker has closed the line."""
        if line is not self.line:
            return
        if not self.greeted:
            self.turned_away_at = self.turned_away_at or self.came_at
        elif self.worker is not None and self.worker.serves and not self._may_end:
            self._oracle.fail(Failure("worker", f"{self.name} was sent away from {self.worker.name}"))
        self._remember(line, 0)
        self._forget()
        self._come_later(1.0)

    @property
    def _may_end(self) -> bool:
        """Whether a worker may send it away: because of a trouble, or because it has read nothing for long."""
        oracle, now = self._oracle, CLOCK.now
        if self.stalled:
            return now >= max(self._stalled_at, self.came_at) + oracle.write_deadline or now <= oracle.excused_until
        return now <= max(oracle.excused_until, self.seats[0].ready)

    def _forget(self) -> None:
        self.line = self.worker = None
        self.seats = []
        self.greeted = False

    def stall(self, room: int) -> None:
        """Read nothing any more."""
        if not self.stalled:
            self._stalled_at = CLOCK.now
        self.stalled = True
        for seat in self.seats:
            seat.ready = inf
        if self.line is not None:
            self.line.stall(room)

    def flow(self) -> None:
        """Read again."""
        self.stalled = False
        self.heard_at = CLOCK.now
        for seat in self.seats:
            seat.since = seat.ready = CLOCK.now
        if self.line is not None:
            self.line.flow()

    # reading

    def _take(self, data: bytes) -> None:
        """Judge what a worker sends."""
        events = read(data)
        self.heard_at = CLOCK.now
        if self.worker is not None and self.worker.sends_left:
            self.worker.sent()
        before = self._last_cursors() if self._pieces else list(self.cursors)
        self._pieces.append((self._handed, events, before))
        self._handed += len(data)
        try:
            self._judge(events)
        except Failure as failure:
            self._oracle.fail(failure)

    def _judge(self, events: list[Event]) -> None:
        oracle, seats = self._oracle, self.seats
        for event in events:
            if event.is_control:
                self._control(event)
            elif event.cursors:
                oracle.message(seats[event.place], event.cursors[event.place], event.data, event.name)
                for seat, cursor in zip(seats, event.cursors, strict=True):
                    oracle.cursor(seat, cursor)
                if self._hop is not None:
                    clock.loop().timer(0.0).start(partial(self.leave, back=self._hop))
                    self._hop = None
            else:
                oracle.whispers.judge(seats[event.place], event.data, event.name)

    def _last_cursors(self) -> list[int | None]:
        _, events, cursors = self._pieces[-1]
        for event in reversed(events):
            if event.cursors:
                return self._cursors_after(cursors, event)
        return cursors

    def _control(self, event: Event) -> None:
        if event.name == "pgbus:connected":
            facts: dict[str, Any] = json.loads(event.data)
            self.greeted, self.turned_away_at = True, 0.0
            if self.connection is None:
                self.connection = facts["connectionId"]
            for seat, start in zip(self.seats, event.cursors, strict=True):
                self._oracle.greeted(seat, facts["connectionId"], start)
        elif event.name == "pgbus:gap-detected":
            stream = json.loads(event.data)["stream"]
            self._oracle.gap(self.seats[self.streams.index(stream)], event.data)

    def look(self) -> None:
        """See how long it has been idle."""
        try:
            if self.turned_away_at and not self.gone:
                self._oracle.turned_away(self.name, self.turned_away_at)
            if self.line is None or self.stalled or self.worker is None or not self.worker.serves:
                return
            if self.greeted:
                self._oracle.silent(self.name, self.heard_at)
            for seat in self.seats:
                if self.greeted:
                    self._oracle.look(seat)
                else:
                    self._oracle.waits(seat, self.came_at)
        except Failure as failure:
            self._oracle.fail(failure)
