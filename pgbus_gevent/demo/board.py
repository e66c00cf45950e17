"""The board in PostgreSQL: one row for each flight on it, and the simulated clock.

The clock also prevents several processes from replaying the same events. A replayer locks the clock's row, advances the
clock and publishes the events in between, in one transaction. So the published events always match the clock, whichever
process published them. The lease in the same row only saves the other processes useless attempts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from .schedule import NOTABLE_DELAY, Event, Status

LEASE = 5
"""Seconds after a step in which only the same replayer may advance the clock."""

_TABLES = """
select pg_advisory_xact_lock(hashtext('pgbus_gevent.demo'));  -- without it, two concurrent "create ... if not exists" can fail
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
    """The methods of a psycopg2 cursor, a database cursor, that are used here."""

    def execute(self, query: str, parameters: Mapping[str, Any] | None = None, /) -> object:
        """Run a statement."""

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row of the result."""

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows of the result."""


class Row(NamedTuple):
    """A line of the board. Its fields are the columns of ``demo_board``, and the fields of a message."""

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
        """Return the flight's line after an event."""
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
        """The status in words, such as ``Delayed 1 h 25``."""
        if self.status != "delayed":
            return _REMARKS[self.status]
        hours, minutes = divmod(self._late, 60)
        if hours >= 10:
            return f"Delayed {hours} h"  # the column has fourteen flaps
        return f"Delayed {hours} h {minutes:02}" if hours else f"Delayed {minutes} min"

    @property
    def _late(self) -> int:
        return int((self.expected - self.scheduled).total_seconds()) // 60

    @property
    def fields(self) -> dict[str, object]:
        """The fields for JSON, and the texts that a page shows.

        Times are local and have no zone, such as ``2013-07-15T08:05:00``. ``was`` is the scheduled time of a late flight, and
        empty for other flights.
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
    """The board in the snapshot of one transaction."""

    clock: datetime | None
    """None if the replay has not started."""
    rows: list[Row]


def prepare(cursor: Cursor) -> None:
    """Make the two tables if they are missing."""
    cursor.execute(_TABLES)


def take_clock(cursor: Cursor, owner: str) -> tuple[datetime | None, float] | None:
    """Lock the clock. Returns the simulated time and the seconds since the last step, or None if another replayer has it."""
    cursor.execute(_TAKE_CLOCK, {"owner": owner})
    row = cursor.fetchone()
    return row and (row[0], row[1])


def move_clock(cursor: Cursor, owner: str, simulated: datetime) -> None:
    """Set the clock that this transaction has locked, and renew the lease."""
    cursor.execute(_MOVE_CLOCK, {"simulated": simulated, "owner": owner, "lease": LEASE})


def release_clock(cursor: Cursor, owner: str) -> None:
    """End the lease, so that another replayer can continue at once."""
    cursor.execute("update demo_clock set leased_until = null where owner = %(owner)s", {"owner": owner})


def now(cursor: Cursor) -> float:
    """Return the time of the database's clock in milliseconds since 1970. It goes on within a transaction."""
    cursor.execute("select extract(epoch from clock_timestamp())::double precision * 1000")
    row = cursor.fetchone()
    return float(row[0]) if row else 0.0


def write_rows(cursor: Cursor, rows: Iterable[Row], clock: datetime) -> None:
    """Write ``rows`` to the table; of several rows of one flight, the last one counts. Removes rows whose time is over."""
    latest = {row.id: row.fields for row in rows}
    if latest:
        cursor.execute(_UPSERT, {"rows": json.dumps(list(latest.values()))})
    cursor.execute("delete from demo_board where until <= %(clock)s", {"clock": clock})


def replace_rows(cursor: Cursor, rows: Sequence[Row], clock: datetime) -> None:
    """Replace the whole board with these rows."""
    cursor.execute("delete from demo_board")
    write_rows(cursor, rows, clock)


def read(cursor: Cursor) -> Snapshot:
    """Return the board in the snapshot of the caller's transaction, in the order in which it is shown."""
    cursor.execute("select simulated from demo_clock")
    found = cursor.fetchone()
    clock: datetime | None = found[0] if found else None
    cursor.execute(_ROWS)
    return Snapshot(clock, [Row(*row) for row in cursor.fetchall()])
