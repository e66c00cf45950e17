"""The departures board: a Bottle application, and the page at its root.

::

    replayer = Replayer(bus, speed=60)
    replayer.start()
    app = make_app(bus, speed=60)

The page is rendered with the stream's watermark, which is read in the same REPEATABLE READ transaction as the rows. A browser
that follows the stream from the watermark misses no change and sees none twice, even if the page took long to load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import bottle

from ..errors import PgbusError
from . import board, manual, pages
from .commands import Command
from .flights import ORIGINS
from .hello import MAX_TEXT
from .hello import STREAM as HELLO_STREAM
from .pages import add_assets, cursor_before, json_answer, template, unavailable
from .rates import EACH
from .replayer import STREAM, Replayer
from .schedule import YEAR_START

if TYPE_CHECKING:
    from pgbus_gevent import Bus

__all__ = ["HELLO_STREAM", "STREAM", "Page", "Replayer", "make_app", "render"]

GREETINGS = 8
"""The number of earlier messages of that stream that a page shows."""
ROWS_SHOWN = 18
"""The number of rows that are shown until the visitor asks for all."""


def make_app(
    bus: Bus, commands: Callable[[], Sequence[Command]] = tuple, *, speed: float = 60.0, prefix: str = "/pgbus"
) -> bottle.Bottle:
    """Return the application: the page at ``/``, and its files and data below ``/demo/``.

    ``commands`` returns the commands to show to the visitor whose request is being answered.
    ``speed`` is the replayer's, in simulated seconds per second; the clock on the page runs at it between messages. ``prefix``
    is the path of the streams on the same origin. The streams ``demo:*`` must be public.
    """
    app = bottle.Bottle()
    reader = _Reader(bus)

    @app.get("/")  # type: ignore[untyped-decorator]
    def show_page() -> bottle.HTTPResponse:
        return pages.page(render(reader.read(), commands(), speed=speed, prefix=prefix))

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


def render(page: Page, commands: Sequence[Command], *, speed: float, prefix: str) -> str:
    """Return the HTML of the page."""
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
            max_text=MAX_TEXT,
            commands=commands,
            rate=f"{EACH.per_second:g}",
            docs=manual.link(),
            local=any(command.name == "sql" for command in commands),
        )
    )


_TEMPLATE = template("departures.html")
