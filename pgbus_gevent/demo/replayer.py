"""Replay the flights of 2013 at the speed asked for: one greenlet that moves the board and publishes each change."""

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
"""Seconds between two steps: the board shows nothing finer, and a step renews the lease."""
MAX_EVENTS = 50
"""In one step, so 200 a second at the most. At a higher speed than that allows, the simulation falls behind."""
MAX_CATCH_UP = 2.0
"""Seconds; what a longer pause has missed is not caught up with, the board goes on from where it stood."""
STALE = 3600.0
"""Seconds after which a board that nobody moved is not worth going on with."""
QUIET = timedelta(minutes=5)
"""Simulated; a longer wait for the next event is skipped, so that the night takes no time."""
MAX_BACK_OFF = 30.0

log = logging.getLogger(__name__)


class Replayer:
    """Plays the board of `bus` at `speed` simulated seconds per second, beside any number of others that do the same.

    :meth:`start` and :meth:`stop` may be called from any greenlet, and again. Of several replayers on one database one
    plays, and another takes over within some seconds when it is gone.
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
        """Play from now on, in a greenlet of its own."""
        if self._greenlet is None:
            self._stopping.clear()
            self._greenlet = gevent.spawn(self._run)

    def stop(self, timeout: float = 5.0) -> None:
        """Play no more; a step that takes longer than `timeout` seconds is given up, and rolled back."""
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
            except (PgbusError, OSError) as error:  # the flights are in a file, which takes a descriptor
                failures += 1
                self._prepared = False  # it may be another database by the time it is back
                pause = random.uniform(1.0, min(MAX_BACK_OFF, 2.0**failures))
                log.warning("the departures board stands still, next try in %.1f s: %s", pause, error)
            self._stopping.wait(pause)
        self._release()

    def _release(self) -> None:
        try:
            with self._bus.transaction() as cursor:
                board.release_clock(cursor, self._owner)
        except PgbusError as error:
            log.info("the next replayer has to wait for the lease to end: %s", error)

    def step(self) -> float:
        """Move the clock to now and publish what came between; returns the seconds until the next step is due.

        Raises PgbusError when the database does; nothing has changed then, and nothing was published.
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
        """Fill the board as it was at `clock`; pages that are open load it anew."""
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
        for row in rows:
            message = row.fields | {"clock": clock.isoformat()}
            self._stream.broadcast(json.dumps(message), event="flight", using=cursor)
        return clock

    def _pause(self, clock: datetime) -> float:
        wait = (self._flights_of_year().next_after(clock) - clock).total_seconds() / self._speed
        return min(max(wait, MIN_PAUSE), MAX_PAUSE)

    def _flights_of_year(self) -> Timeline:
        # Only who plays loads them: the others of a large installation never need to.
        if self._timeline is None:
            self._timeline = Timeline(self._load())
        return self._timeline
