"""Replays the flights of 2013 at a given speed: a greenlet updates the board and publishes each change."""

from __future__ import annotations

import json
import logging
import random
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event as Signal

from ..errors import InvalidSetting, PgbusError
from . import board
from .flights import Flights, load_flights
from .schedule import YEAR_END, YEAR_START, Timeline, starting_point

if TYPE_CHECKING:
    from pgbus_gevent import Bus

STREAM = "demo:departures"
MAX_SPEED = 100_000.0

MIN_PAUSE, MAX_PAUSE = 0.25, 1.0
"""Seconds between two steps. The board shows nothing faster, and each step renews the lease."""
MAX_EVENTS = 50
"""The most events in one step, so at most 200 per second. At a speed that needs more, the simulation falls behind."""
MAX_CATCH_UP = 2.0
"""Seconds. After a longer pause, the board continues from its last state and does not catch up."""
STALE = 3600.0
"""Seconds without a step after which the board starts anew."""
QUIET = timedelta(minutes=5)
"""Simulated time. A longer wait for the next event is skipped, so the night takes no time."""
MAX_BACK_OFF = 30.0

log = logging.getLogger(__name__)


class Replayer:
    """Plays the board in the database of ``bus`` at ``speed`` simulated seconds per second.

    :meth:`start` and :meth:`stop` may be called from any greenlet and are idempotent. Of several replayers on one database, one
    plays. If it ends, another takes over within seconds. Raises :class:`InvalidSetting` for a speed that is not allowed.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        speed: float = 60.0,
        flights: Callable[[], Flights] = load_flights,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        if not 0 < speed <= MAX_SPEED:
            raise InvalidSetting("speed", speed, f"more than 0, at most {MAX_SPEED:g} simulated seconds per second")
        self._bus = bus
        self._stream = bus.stream(STREAM)
        self._speed = speed
        self._load = flights
        self._now = now
        self._owner = uuid.uuid4().hex
        self._prepared = False
        self._timeline: Timeline | None = None
        self._stopping = Signal()
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Start to play, in a new greenlet."""
        if self._greenlet is None:
            self._stopping.clear()
            self._greenlet = gevent.spawn(self._run)

    def stop(self, timeout: float = 5.0) -> None:
        """Stop playing. A step that takes longer than ``timeout`` seconds is killed and rolled back."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            self._stopping.set()
            greenlet.join(timeout)
            greenlet.kill()

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                pause = self.step()
                failures = 0
            except (PgbusError, OSError) as error:  # OSError: the file of the flights cannot be opened
                failures += 1
                self._prepared = False  # the database that comes back may be another one
                pause = random.uniform(1.0, min(MAX_BACK_OFF, 2.0**failures))
                log.warning("the departures board is stopped, next try in %.1f s: %s", pause, error)
            self._stopping.wait(pause)
        self._release()

    def _release(self) -> None:
        try:
            with self._bus.transaction() as cursor:
                board.release_clock(cursor, self._owner)
        except PgbusError as error:
            log.info("the next replayer must wait until the lease ends: %s", error)

    def step(self) -> float:
        """Advance the clock to now and publish the events in between. Returns the seconds until the next step.

        Raises PgbusError if the database fails. Then nothing was changed or published.
        """
        if not self._prepared:
            with self._bus.transaction() as cursor:
                board.prepare(cursor)
            self._prepared = True
        with self._bus.transaction() as cursor:
            taken = board.take_clock(cursor, self._owner)
            if taken is None:
                return random.uniform(board.LEASE / 2, board.LEASE)
            clock, idle = taken
            if clock is None or idle > STALE:
                clock = starting_point(self._now())
                self._begin(cursor, clock)
            else:
                clock = self._advance(cursor, clock, idle)
            board.move_clock(cursor, self._owner, clock)
        return self._pause(clock)

    def _begin(self, cursor: board.Cursor, clock: datetime) -> None:
        """Fill the board as of ``clock``, and tell open pages to load it again."""
        rows = [board.Row.of(event) for event in self._flights_of_year().board_at(clock).values()]
        board.replace_rows(cursor, rows, clock)
        self._stream.broadcast(json.dumps({"clock": clock.isoformat()}), event="reset", using=cursor)

    def _advance(self, cursor: board.Cursor, before: datetime, idle: float) -> datetime:
        timeline = self._flights_of_year()
        clock = before + timedelta(seconds=min(idle, MAX_CATCH_UP) * self._speed)
        following = timeline.next_after(before)
        if following - before > QUIET:
            clock = following
        if clock >= YEAR_END:
            self._begin(cursor, YEAR_START)
            return YEAR_START
        events = timeline.between(before, clock)
        if len(events) > MAX_EVENTS:
            clock = events[MAX_EVENTS - 1].at
            events = [event for event in events if event.at <= clock]
        rows = [board.Row.of(event) for event in events]
        board.write_rows(cursor, rows, clock)
        at = board.now(cursor) if rows else 0.0  # for the pages, which show how long a change takes
        for row in rows:
            message = row.fields | {"clock": clock.isoformat(), "at": at}
            self._stream.broadcast(json.dumps(message), event="flight", using=cursor)
        return clock

    def _pause(self, clock: datetime) -> float:
        wait = (self._flights_of_year().next_after(clock) - clock).total_seconds() / self._speed
        return min(max(wait, MIN_PAUSE), MAX_PAUSE)

    def _flights_of_year(self) -> Timeline:
        # Loaded only in the process that plays.
        if self._timeline is None:
            self._timeline = Timeline(self._load())
        return self._timeline
