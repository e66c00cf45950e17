"""The departures board: a Bottle application, and the page at its root.

::

    replayer = Replayer(bus, speed=60)
    replayer.start()
    app = make_app(bus, speed=60)

The page is rendered with the stream's watermark, which is read in the same REPEATABLE READ transaction as the rows. A browser
that follows the stream from the watermark misses no change and sees none twice, even if the page took long to load.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import bottle

from ..errors import PgbusError
from . import board
from .flights import ORIGINS
from .pages import HEADERS, add_assets, cursor_before, json_answer, template, unavailable
from .replayer import STREAM, Replayer
from .schedule import YEAR_START

if TYPE_CHECKING:
    from pgbus_gevent import Bus

__all__ = ["HELLO_STREAM", "STREAM", "Page", "Replayer", "make_app", "render"]

HELLO_STREAM = "demo:hello"
"""The stream for visitors: its messages appear on the page."""
GREETINGS = 8
"""The number of earlier messages of that stream that a page shows."""
ROWS_SHOWN = 18
"""The number of rows that are shown until the visitor asks for all."""


def make_app(bus: Bus, *, speed: float = 60.0, prefix: str = "/pgbus") -> bottle.Bottle:
    """Return the application: the page at ``/``, and its files and data below ``/demo/``.

    ``speed`` is the replayer's, in simulated seconds per second; the clock on the page runs at it between messages. ``prefix``
    is the path of the streams on the same origin. The streams ``demo:*`` must be public.
    """
    app = bottle.Bottle()
    reader = _Reader(bus)

    @app.get("/")  # type: ignore[untyped-decorator]
    def show_page() -> bottle.HTTPResponse:
        page = reader.read()
        return bottle.HTTPResponse(render(page, speed=speed, prefix=prefix, origin=_origin()), headers=HEADERS)

    @app.get("/demo/board.json")  # type: ignore[untyped-decorator]
    def show_rows() -> bottle.HTTPResponse:
        return json_answer(reader.read().state)

    add_assets(app)
    return app


class Page(NamedTuple):
    """The board, and the watermark of its stream in the same snapshot."""

    snapshot: board.Snapshot
    watermark: int
    hello_since: int = 0
    """The cursor after which the newest messages of :data:`HELLO_STREAM` follow."""
    hello_watermark: int = 0
    """The id of the newest one."""

    @property
    def state(self) -> dict[str, Any]:
        """The data with which a browser shows the board and follows its stream."""
        clock = self.snapshot.clock or YEAR_START
        return {
            "clock": clock.isoformat(),
            "since": self.watermark,
            "rows": [row.fields for row in self.snapshot.rows],
        }


class _Reader:
    """Reads the page's contents from the database."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._stream = bus.stream(STREAM)
        self._hello = bus.stream(HELLO_STREAM)
        self._prepared = False

    def read(self) -> Page:
        """Read everything in one snapshot. Raises the HTTP response to send if the database cannot be used."""
        try:
            if not self._prepared:
                # The page may be requested before the replayer's first step.
                with self._bus.transaction() as database_cursor:
                    board.prepare(database_cursor)
                self._prepared = True
            with self._bus.transaction(isolation="repeatable read") as database_cursor:
                return Page(
                    board.read(database_cursor),
                    self._stream.last_id(using=database_cursor),
                    cursor_before(database_cursor, HELLO_STREAM, GREETINGS),
                    self._hello.last_id(using=database_cursor),
                )
        except PgbusError as error:
            self._prepared = False
            raise unavailable(error) from error


def render(page: Page, *, speed: float, prefix: str, origin: str) -> str:
    """Return the HTML of the page. ``origin`` is the server's origin in the visitor's browser, for the commands on the page."""
    clock = page.snapshot.clock or YEAR_START
    return str(
        _TEMPLATE.render(
            **page.state,
            statuses=Counter(row.status for row in page.snapshot.rows),
            blank=dict.fromkeys((*board.Row._fields, "time", "was", "remark"), ""),
            rows_shown=ROWS_SHOWN,
            origins=ORIGINS,
            today=f"{clock:%a} {clock.day} {clock:%b %Y}",
            speed=f"{speed:g}",
            prefix=prefix,
            stream=STREAM,
            hello=HELLO_STREAM,
            hello_since=page.hello_since,
            hello_watermark=page.hello_watermark,
            commands=_commands(prefix, origin),
        )
    )


_TEMPLATE = template("departures.html")


def _commands(prefix: str, origin: str) -> list[tuple[str, str]]:
    # The colons are not escaped: a path may have them, and the command is easier to read.
    streams = f"{origin.removeprefix('http://')}{prefix}/streams"
    return [
        (
            "SQL (serve prints the URL)",
            f"psql \"$PGBUS_DATABASE_URL\" -c \"select pgbus.broadcast('{HELLO_STREAM}', 'Hello')\"",
        ),
        ("The command line", f"pgbus-gevent broadcast {HELLO_STREAM} 'Hello'"),
        (
            "HTTP, with the publish token",
            f"curl -H \"Authorization: Bearer $PGBUS_PUBLISH_TOKEN\" -d 'Hello' {streams}/{HELLO_STREAM}",
        ),
        ("Follow the board without a browser", f"curl -N {streams}/{STREAM}"),
    ]


def _origin() -> str:
    parts = bottle.request.urlparts
    # Visitors paste this into a shell, so the Host header must look like a host.
    host = parts.netloc if re.fullmatch(r"[\w.-]+(:\d+)?|\[[\da-fA-F:]+\](:\d+)?", parts.netloc) else "localhost:8080"
    return f"{parts.scheme}://{host}"
