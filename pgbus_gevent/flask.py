"""pgbus in a Flask application: an extension that mounts the streams, keeps the bus, and adds ``pgbus_stream`` to templates.

::

    app = Flask(__name__)
    pgbus = Pgbus(app)  # or pgbus.init_app(app)

    @app.post("/orders")
    def order():
        pgbus.bus.stream("orders").broadcast("a new order")

In a template, ``{{ pgbus_stream("orders") }}`` connects the page. ``python -m pgbus_gevent.serve shop:app`` serves the application
with its streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar, cast

from flask import Flask, current_app, has_request_context

from .bus import Bus, Html
from .core.client import ANYBODY, Subscriber
from .core.names import derived_secret
from .settings.table import Settings
from .streamer.instance import Instance
from .web.responses import Environ, StartResponse
from .web.stream_app import Authorize, StreamApp

__all__ = ["Pgbus"]

Hook = Callable[[str], "bool | Subscriber"]
_Hook = TypeVar("_Hook", bound=Hook)


class Pgbus:
    """The extension. One object can serve several applications; each gets a bus and streams of its own.

    The settings are those of :class:`Settings`: from the configuration of the application, as ``PGBUS_PUBLIC``, then from the
    environment. Without a secret, one is derived from the application's ``SECRET_KEY``.
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._hook: Hook | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Mount the streams in ``app``, under the setting ``prefix``. The bus is then ``app.extensions["pgbus"]``.

        Raises :class:`InvalidSetting`.
        """
        bus = Bus(settings=_settings(app))
        bus.subscriber_of = self._subscriber
        # It starts with the server, or with the first request under the prefix, so a shell or a worker of a queue needs no more
        # than the bus.
        instance = Instance(bus.settings, filters=bus.filters)
        app.extensions["pgbus"] = bus
        app.add_template_global(_pgbus_stream, "pgbus_stream")
        app.wsgi_app = _Mount(app, StreamApp(instance, self._authorize_in(app)))  # type: ignore[method-assign]

    @property
    def bus(self) -> Bus:
        """The bus of the current application. Raises RuntimeError outside an application context."""
        return cast(Bus, current_app.extensions["pgbus"])

    def authorize(self, hook: _Hook) -> _Hook:
        """Register the function that decides who may watch a stream, as a decorator.

        It is called with the name of the stream, in a request context of the application, so that it can use ``flask.session``. It
        answers True, False, or a :class:`Subscriber`. Without such a function, whoever has a signed name may watch its stream.
        """
        self._hook = hook
        return hook

    def _authorize_in(self, app: Flask) -> Authorize:
        def authorize(environ: Environ, stream: str) -> bool | Subscriber:
            if self._hook is None:
                return True
            with app.request_context(dict(environ)):
                return self._hook(stream)

        return authorize

    def _subscriber(self, stream: str) -> Subscriber | None:
        """The subscriber of the request whose page is being rendered; None outside a request, or if the hook refuses."""
        if self._hook is None:
            return ANYBODY
        return cast("Subscriber | None", self._hook(stream)) if has_request_context() else None


class _Mount:
    """The WSGI application that serves the streams under their prefix, and everything else as before."""

    def __init__(self, app: Flask, streams: StreamApp) -> None:
        self._application = app.wsgi_app
        self._streams = streams

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if self._streams.serves(environ["PATH_INFO"]):
            return self._streams(environ, start_response)
        return self._application(environ, start_response)


def _pgbus_stream(*names: str, **options: Any) -> Html:
    """``pgbus_stream`` of templates: :meth:`Bus.stream_tag` of the current application's bus."""
    return cast(Bus, current_app.extensions["pgbus"]).stream_tag(*names, **options)


def _settings(app: Flask) -> Settings:
    given = {name.removeprefix("PGBUS_").lower(): app.config[name] for name in app.config if name.startswith("PGBUS_")}
    settings = Settings.load(**given)
    keys = [*reversed(app.config.get("SECRET_KEY_FALLBACKS") or []), app.secret_key]
    if settings.secret or app.secret_key is None:
        return settings
    return replace(settings, secret=tuple(derived_secret(_text(key)) for key in keys))


def _text(key: str | bytes) -> str:
    return key if isinstance(key, str) else key.hex()
