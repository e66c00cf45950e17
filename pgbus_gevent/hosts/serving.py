"""What a serving process serves: the streams, and one's own application or the demo beside them.

``serve`` builds it in its own process, or each worker does in its own.
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
from ..errors import InvalidArgument, InvalidSetting
from ..settings.passing import environment
from ..settings.table import Settings, shown
from ..streamer import set_current
from ..streamer.instance import Instance, instances
from ..web.stream_app import Authorize, StreamApp

if TYPE_CHECKING:
    from ..demo.site import Demo

logger = logging.getLogger("pgbus_gevent.serve")

SPARE = 2.0
"""Seconds beyond ``grace`` that workers have until gunicorn's master ends them."""

# Descriptors for everything but streams: the database, requests of other kinds, files.

_LOOK = 0.05  # seconds

WSGIApp = Callable[..., Iterable[bytes]]

_ASK_TIMEOUT = 5.0  # seconds

_OF_THE_PROCESS = {
    "host", "port", "workers", "data_dir", "log_level", "log_format", "demo_speed", "request_timeout", "max_request_head", "grace",
}  # fmt: skip
"""Settings of the server, which is ``serve``'s whoever's the streams are."""

_OF_OUR_STREAMS = {"authorize": "an authorize hook", "filters": "filters"}
"""Settings that only the streams which ``serve`` mounts itself can have."""


class Served(NamedTuple):
    """What a process serves: its Instances, not started, and the application that serves their streams."""

    instances: list[Instance]
    application: WSGIApp


def build(settings: Settings, app_name: str | None, stated: frozenset[str], stack: ExitStack) -> Served:
    """The streams beside the application ``app_name``, or beside the demo.

    An application that has streams of its own, by a plugin or a StreamApp, is served as it is, with its hook, filters and
    settings. ``stated`` names the settings that somebody stated, which may not contradict those. ``stack`` closes what was
    opened. Raises :class:`InvalidArgument` for a contradiction, and when there is no such application.
    """
    # So that an application's ``Bus()`` has all our settings, wherever we have them from.
    given = environment(settings)
    os.environ.update(given)
    for name in os.environ.keys() - given.keys():
        del os.environ[name]
    instance = Instance(settings)
    set_current(instance)
    # For a start that fails half-way; after a regular stop there is nothing left to do.
    stack.callback(_shut_down_all)
    if app_name is None:
        demo = _demo(instance, stack)
        return _beside(instance, demo.app_at(settings.host), demo.authorize)
    application = load_app(app_name)
    # An Instance that no StreamApp serves is one whose streams the application hands out in a way of its own.
    own = with_streams() or [other for other in instances() if other is not instance]
    if not own:
        if not settings.secret:
            raise InvalidSetting("secret", "", "a text of 16 characters or more, in PGBUS_SECRET or with --secret")
        return _beside(instance, application, None)
    if instance not in own:
        instance.shutdown(0.0)  # it was never started: nobody is there
        set_current(own[0] if len(own) == 1 else None)
    _refuse_contradictions(settings, stated, own)
    logger.info("the application brings its own streams: serve adds none")
    return Served(own, application)


def with_streams() -> list[Instance]:
    """The Instances of this process whose streams some StreamApp serves."""
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
            f"{name}={getattr(settings, name)!r} would have no effect: the application serves streams of its own, which have"
            f" {_OF_OUR_STREAMS[name]} of their own; leave it out"
        )
    for name in sorted(stated - _OF_THE_PROCESS):
        theirs = [getattr(instance.settings, name) for instance in own]
        if getattr(settings, name) not in theirs:
            raise InvalidArgument(
                f"serve was given {name}={shown(name, getattr(settings, name))}, but the application's own streams have"
                f" {name}={shown(name, theirs[0])}: state it in one place"
            )


def _filters(name: str) -> Filters:
    found = load(name, "object")
    filters = getattr(found, "filters", found)
    if not isinstance(filters, Filters):
        raise InvalidArgument(f"{name} is a {type(found).__name__}, and neither a Bus nor Filters")
    return filters


def _demo(instance: Instance, stack: ExitStack) -> Demo:
    # Here, as who serves an application of one's own needs none of it.
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
    """The database has to be there, with the schema, which the start of the Instance sees to."""
    while not instance.alive:
        gevent.sleep(_LOOK)
    demo.start()


class _Mounted:
    """The streams under their prefix, the application everywhere else.

    An application that makes streams of its own only at a request, with a hook of its own, must not be passed by. So before the
    first request under the prefix is answered, the application is asked for the prefix too; and should it make streams
    later, it has the prefix from then on.
    """

    def __init__(self, streams: StreamApp, application: WSGIApp) -> None:
        self._streams = streams
        self._application = application
        self._ours = True
        self._asked = False
        self._asking = RLock()  # of those who come meanwhile none may be let in without the hook

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
        """Have the application answer a request for no stream in particular; only what it makes meanwhile counts."""
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
                next(iter(body), None)  # one that is a generator does nothing before
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
            "the application makes its own streams during a request: these are served from now on, not those of serve."
            " Make them when the application is imported, so that contradictions are found at the start"
        )
        if with_streams() != [self._streams.instance]:
            gevent.spawn(self._streams.instance.shutdown)


def load_app(name: str) -> WSGIApp:
    """The WSGI application that ``module:attribute`` names; the current directory is looked in first.

    Raises :class:`InvalidArgument` when there is none.
    """
    app: WSGIApp = load(name, "application")
    return app


def load(name: str, what: str) -> Any:
    """The ``what`` that ``module:attribute`` names: anything for "object", else something that can be called.

    Raises :class:`InvalidArgument` when there is none.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or module_name.startswith(".") or not attribute:
        raise InvalidArgument(f"{name!r} does not name an application: write module:{what}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise InvalidArgument(f"there is no module {error.name!r} to load {name!r} from") from None
        raise
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if found is None or (what != "object" and not callable(found)):
        raise InvalidArgument(f"{module_name} has no {what} {attribute!r}")
    return found


def raise_descriptor_limit() -> None:
    """Allow as many descriptors as the system lets us; where that is few, each Instance takes fewer connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
