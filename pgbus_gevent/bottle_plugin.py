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
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

import bottle
import gevent

from .bus import Bus
from .core.client import Subscriber
from .hosts.pywsgi import Server as _WSGIServer
from .hosts.pywsgi import listen
from .hosts.running import run_until_stopped, stop
from .streamer.instance import Instance, instances
from .web.responses import StartResponse
from .web.stream_app import Authorize, StreamApp

__all__ = ["PgbusPlugin", "Server"]

_PATH = re.compile(r"(/[\w.~-]+)+", re.ASCII)
_RELOAD_GRACE = 1.0  # seconds for the farewells when Bottle's reloader ends the process to start it anew


class PgbusPlugin:
    """A plugin by Bottle's plugin API 2.

    ``keyword`` is the argument by which a route asks for the bus. Two plugins in one application need different ones, and
    different prefixes (a setting of the bus). ``authorize`` is as in :class:`StreamApp`. ``instance`` is made from the bus's
    settings where none is given; it starts with the server, or with the first request under the prefix. ``mount`` is where in
    the application the streams are, for one that browsers see below some path: the prefix is ``/shop/pgbus``, say, and
    ``mount`` is ``/pgbus``. By default both are the same.

    Bottle applies the plugins of an application to its own routes alone: install the same plugin in the applications that are
    mounted in it too, where their routes want the bus.

    Raises bottle.PluginError for what cannot work.
    """

    api = 2

    def __init__(
        self,
        bus: Bus,
        *,
        keyword: str = "pgbus",
        authorize: Authorize | None = None,
        instance: Instance | None = None,
        mount: str | None = None,
    ) -> None:
        _check(bus, keyword, instance, mount)
        self.name = "pgbus" if keyword == "pgbus" else f"pgbus:{keyword}"
        self.bus = bus
        self.keyword = keyword
        self.instance = instance or Instance(bus.settings, filters=bus.filters)
        self.mount = mount or bus.settings.prefix
        self._streams = StreamApp(self.instance, authorize)
        bus.subscriber_of = self._subscriber

    def __repr__(self) -> str:
        return f"<PgbusPlugin {self.keyword!r} at {self.mount}>"

    def setup(self, app: bottle.Bottle) -> None:
        """Mount the streams; called by ``install``. Raises PluginError where another plugin is in the way."""
        if self.instance.draining:
            raise bottle.PluginError(f"{self!r} was closed, and cannot serve again: install a new one")
        for other in app.plugins:
            self._check_beside(other)
        app.mount(f"{self.mount}/", self._serve)

    def _check_beside(self, other: Any) -> None:
        if other is self:
            raise bottle.PluginError(f"{self!r} is installed in this application already")
        if getattr(other, "keyword", None) == self.keyword:
            raise bottle.PluginError(
                f"{type(other).__name__} hands out {self.keyword!r} already: give one of them another keyword="
            )
        if getattr(other, "name", None) == self.name:
            raise bottle.PluginError(
                f"{type(other).__name__} has the name {self.name!r} too, and Bottle would leave one of them out:"
                " give this one another keyword="
            )
        if isinstance(other, PgbusPlugin) and _overlap(other.mount, self.mount):
            raise bottle.PluginError(
                f"{other!r} has the paths of {self!r}: give one of their buses another prefix="
                if other.mount == self.mount
                else f"{other!r} and {self!r} lie one below the other: give one of their buses another prefix="
            )

    def _serve(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """The streams, wherever an application that this one was mounted in has put them.

        Bottle has taken as many segments off the front of the path as the mount has; where it moved the mount itself, these
        were others. The rule of the route tells how many really lie before the streams' own path.
        """
        before = environ["bottle.route"].rule.strip("/").count("/")
        below = environ["bottle.raw_path"].split("/", before + 1)[-1]
        ours = {**environ, "PATH_INFO": f"{self._streams.prefix}/{below}"}
        del ours["bottle.raw_path"]
        return self._streams(ours, start_response)

    def _subscriber(self, stream: str) -> Subscriber | None:
        """Who looks at the page of the current request, for the elements on it."""
        try:
            environ = bottle.request.environ
        except RuntimeError:
            return None  # a greenlet, or a thread, that never had a request
        # It is empty where none has come yet.
        return self._streams.subscriber(environ, stream) if "REQUEST_METHOD" in environ else None

    def apply(self, callback: Callable[..., Any], route: bottle.Route) -> Callable[..., Any]:
        """Hand the bus to a route that names the keyword; leave any other as it is."""
        if not _names(route.callback, self.keyword):
            return callback

        def with_bus(*args: Any, **kwargs: Any) -> Any:
            if self.keyword in kwargs:
                raise bottle.PluginError(
                    f"{route.rule} fills the argument {self.keyword!r} from the URL, and {self!r} would too"
                )
            return callback(*args, **kwargs, **{self.keyword: self.bus})

        return with_bus

    def close(self) -> None:
        """Send the streams' clients away and close the bus's connections; called by ``uninstall`` and ``app.close``.

        It is for good, in every application that the plugin is installed in: clients that come back are told to try later.
        """
        self.instance.shutdown()
        self.bus.close()


def _check(bus: Any, keyword: Any, instance: Any, mount: Any) -> None:
    if not isinstance(bus, Bus):
        raise bottle.PluginError(f"PgbusPlugin takes a pgbus_gevent.Bus, not {_kind(bus)}")
    if not isinstance(keyword, str) or not keyword.isidentifier():
        raise bottle.PluginError(f"keyword={keyword!r} cannot be the name of an argument")
    if mount is not None and not _PATH.fullmatch(mount):
        raise bottle.PluginError(f"mount={mount!r} is not allowed: a path such as /pgbus, without wildcards")
    if instance is None:
        return
    if not isinstance(instance, Instance):
        raise bottle.PluginError(f"instance= takes a pgbus_gevent.streamer.Instance, not {_kind(instance)}")
    for setting in ("prefix", "secret"):
        if getattr(instance.settings, setting) != getattr(bus.settings, setting):
            raise bottle.PluginError(
                f"the instance has another {setting} than the bus: it would not know the streams of the bus's pages;"
                " make both from the same settings"
            )


def _kind(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"


def _overlap(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _names(function: Any, keyword: str) -> bool:
    """Whether a function, or what it decorates and hands its keywords on to, has an argument of that name.

    ``inspect.signature`` alone would say what the innermost function takes, though a decorator may itself be who takes or
    provides it.
    """
    while function is not None:
        try:
            parameters = inspect.signature(function, follow_wrapped=False).parameters
        except (TypeError, ValueError):
            pass  # something of C's, functools.cache for example: it hands everything on
        else:
            if keyword in parameters:
                return parameters[keyword].kind in _BY_KEYWORD
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                return False
        function = getattr(function, "__wrapped__", None)
    return False


_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Server(bottle.ServerAdapter):  # type: ignore[misc]  # bottle has no types
    """``bottle.run(app, server=Server)``: our WSGI server, under which an idle stream costs no greenlet.

    It ends at SIGTERM or SIGINT as ``python -m pgbus_gevent.serve`` does, and then ``bottle.run`` returns; SystemExit with status 1
    says that a part failed for good. ``port=0`` takes any that is free; :attr:`port` is then that. Other options go to
    :class:`pgbus_gevent.hosts.pywsgi.Server`, and to gevent's WSGIServer.
    """

    host: str
    port: int

    def run(self, handler: Callable[..., Iterable[bytes]]) -> None:
        found = instances()
        server = self._make(handler, found)
        try:
            for instance in found:
                instance.start()
            server.start()
            self._announce(server.server_port)
            _end_for_reloader()
            status = run_until_stopped(server, found)
        except KeyboardInterrupt:
            stop(server, found, _RELOAD_GRACE)
            raise
        finally:
            server.stop(0)
        if status:
            raise SystemExit(status)

    def _make(self, handler: Callable[..., Iterable[bytes]], found: list[Instance]) -> _WSGIServer:
        options = self.options
        if found:
            settings = found[0].settings
            options = {
                "request_timeout": settings.request_timeout,
                "max_request_head": settings.max_request_head,
                **options,
            }
        return _WSGIServer(listen(self.host, self.port), handler, **options)

    def _announce(self, port: int) -> None:
        if self.port == port:
            return
        self.port = port
        if not self.quiet:
            # As Bottle would have printed it, had it known.
            print(f"Listening on http://{self.host}:{port}/", file=sys.stderr, flush=True)


def _end_for_reloader() -> None:
    """Let Bottle's reloader end this process: its thread interrupts the main one, but in a patched process it runs within that."""
    if "BOTTLE_CHILD" in os.environ:
        main = gevent.getcurrent()
        # Ctrl-C is not meant: that comes to the event loop.
        signal.signal(signal.SIGINT, lambda *_: gevent.kill(main, KeyboardInterrupt()))
