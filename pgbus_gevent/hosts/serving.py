"""Builds what ``serve`` serves: the streams, and beside them an application or the demo.

With one worker, ``serve`` calls :func:`build` itself. With several, each worker calls it in its own process.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
from gevent.lock import RLock

from ..bus import Bus
from ..core.filters import Filters
from ..errors import InvalidArgument, MissingSetting
from ..settings.passing import environment
from ..settings.table import Settings, shown
from ..streamer import set_current
from ..streamer.instance import Instance, instances
from ..web.stream_app import Authorize, StreamApp
from . import bare
from .telemetry import export_spans

if TYPE_CHECKING:
    from ..demo.site import Demo

logger = logging.getLogger("pgbus_gevent.serve")

SPARE = 2.0
"""Seconds beyond ``grace`` after which gunicorn's master kills a worker that has not ended."""

WSGIApp = Callable[..., Iterable[bytes]]

_LOOK = 0.05  # seconds between two looks whether the Instance runs
_ASK_TIMEOUT = 5.0  # seconds that the application has to answer the request of _Mounted

_OF_THE_PROCESS = {
    "host", "port", "workers", "data_dir", "log_level", "log_format", "demo_speed", "request_timeout", "max_request_head", "grace",
}  # fmt: skip
"""Settings of the server. They are those of ``serve`` also if the application serves its own streams."""

_OF_OUR_STREAMS = {"authorize": "an authorize hook", "filters": "filters"}
"""Settings that apply only to streams that ``serve`` itself mounts."""


class Served(NamedTuple):
    """The Instances of a process, not started yet, and the WSGI application that serves their streams."""

    instances: list[Instance]
    application: WSGIApp


def build(settings: Settings, app_name: str | None, stated: frozenset[str], stack: ExitStack) -> Served:
    """Build the streams beside the application ``app_name``, or beside the demo if that is None.

    An application that brings its own streams, with a plugin or a StreamApp, is served unchanged, with its own hook, filters and
    settings. ``stated`` are the names of the settings that were given to ``serve``; they must not contradict the application's.
    ``stack`` closes all that is opened.

    Raises :class:`InvalidArgument` for a contradiction or a missing application, and :class:`MissingSetting` without a secret.
    """
    served = _build(settings, app_name, stated, stack)
    if settings.tracing:
        stack.callback(export_spans())
    return served


def _build(settings: Settings, app_name: str | None, stated: frozenset[str], stack: ExitStack) -> Served:
    # An application's ``Bus()`` reads the environment, so it must find all settings there, including those from flags and files.
    given = environment(settings)
    os.environ.update(given)
    for name in os.environ.keys() - given.keys():
        del os.environ[name]
    instance = Instance(settings)
    set_current(instance)
    # This is for a start that fails halfway; after a regular stop there is nothing left to shut down.
    stack.callback(_shut_down_all)
    if app_name is None and settings.upstream is not None:
        return _beside(instance, bare.edge, None)
    if app_name is None:
        demo = _demo(instance, stack)
        served = _beside(instance, demo.app_at(settings.host), demo.authorize)
        return served._replace(application=demo.publishing(served.application))
    application = load_app(app_name)
    # If the application has an Instance without a StreamApp, it serves the streams in its own way.
    own = with_streams() or [other for other in instances() if other is not instance]
    if not own:
        check_secret(settings)
        return _beside(instance, application, None)
    if instance not in own:
        instance.shutdown(0.0)  # it was never started, so it has no clients
        set_current(own[0] if len(own) == 1 else None)
    _refuse_contradictions(settings, stated, own)
    logger.info("the application brings its own streams, so serve adds none")
    return Served(own, application)


def check_secret(settings: Settings) -> None:
    """Raise :class:`MissingSetting` unless there is a secret to sign stream names with."""
    if not settings.secret:
        raise MissingSetting(
            "secret", "put a random text of at least 16 characters into PGBUS_SECRET, or pass --secret"
        )


def with_streams() -> list[Instance]:
    """The Instances of this process whose streams a StreamApp serves."""
    return [instance for instance in instances() if instance.stream_apps]


def _shut_down_all() -> None:
    for instance in instances():
        instance.shutdown(1.0)


def _beside(instance: Instance, application: WSGIApp, authorize: Authorize | None) -> Served:
    settings = instance.settings
    if settings.filters is not None:
        instance.filters.share(_filters(settings.filters))
    if settings.authorize is not None:
        authorize = load(settings.authorize, "function")
    return Served([instance], _Mounted(StreamApp(instance, authorize), application))


def _refuse_contradictions(settings: Settings, stated: frozenset[str], own: list[Instance]) -> None:
    for name in sorted(stated & _OF_OUR_STREAMS.keys()):
        raise InvalidArgument(
            f"{name}={getattr(settings, name)!r} would have no effect: the application serves its own streams, with"
            f" {_OF_OUR_STREAMS[name]} of its own; leave the setting out"
        )
    for name in sorted(stated - _OF_THE_PROCESS):
        theirs = [getattr(instance.settings, name) for instance in own]
        if getattr(settings, name) not in theirs:
            raise InvalidArgument(
                f"serve was given {name}={shown(name, getattr(settings, name))}, but the application's own streams have"
                f" {name}={shown(name, theirs[0])}: set it in one place only"
            )


