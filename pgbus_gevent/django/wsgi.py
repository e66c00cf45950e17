"""The project's WSGI application with the streams in front. ``manage.py pgbus serve`` serves :data:`application`.

For another server under gevent, call :func:`mount` in the project's own ``wsgi.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..streamer.instance import Instance
from ..web.stream_app import StreamApp
from .project import authorize, get_bus

WSGIApplication = Callable[..., Iterable[bytes]]


def mount(application: WSGIApplication) -> WSGIApplication:
    """Return a WSGI application that serves the streams under their prefix, and everything else with ``application``.

    An application that has the streams already is returned as it is.
    """
    if isinstance(application, _Mounted):
        return application
    bus = get_bus()
    return _Mounted(application, StreamApp(Instance(bus.settings, filters=bus.filters), authorize))


class _Mounted:
    def __init__(self, application: WSGIApplication, streams: StreamApp) -> None:
        self._application = application
        self._streams = streams

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        chosen = self._streams if self._streams.serves(environ["PATH_INFO"]) else self._application
        return chosen(environ, start_response)


def __getattr__(name: str) -> Any:
    """Make :data:`application` when it is asked for: the one in ``WSGI_APPLICATION``, with the streams."""
    if name != "application":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from django.core.servers.basehttp import get_internal_wsgi_application

    globals()[name] = mount(get_internal_wsgi_application())
    return globals()[name]
