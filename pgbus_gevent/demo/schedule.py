"""Turns a year of flights into a timeline of events on a departures board.

These are pure functions over simulated time and read no clock. The data has the scheduled and the real departure of each flight.
The announcements in between are made up here, and are the same each time::

    scheduled ─┬─> boarding ─────────────────> departed ─> off the board
               ├─> delayed ─> delayed again ─> boarding …
               └─> cancelled ────────────────────────────> off the board

The page relies on two facts. An event is a whole row, so the last event of each flight makes up the board. And the board at one
time, changed by the events up to a later time, is the board at that later time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from functools import lru_cache
from operator import attrgetter
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .flights import YEAR, Flight, Flights

YEAR_START = datetime(YEAR, 1, 1)
YEAR_END = datetime(YEAR + 1, 1, 1)

LISTED_BEFORE = timedelta(minutes=60)
"""How long before its scheduled time a flight appears on the board."""
BOARDS_BEFORE = timedelta(minutes=8)
"""How long before departure a flight is boarding: less than in reality, or most flights on a screen would be boarding."""
DEPARTED_STAYS = timedelta(minutes=3)
CANCELLED_STAYS = timedelta(minutes=3)
"""How long a flight is still shown after it has left, or after the scheduled time of a cancelled one."""
NOTABLE_DELAY = 10
"""Minutes. A smaller delay is not announced."""

FIRST_HOUR, LAST_HOUR = 6, 18
"""At these hours, at least twenty flights are on the board on every day of the year. Late in the evening there may be one."""
MORNING_HOUR = 7

Status = Literal["scheduled", "delayed", "boarding", "departed", "cancelled"]


class Event(NamedTuple):
    """The state of ``flight`` on the board from the time ``at`` on."""

    at: datetime
    flight: Flight
    status: Status
    expected: datetime
    """The announced time of departure, or the real one once the flight has left."""
    until: datetime | None = None
    """When the flight disappears from the board; None if another event follows."""


def events_of(flight: Flight) -> list[Event]:
    """Return all events of one flight, by time."""
    departed = flight.departed
    first = min(flight.scheduled, departed or flight.scheduled) - LISTED_BEFORE
    events = [Event(first, flight, "scheduled", flight.scheduled)]
    if departed is None:
        at = flight.scheduled - timedelta(minutes=10 + flight.id % 30)
        events.append(Event(at, flight, "cancelled", flight.scheduled, flight.scheduled + CANCELLED_STAYS))
    else:
        expected = flight.scheduled
        for at, expected in _announcements(flight.id, flight.scheduled, flight.delay or 0):
            events.append(Event(at, flight, "delayed", expected))
        events.append(Event(departed - BOARDS_BEFORE, flight, "boarding", expected))
        events.append(Event(departed, flight, "departed", departed, departed + DEPARTED_STAYS))
    # The data has whole minutes. Each flight gets a second, because otherwise all events of a minute would come together.
    second = timedelta(seconds=flight.id * 37 % 60)
    return [event._replace(at=event.at + second, until=event.until and event.until + second) for event in events]


def _announcements(seed: int, scheduled: datetime, delay: int) -> Iterator[tuple[datetime, datetime]]:
    """Yield (time, new estimate) for each announcement. A long delay is announced in several steps, as travellers know."""
    if delay < NOTABLE_DELAY:
        return
    at = scheduled - timedelta(minutes=20 + seed % 20)
    parts = min(1 + delay // 60, 5)
    for part in range(1, parts + 1):
        minutes = delay * part // parts // 5 * 5
        expected = scheduled + timedelta(minutes=minutes)
        yield at, expected
        at = expected - timedelta(minutes=10)


class Timeline:
    """All events of the year in order. The events of a day are made when they are needed."""

    def __init__(self, flights: Flights) -> None:
        self._flights = flights
        # A call needs the events of a few days, see _days().
        self._events_of_day = lru_cache(maxsize=8)(self._make_day)

    def _make_day(self, day: date) -> list[Event]:
        """Make the events of the flights that were scheduled on a day. Some of these leave on the next day."""
        events = [event for flight in self._flights.on(day) for event in events_of(flight)]
        return sorted(events, key=attrgetter("at", "flight.id"))

    def between(self, after: datetime, upto: datetime) -> list[Event]:
        """Return the events later than ``after`` and not later than ``upto``, in order."""
        found: list[Event] = []
        for day in _days(after, upto):
            events = self._events_of_day(day)
            start, end = (bisect_right(events, moment, key=attrgetter("at")) for moment in (after, upto))
            found += events[start:end]
        return sorted(found, key=attrgetter("at", "flight.id"))

    def board_at(self, moment: datetime) -> dict[int, Event]:
        """Return the last event of every flight on the board, by flight id."""
        board: dict[int, Event] = {}
        for day in _days(moment, moment):
            events = self._events_of_day(day)
            for event in events[: bisect_right(events, moment, key=attrgetter("at"))]:
                board[event.flight.id] = event
        return {key: event for key, event in board.items() if event.until is None or event.until > moment}

    def next_after(self, moment: datetime) -> datetime:
        """Return the time of the next event, or the end of the year."""
        end = moment
        while end < YEAR_END:
            end += timedelta(hours=6)
            if events := self.between(moment, end):
                return min(events[0].at, YEAR_END)
        return YEAR_END


def _days(first: datetime, last: datetime) -> list[date]:
    """Return the days whose flights can have events in this span. The longest delay of the year is less than 22 hours."""
    day = first.date() - timedelta(days=2)
    count = (last.date() - day).days + 2
    return [day + timedelta(days=offset) for offset in range(count)]


def starting_point(now: datetime) -> datetime:
    """Return the time in 2013 at which the board starts: the present date and time of day in New York.

    ``now`` has a zone. In the evening and at night, the board starts at seven in the morning instead, because it would be nearly
    empty.
    """
    local = now.astimezone(_new_york())
    day = 28 if (local.month, local.day) == (2, 29) else local.day
    start = datetime(YEAR, local.month, day, local.hour, local.minute)
    return start if FIRST_HOUR <= start.hour <= LAST_HOUR else start.replace(hour=MORNING_HOUR, minute=0)


def _new_york() -> ZoneInfo | timezone:
    try:
        return ZoneInfo("America/New_York")
    except ZoneInfoNotFoundError:  # this system has no time zone data; standard time is good enough for a demo
        return timezone(timedelta(hours=-5))
