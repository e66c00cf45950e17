"""What a board shows of a flight, and when: from a year of flights to a timeline of events.

Pure functions over simulated time, no clock of their own. The data says when a flight was to leave and when it left;
what the passengers were told in between is made up here, and is the same each time::

    scheduled ─┬─> boarding ─────────────────> departed ─> off the board
               ├─> delayed ─> delayed again ─> boarding …
               └─> cancelled ────────────────────────────> off the board

What holds, and what the page relies on: an event is the whole row, so the last one of each flight is the board; and the
board at one time, changed by the events up to a later one, is the board at that later time.
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
"""How long before its time a flight comes on the board."""
BOARDS_BEFORE = timedelta(minutes=8)
"""How long before it leaves it is boarding: late for a real one, so that a screenful has more than boarding flights."""
DEPARTED_STAYS = timedelta(minutes=3)
CANCELLED_STAYS = timedelta(minutes=3)
"""How long past its time the flight is still shown, once it has left, or will not."""
NOTABLE_DELAY = 10
"""Minutes; less is not announced, it only leaves late."""

FIRST_HOUR, LAST_HOUR = 6, 21
"""Outside of these New York's airports sleep, and the board would be empty."""
MORNING_HOUR = 7

Status = Literal["scheduled", "delayed", "boarding", "departed", "cancelled"]


class Event(NamedTuple):
    """What the board says about `flight` from `at` on."""

    at: datetime
    flight: Flight
    status: Status
    expected: datetime
    """When it leaves, as far as is known; once it has left, when it did."""
    until: datetime | None = None
    """When it goes off the board; None: not before another event."""


def events_of(flight: Flight) -> list[Event]:
    """All events of one flight, in the order of their time."""
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
    # The data knows minutes. Each flight has a second of its own, else all that a minute brings would come at once.
    second = timedelta(seconds=flight.id * 37 % 60)
    return [event._replace(at=event.at + second, until=event.until and event.until + second) for event in events]


def _announcements(seed: int, scheduled: datetime, delay: int) -> Iterator[tuple[datetime, datetime]]:
    """When each new estimate is told, and the estimate: a long delay is owned up to bit by bit, as travellers know."""
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
    """All events of the year in order, made day by day as they are asked for."""

    def __init__(self, flights: Flights) -> None:
        self._flights = flights
        # A question is about the events of a few days: see _days.
        self._events_of_day = lru_cache(maxsize=8)(self._make_day)

    def _make_day(self, day: date) -> list[Event]:
        """Of the flights that were to leave that day; the last of them may leave on the next one."""
        events = [event for flight in self._flights.on(day) for event in events_of(flight)]
        return sorted(events, key=attrgetter("at", "flight.id"))

    def between(self, after: datetime, upto: datetime) -> list[Event]:
        """The events later than `after`, up to and with `upto`, in order."""
        found: list[Event] = []
        for day in _days(after, upto):
            events = self._events_of_day(day)
            start, end = (bisect_right(events, moment, key=attrgetter("at")) for moment in (after, upto))
            found += events[start:end]
        return sorted(found, key=attrgetter("at", "flight.id"))

    def board_at(self, moment: datetime) -> dict[int, Event]:
        """The last event of every flight that is on the board, by flight id."""
        board: dict[int, Event] = {}
        for day in _days(moment, moment):
            events = self._events_of_day(day)
            for event in events[: bisect_right(events, moment, key=attrgetter("at"))]:
                board[event.flight.id] = event
        return {key: event for key, event in board.items() if event.until is None or event.until > moment}

    def next_after(self, moment: datetime) -> datetime:
        """When the next event is; the end of the year when none is left."""
        end = moment
        while end < YEAR_END:
            end += timedelta(hours=6)
            if events := self.between(moment, end):
                return min(events[0].at, YEAR_END)
        return YEAR_END


def _days(first: datetime, last: datetime) -> list[date]:
    """The days whose flights can have events in this span: the longest delay of the year is under 22 hours."""
    day = first.date() - timedelta(days=2)
    count = (last.date() - day).days + 2
    return [day + timedelta(days=offset) for offset in range(count)]


def starting_point(now: datetime) -> datetime:
    """Where in 2013 the board starts when it is `now` (with a zone): the same date and time of the day in New York.

    At night it is seven in the morning instead, so that there is something to see.
    """
    local = now.astimezone(_new_york())
    day = 28 if (local.month, local.day) == (2, 29) else local.day
    start = datetime(YEAR, local.month, day, local.hour, local.minute)
    return start if FIRST_HOUR <= start.hour <= LAST_HOUR else start.replace(hour=MORNING_HOUR, minute=0)


def _new_york() -> ZoneInfo | timezone:
    try:
        return ZoneInfo("America/New_York")
    except ZoneInfoNotFoundError:  # no time zone data on this system; near enough for a demo
        return timezone(timedelta(hours=-5))
