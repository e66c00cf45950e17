"""The departures board: a Bottle application, and the page at its root.

::

    replayer = Replayer(bus, speed=60)
    replayer.start()
    app = make_app(bus, speed=60)

The page is rendered with the stream's watermark, read in the same REPEATABLE READ transaction as the rows. A browser
that follows the stream from there on misses no change and sees none twice, however long the page was on its way.
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
"""What anybody publishes to it appears on the page."""
GREETINGS = 8
"""Of what was published to it before, as many."""
ROWS_SHOWN = 18
"""Until the visitor asks for all."""


def make_app(bus: Bus, *, speed: float = 60.0, prefix: str = "/pgbus") -> bottle.Bottle:
    """The application: the page at ``/`` and what it loads below ``/demo/``.

    `speed` is what the clock on the page runs at between two messages: the replayer's. `prefix` is where the package's
    own application answers, on the same origin; its streams ``demo:*`` have to be public.
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
    """The cursor before the newest greetings, and the newest one's id."""
    hello_watermark: int = 0

    @property
    def state(self) -> dict[str, Any]:
        """What a browser needs to show it and to follow from there."""
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
        """One consistent view; raises the HTTP answer to give when there is none to be had."""
        try:
            if not self._prepared:
                # The page may be asked for before the replayer has had its first turn.
                with self._bus.transaction() as cursor:
                    board.prepare(cursor)
                self._prepared = True
            with self._bus.transaction(isolation="repeatable read") as cursor:
                return Page(
                    board.read(cursor),
                    self._stream.last_id(using=cursor),
                    cursor_before(cursor, HELLO_STREAM, GREETINGS),
                    self._hello.last_id(using=cursor),
                )
        except PgbusError as error:
            self._prepared = False
            raise unavailable(error) from error


def render(page: Page, *, speed: float, prefix: str, origin: str) -> str:
    """The HTML of the page. `origin` is the server as the visitor reaches it, for the commands to copy."""
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
    # In a path a colon may stand as it is; what is to be read and pasted is better off with it.
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
    # The visitor is meant to paste this into a shell, so what the Host header says is not taken on trust.
    host = parts.netloc if re.fullmatch(r"[\w.-]+(:\d+)?|\[[\da-fA-F:]+\](:\d+)?", parts.netloc) else "localhost:8080"
    return f"{parts.scheme}://{host}"
