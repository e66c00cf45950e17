"""pgbus in a Bottle application: the streams mounted, the bus handed to the routes that ask for it, a server for ``bottle.run``.

::

    app = bottle.Bottle()
    app.install(PgbusPlugin(Bus()))

    @app.get("/orders")
    def orders(pgbus):
        return template("orders", stream=pgbus.stream_tag("orders"))

    bottle.run(app, server=Server)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import bottle

from .bus import Bus
from .hosts.pywsgi import Server as _WSGIServer
from .hosts.pywsgi import listen
from .hosts.running import run_until_stopped
from .streamer.instance import Instance
from .web.stream_app import Authorize, StreamApp

__all__ = ["PgbusPlugin", "Server"]


class PgbusPlugin:
    """A plugin by Bottle's plugin API 2.

    ``keyword`` is the argument by which a route asks for the bus; two plugins in one application need different ones, and
    different prefixes (a setting of the bus). ``authorize`` is as in :class:`StreamApp`. ``instance`` is made from the bus's
    settings where none is given; it starts with the server, or with the first request under the prefix.
    """

    api = 2

    def __init__(
        self,
        bus: Bus,
        *,
        keyword: str = "pgbus",
        authorize: Authorize | None = None,
        instance: Instance | None = None,
    ) -> None:
        if not isinstance(bus, Bus):
            raise bottle.PluginError(f"PgbusPlugin takes a pgbus_gevent.Bus, not {type(bus).__name__}")
        if not keyword.isidentifier():
            raise bottle.PluginError(f"keyword={keyword!r} cannot be the name of an argument")
        self.name = f"pgbus:{keyword}"
        self.bus = bus
        self.keyword = keyword
        self.instance = instance or Instance(bus.settings, filters=bus.filters)
        self._streams = StreamApp(self.instance, authorize)

    def setup(self, app: bottle.Bottle) -> None:
        """Mount the streams; called by ``install``. Raises PluginError where another plugin is in the way."""
        for other in app.plugins:
            if isinstance(other, PgbusPlugin) and other is not self:
                self._check_beside(other)
            elif getattr(other, "keyword", None) == self.keyword and other is not self:
                raise bottle.PluginError(
                    f"the plugin {type(other).__name__} hands out {self.keyword!r} already: give one of them another keyword="
                )
        app.mount(f"{self._streams.prefix}/", self._streams)

    def _check_beside(self, other: PgbusPlugin) -> None:
        if other.keyword == self.keyword:
            raise bottle.PluginError(
                f"there is a PgbusPlugin with keyword={self.keyword!r} already: give this one another keyword="
            )
        if other._streams.prefix == self._streams.prefix:
            raise bottle.PluginError(
                f"there is a PgbusPlugin at {self._streams.prefix} already: give this one's Bus another prefix="
            )

    def apply(self, callback: Callable[..., Any], route: bottle.Route) -> Callable[..., Any]:
        """Hand the bus to a route that names the keyword; leave any other as it is."""
        parameters = inspect.signature(route.callback).parameters
        if self.keyword not in parameters:
            return callback

        def with_bus(*args: Any, **kwargs: Any) -> Any:
            kwargs[self.keyword] = self.bus
            return callback(*args, **kwargs)

        return with_bus

    def close(self) -> None:
        """Stop the streams and close the bus's connections; called by ``uninstall`` and ``app.close``."""
        self.instance.shutdown()
        self.bus.close()


class Server(bottle.ServerAdapter):  # type: ignore[misc]  # bottle has no types
    """``bottle.run(app, server=Server)``: our WSGI server, under which an idle stream costs no greenlet.

    It ends at SIGTERM or SIGINT, as ``python -m pgbus_gevent.serve`` does.
    """

    def run(self, handler: Callable[..., Iterable[bytes]]) -> None:
        plugins = [plugin for plugin in getattr(handler, "plugins", ()) if isinstance(plugin, PgbusPlugin)]
        instances = [plugin.instance for plugin in plugins]
        server = _WSGIServer(listen(self.host, self.port), handler, **self.options)
        for instance in instances:
            instance.start()
        server.start()
        run_until_stopped(server, instances)
