"""The demo as a whole: the departures board at ``/``, the lab at ``/lab``, and their background greenlets.

::

    demo = Demo(bus)
    instance.filters.share(bus.filters)
    streams = StreamApp(instance, demo.authorize)
    demo.start()  # after the schema was made

The streams ``demo:*`` must be public, and the setting ``presence`` must name :data:`PRESENCE`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import bottle

from ..errors import PgbusError
from . import pages, visitors
from .answers import PACE, Writer
from .departures import make_app
from .lab import add_lab
from .local import WSGIApp, for_this_machine, is_loopback
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
        self.app = make_app(bus, speed=speed, prefix=prefix)
        add_lab(self.app, bus, self.writer, prefix=prefix)
        _add_here(self.app, bus)

    def app_at(self, host: str) -> WSGIApp:
        """Return the application for a server at ``host``. At a loopback address, it only answers requests for a loopback name."""
        app: WSGIApp = self.app
        return for_this_machine(app) if is_loopback(host) else app

    def start(self) -> None:
        """Start to replay the flights."""
        self.replayer.start()

    def stop(self) -> None:
        """Stop publishing. Another process continues."""
        self.replayer.stop()
        self.writer.stop()


def _add_here(app: bottle.Bottle, bus: Bus) -> None:
    @app.get("/demo/here.json")  # type: ignore[untyped-decorator]
    def show_here() -> bottle.HTTPResponse:
        try:
            return pages.json_answer(visitors.here(bus, bottle.request.query.get("tab", "")))
        except PgbusError as error:
            raise pages.unavailable(error) from error