def _filters(name: str) -> Filters:
    found = load(name, "object")
    filters = getattr(found, "filters", found)
    if not isinstance(filters, Filters):
        raise InvalidArgument(
            f"filters={name!r} is not allowed: expected the name of a Bus or a Filters object, but it is of type"
            f" {type(found).__name__}"
        )
    return filters


def _demo(instance: Instance, stack: ExitStack) -> Demo:
    # Imported here, because a server without the demo does not need it.
    from ..demo.site import Demo

    settings = instance.settings
    bus = Bus(settings=replace(settings, migrate=False))
    stack.callback(bus.close)
    demo = Demo(bus, speed=settings.demo_speed, prefix=settings.prefix)
    stack.callback(demo.stop)
    instance.filters.share(bus.filters)
    starter = gevent.spawn(_start_when_alive, demo, instance)
    stack.callback(starter.kill)
    return demo


def _start_when_alive(demo: Demo, instance: Instance) -> None:
    """Start the demo when the Instance runs, because it needs the schema, which the Instance's start migrates."""
    while not instance.alive:
        gevent.sleep(_LOOK)
    demo.start()


class _Mounted:
    """Serves the streams under their prefix, and the application everywhere else.

    An application may make its own streams, with their own authorize hook, only when its first request comes. The hook must not be
    bypassed. So before the first request under the prefix is answered, the application gets a request for the prefix too. If it
    makes its own streams then or later, it serves the prefix from that time on.
    """

    def __init__(self, streams: StreamApp, application: WSGIApp) -> None:
        self._streams = streams
        self._application = application
        self._ours = True
        self._asked = False
        self._asking = RLock()  # requests that arrive meanwhile wait, so that none gets past the application's hook

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        ours = self._streams.serves(environ.get("PATH_INFO", ""))
        if ours and not self._asked:
            with self._asking:
                if not self._asked:
                    self._ask(environ)
                self._asked = True
        if self._ours and self._has_others():
            self._give_way()
        chosen: WSGIApp = self._streams if ours and self._ours else self._application
        return chosen(environ, start_response)

    def _ask(self, environ: dict[str, Any]) -> None:
        """Send the application a request for no stream, and drop the answer. Only the streams that it makes meanwhile count."""
        request = {
            **environ,
            "REQUEST_METHOD": "GET",
            "PATH_INFO": f"{self._streams.prefix}/streams",
            "QUERY_STRING": "",
            "wsgi.input": BytesIO(),
        }
        request.pop("CONTENT_LENGTH", None)
        limit = gevent.Timeout(_ASK_TIMEOUT)
        try:
            with limit:
                body = self._application(request, lambda *answer: lambda data: None)
                next(iter(body), None)  # an application that is a generator runs only now
                getattr(body, "close", lambda: None)()
        except (Exception, gevent.Timeout) as error:
            if isinstance(error, gevent.Timeout) and error is not limit:
                raise
            logger.debug("the application does not answer under %s: %s", self._streams.prefix, error)
        if self._has_others():
            self._give_way()

    def _has_others(self) -> bool:
        return any(app is not self._streams for instance in with_streams() for app in instance.stream_apps)

    def _give_way(self) -> None:
        self._ours = False
        logger.warning(
            "the application has made its own streams during a request; they are served from now on, and those of serve are not."
            " Make them when the application is imported, so that contradictory settings are found at the start"
        )
        if with_streams() != [self._streams.instance]:
            gevent.spawn(self._streams.instance.shutdown)


def load_app(name: str) -> WSGIApp:
    """Return the WSGI application with the name ``module:attribute``. The current directory is searched first.

    Raises :class:`InvalidArgument` if there is none.
    """
    app: WSGIApp = load(name, "application")
    return app


def load(name: str, what: str) -> Any:
    """Return the object with the name ``module:attribute``. It must be callable, unless ``what`` is "object".

    ``what`` is the word for it in errors. Raises :class:`InvalidArgument` if there is no such object.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or module_name.startswith(".") or not attribute:
        raise InvalidArgument(f"{name!r} is not a name of the form module:{what}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise InvalidArgument(
                f"cannot load {name!r}: there is no module {error.name!r} in the current directory or on the Python path"
            ) from None
        raise
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise InvalidArgument(f"cannot load {name!r}: the module {module_name!r} has no {what} {attribute!r}")
    if what != "object" and not callable(found):
        raise InvalidArgument(
            f"cannot use {name!r} as {what}: it is of type {type(found).__name__}, which is not callable"
        )
    return found


def raise_descriptor_limit() -> None:
    """Raise the limit of open descriptors to the hard limit. If that is low, each Instance takes fewer connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
