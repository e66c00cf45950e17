"""The demo as a whole: the departures board at ``/``, the lab at ``/lab``, and their background greenlets.

::

    demo = Demo(bus)
    instance.filters.share(bus.filters)
    streams = StreamApp(instance, demo.authorize)
    application = demo.publishing(application)  # the streams and demo.app
    demo.start()  # after the schema was made

The streams ``demo:*`` must be public, and the setting ``presence`` must name :data:`PRESENCE`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import bottle

from ..errors import PgbusError
from . import board, commands, manual, pages, visitors
from .answers import PACE, Writer
from .departures import make_app
from .hello import Hello
from .lab import add_lab
from .local import WSGIApp, for_this_machine, is_from_this_machine, is_loopback
from .rates import Rates
from .replayer import Replayer

if TYPE_CHECKING:
    from pgbus_gevent import Bus

PRESENCE = visitors.STREAM


class Demo:
    """The application, its publishers and its authorize hook. Any number of processes may run it on one database.

    ``speed`` is the speed of the flights in simulated seconds per second, ``pace`` the seconds per word of an answer.
    """

    authorize = staticmethod(visitors.authorize)

    def __init__(self, bus: Bus, *, speed: float = 60.0, prefix: str = "/pgbus", pace: float = PACE) -> None:
        bus.filters.register(visitors.ADMINS, visitors.is_admin)
        self.replayer = Replayer(bus, speed=speed)
        self.writer = Writer(bus, pace=pace)
        rates = Rates()
        self._prefix = prefix
        self._hello = Hello(bus, rates, bus.settings.secret)
        self._on_this_machine = commands.on_this_machine(bus.settings.database_url, bus.settings.data_dir)
        self.app = make_app(bus, self._commands, speed=speed, prefix=prefix)
        self._hello.add(self.app)
        add_lab(self.app, bus, self.writer, rates, Rates(), prefix=prefix)
        manual.add_manual(self.app)
        _add_data(self.app, bus)

    def app_at(self, host: str) -> WSGIApp:
        """Return the application for a server at ``host``. At a loopback address, it only answers requests for a loopback name."""
        app: WSGIApp = self.app
        return for_this_machine(app) if is_loopback(host) else app

    def publishing(self, app: WSGIApp) -> WSGIApp:
        """Return ``app``, the streams and this application, in which the demo's publish token is valid for its one stream."""
        return self._hello.publishing(app, self.app, self._prefix)

    def _commands(self) -> list[commands.Command]:
        """The commands for the visitor whose request is being answered."""
        request = bottle.request
        origin = f"{request.urlparts.scheme}://{request.urlparts.netloc}"
        origin = commands.checked_origin(origin) or "http://localhost:8080"
        local = self._on_this_machine if is_from_this_machine(request.environ) else []
        return [*local, *commands.over_http(origin, self._prefix, self._hello.token)]

    def start(self) -> None:
        """Start to replay the flights."""
        self.replayer.start()

    def stop(self) -> None:
        """Stop publishing. Another process continues."""
        self.replayer.stop()
        self.writer.stop()


def _add_data(app: bottle.Bottle, bus: Bus) -> None:
    @app.get("/demo/clock.json")  # type: ignore[untyped-decorator]
    def show_clock() -> bottle.HTTPResponse:
        try:
            with bus.transaction() as database_cursor:
                return pages.json_answer({"now": board.now(database_cursor)})
        except PgbusError as error:
            raise pages.unavailable(error) from error

    @app.get("/demo/here.json")  # type: ignore[untyped-decorator]
    def show_here() -> bottle.HTTPResponse:
        try:
            return pages.json_answer(visitors.here(bus, bottle.request.query.get("tab", "")))
        except PgbusError as error:
            raise pages.unavailable(error) from error
