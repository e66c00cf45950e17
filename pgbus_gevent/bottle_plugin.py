"""pgbus in a Bottle application: a plugin that mounts the streams and passes the bus to routes, and a server for ``bottle.run``.

The process must be patched for gevent before anything else is imported; docs/bottle.md has a whole application.
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
_RELOAD_GRACE = 1.0  # seconds for the farewells if Bottle's reloader restarts the process


class PgbusPlugin:
    """A Bottle plugin (plugin API 2) that serves the streams of ``bus`` and passes the bus to routes.

    Args:
        bus: A :class:`Bus`. Its setting ``prefix`` is the path of the streams.
        keyword: The argument in which a route gets the bus. Two plugins in one application need different keywords and prefixes.
        authorize: The authorize hook, as in :class:`StreamApp`.
        instance: An Instance with the settings of the bus; by default, one is made. It starts with the server, or with the first
            request under the prefix.
        mount: The path of the streams within the application; by default, the prefix. They differ if browsers see the application
            below a path: then the prefix is ``/shop/pgbus``, for example, and ``mount`` is ``/pgbus``.

    Bottle applies a plugin only to the routes of the application that it is installed in. If the routes of a mounted application
    need the bus, install the same plugin there too.

    Raises bottle.PluginError for an argument that is not allowed, and for a conflict with another plugin.
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
        bus.is_answer = _is_answer

    def __repr__(self) -> str:
        return f"<PgbusPlugin {self.keyword!r} at {self.mount}>"

    def setup(self, app: bottle.Bottle) -> None:
        """Mount the streams. ``install`` calls it. Raises bottle.PluginError for a conflict with another plugin."""
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
                f"{type(other).__name__} already passes the argument {self.keyword!r}: give one of the two another keyword="
            )
        if getattr(other, "name", None) == self.name:
            raise bottle.PluginError(
                f"{type(other).__name__} has the name {self.name!r} too, so Bottle would skip one of the two:"
                " give this plugin another keyword="
            )
        if isinstance(other, PgbusPlugin) and _overlap(other.mount, self.mount):
            raise bottle.PluginError(
                f"{other!r} has the same path as {self!r}: give one of their buses another prefix="
                if other.mount == self.mount
                else f"the path of one is below that of the other, {other!r} and {self!r}: give one of their buses another prefix="
            )

    def _serve(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Serve the streams, also if this application is mounted in another one.

        Bottle has removed as many segments from the front of the path as the mount has. If the application is itself mounted, these
        are the wrong segments. The rule of the route shows how many segments really come before the streams' own path.
        """
        before = environ["bottle.route"].rule.strip("/").count("/")
        below = environ["bottle.raw_path"].split("/", before + 1)[-1]
        ours = {**environ, "PATH_INFO": f"{self._streams.prefix}/{below}"}
        del ours["bottle.raw_path"]
        return self._streams(ours, start_response)

    def _subscriber(self, stream: str) -> Subscriber | None:
        """The subscriber of the current request, for the elements on its page; None outside a request."""
        try:
            environ = bottle.request.environ
        except RuntimeError:
            return None  # this greenlet or thread never had a request
        # The environ is empty before the first request.
        return self._streams.subscriber(environ, stream) if "REQUEST_METHOD" in environ else None

    def apply(self, callback: Callable[..., Any], route: bottle.Route) -> Callable[..., Any]:
        """Wrap a route that has an argument named ``keyword``, so that it gets the bus; return any other route unchanged."""
        if not _names(route.callback, self.keyword):
            return callback

        def with_bus(*args: Any, **kwargs: Any) -> Any:
            if self.keyword in kwargs:
                raise bottle.PluginError(
                    f"the route {route.rule} takes the argument {self.keyword!r} from the URL, and {self!r} passes it too:"
                    " rename one of the two"
                )
            return callback(*args, **kwargs, **{self.keyword: self.bus})

        return with_bus

    def close(self) -> None:
        """Send the clients away, and close the bus. ``uninstall`` and ``app.close`` call it.

        The plugin cannot be used again, in any application that it is installed in. Clients that return are asked to try later.
        """
        self.instance.shutdown()
        self.bus.close()


def _is_answer(error: Exception) -> bool:
    """Whether a route has ended with an answer: ``bottle.redirect`` raises one, and so do errors, whose status is 400 or more."""
    return isinstance(error, bottle.HTTPResponse) and bool(error.status_code < 400)


def _check(bus: Any, keyword: Any, instance: Any, mount: Any) -> None:
    if not isinstance(bus, Bus):
        raise bottle.PluginError(f"PgbusPlugin takes a pgbus_gevent.Bus, not {_kind(bus)}")
    if not isinstance(keyword, str) or not keyword.isidentifier():
        raise bottle.PluginError(f"keyword={keyword!r} is not allowed: expected the name of a function argument")
    if mount is not None and not _PATH.fullmatch(mount):
        raise bottle.PluginError(f"mount={mount!r} is not allowed: expected a path such as /pgbus, without wildcards")
    if instance is None:
        return
    if not isinstance(instance, Instance):
        raise bottle.PluginError(f"instance= takes a pgbus_gevent.streamer.Instance, not {_kind(instance)}")
    for setting in ("prefix", "secret"):
        if getattr(instance.settings, setting) != getattr(bus.settings, setting):
            raise bottle.PluginError(
                f"the instance has another {setting} than the bus, so it could not serve the streams of the bus's pages:"
                " make both from the same settings"
            )


def _kind(thing: Any) -> str:
    return f"the class {thing.__name__}" if isinstance(thing, type) else f"an object of type {type(thing).__name__}"


def _overlap(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _names(function: Any, keyword: str) -> bool:
    """Whether a function has an argument of that name, or is a decorator that passes its keywords on to such a function.

    ``inspect.signature`` alone would describe the innermost function. But a decorator around it may take the argument itself, or
    provide it.
    """
    while function is not None:
        try:
            parameters = inspect.signature(function, follow_wrapped=False).parameters
        except (TypeError, ValueError):
            pass  # a wrapper in C, such as that of functools.cache, passes all arguments on
        else:
            if keyword in parameters:
                return parameters[keyword].kind in _BY_KEYWORD
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                return False
        function = getattr(function, "__wrapped__", None)
    return False


_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Server(bottle.ServerAdapter):  # type: ignore[misc]  # bottle has no types
    """Our WSGI server for ``bottle.run(app, server=Server)``. An idle stream costs it no greenlet.

    SIGTERM and SIGINT end it as they end ``python -m pgbus_gevent.serve``, and ``bottle.run`` returns. If a part fails for good,
    it raises SystemExit with status 1. ``port=0`` takes any free port, and :attr:`port` is then its number. Other options are
    passed to :class:`pgbus_gevent.hosts.pywsgi.Server`, and on to gevent's WSGIServer.

    Raises OSError if the port cannot be opened, and the errors of :meth:`Instance.start`.
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
            # Bottle has printed port 0, so print its line again with the real one.
            print(f"Listening on http://{self.host}:{port}/\n", end="", file=sys.stderr, flush=True)


def _end_for_reloader() -> None:
    """Let Bottle's reloader end this process.

    The reloader's thread interrupts the main thread. In a patched process that thread is a greenlet of the main thread, so the
    interrupt is passed on to the greenlet that waits.
    """
    if "BOTTLE_CHILD" in os.environ:
        main = gevent.getcurrent()
        # Ctrl-C does not come here: the event loop handles it.
        signal.signal(signal.SIGINT, lambda *_: gevent.kill(main, KeyboardInterrupt()))
