"""The board in PostgreSQL: one row per flight on it, and the simulated clock. All SQL of the demo is here.

The clock is also what keeps several processes from replaying twice. A replayer moves the clock on and publishes what
came between in one transaction that has the clock's row locked, so whatever was published is exactly what the clock
says, whoever did it. The lease beside it only saves the others from trying each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from .schedule import NOTABLE_DELAY, Event, Status

LEASE = 5
"""Seconds for which the replayer that moved the clock last keeps the others off it."""

_TABLES = """
select pg_advisory_xact_lock(hashtext('pgbus_gevent.demo'));  -- "if not exists" alone fails when two make it at once
create table if not exists demo_board (
    id integer primary key,
    flight text not null,
    airline text not null,
    origin text not null,
    destination text not null,
    destination_code text not null,
    scheduled timestamp not null,
    expected timestamp not null,
    status text not null,
    until timestamp
);
create table if not exists demo_clock (
    only_row boolean primary key default true check (only_row),
    simulated timestamp,
    moved_at timestamptz not null default now(),
    owner text,
    leased_until timestamptz
);
insert into demo_clock default values on conflict do nothing;
"""

_TAKE_CLOCK = """
select simulated, extract(epoch from now() - moved_at)::double precision from demo_clock
where owner = %(owner)s or leased_until is null or leased_until < now()
for update skip locked
"""

_MOVE_CLOCK = """
update demo_clock
set simulated = %(simulated)s, moved_at = now(), owner = %(owner)s, leased_until = now() + %(lease)s * interval '1 s'
"""

_UPSERT = """
insert into demo_board select * from json_populate_recordset(null::demo_board, %(rows)s)
on conflict (id) do update set expected = excluded.expected, status = excluded.status, until = excluded.until
"""

_ROWS = """
select id, flight, airline, origin, destination, destination_code, scheduled, expected, status, until
from demo_board order by expected, id
"""


class Cursor(Protocol):
    """What is used of a psycopg2 cursor."""

    def execute(self, query: str, parameters: Mapping[str, Any] | None = None, /) -> object:
        """Run a statement."""

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row of the result."""

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows of the result."""


class Row(NamedTuple):
    """A line of the board; the fields are the columns of ``demo_board``, and the fields of a message."""

    id: int
    flight: str
    airline: str
    origin: str
    destination: str
    destination_code: str
    scheduled: datetime
    expected: datetime
    status: Status
    until: datetime | None

    @classmethod
    def of(cls, event: Event) -> Row:
        """What an event makes of its flight's line."""
        flight = event.flight
        return cls(
            id=flight.id,
            flight=flight.designator,
            airline=flight.airline,
            origin=flight.origin,
            destination=flight.destination.city,
            destination_code=flight.destination.code,
            scheduled=flight.scheduled,
            expected=event.expected,
            status=event.status,
            until=event.until,
        )

    @property
    def remark(self) -> str:
        """The status in words, as ``Delayed 1 h 25``."""
        if self.status != "delayed":
            return _REMARKS[self.status]
        hours, minutes = divmod(self._late, 60)
        if hours >= 10:
            return f"Delayed {hours} h"  # there are fourteen flaps
        return f"Delayed {hours} h {minutes:02}" if hours else f"Delayed {minutes} min"

    @property
    def _late(self) -> int:
        return int((self.expected - self.scheduled).total_seconds()) // 60

    @property
    def fields(self) -> dict[str, object]:
        """The line as JSON has it, and what a page shows of it.

        Times are local ones without a zone, as ``2013-07-15T08:05:00``. ``was`` is the time of a flight that is late,
        before it was; empty for the others.
        """
        times = {"scheduled": self.scheduled, "expected": self.expected, "until": self.until}
        shown = {
            "time": f"{self.expected:%H:%M}",
            "was": f"{self.scheduled:%H:%M}" if self._late >= NOTABLE_DELAY else "",
            "remark": self.remark,
        }
        return self._asdict() | {name: time and time.isoformat() for name, time in times.items()} | shown


_REMARKS = {"scheduled": "On time", "boarding": "Boarding", "departed": "Departed", "cancelled": "Cancelled"}


class Snapshot(NamedTuple):
    """The board as one transaction sees it."""

    clock: datetime | None
    """None: nobody has started the replay."""
    rows: list[Row]


def prepare(cursor: Cursor) -> None:
    """Make the two tables, where they are missing."""
    cursor.execute(_TABLES)


def take_clock(cursor: Cursor, owner: str) -> tuple[datetime | None, float] | None:
    """Lock the clock: the simulated time, and the seconds since it was moved; None while another one moves it."""
    cursor.execute(_TAKE_CLOCK, {"owner": owner})
    row = cursor.fetchone()
    return row and (row[0], row[1])


def move_clock(cursor: Cursor, owner: str, simulated: datetime) -> None:
    """Set the clock that this transaction has taken, and keep it for the length of the lease."""
    cursor.execute(_MOVE_CLOCK, {"simulated": simulated, "owner": owner, "lease": LEASE})


def release_clock(cursor: Cursor, owner: str) -> None:
    """Let another one move the clock at once."""
    cursor.execute("update demo_clock set leased_until = null where owner = %(owner)s", {"owner": owner})


def write_rows(cursor: Cursor, rows: Iterable[Row], clock: datetime) -> None:
    """Bring the table up to date: `rows` in order, the later one of a flight wins; what is past its time goes."""
    latest = {row.id: row.fields for row in rows}
    if latest:
        cursor.execute(_UPSERT, {"rows": json.dumps(list(latest.values()))})
    cursor.execute("delete from demo_board where until <= %(clock)s", {"clock": clock})


def replace_rows(cursor: Cursor, rows: Sequence[Row], clock: datetime) -> None:
    """Start over with these rows."""
    cursor.execute("delete from demo_board")
    write_rows(cursor, rows, clock)


def read(cursor: Cursor) -> Snapshot:
    """The board in the snapshot of the caller's transaction, ordered as it is shown."""
    cursor.execute("select simulated from demo_clock")
    found = cursor.fetchone()
    clock: datetime | None = found[0] if found else None
    cursor.execute(_ROWS)
    return Snapshot(clock, [Row(*row) for row in cursor.fetchall()])
