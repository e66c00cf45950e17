"""What a serving process serves: the streams, and one's own application or the demo beside them.

``serve`` builds it in its own process, or each worker does in its own.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import fields, replace
from decimal import Decimal
from importlib import import_module
from typing import TYPE_CHECKING, Any

import gevent

from .bus import Bus
from .config import Settings, variable
from .core.filters import Filters
from .errors import InvalidArgument
from .streamer import set_current
from .streamer.instance import Instance
from .web.stream_app import Authorize, StreamApp

if TYPE_CHECKING:
    from .demo.site import Demo

logger = logging.getLogger("pgbus_gevent.serve")

SPARE = 2.0
"""Seconds beyond ``grace`` that workers have until gunicorn's master ends them."""

_RESERVE = 256
# Descriptors for everything but streams: the database, requests of other kinds, files.

_LOOK = 0.05  # seconds

WSGIApp = Callable[..., Iterable[bytes]]


def build(settings: Settings, app_name: str | None, stack: ExitStack) -> tuple[Instance, WSGIApp]:
    """The process's Instance, not started, and the application that serves it beside ``app_name``, or beside the demo.

    ``stack`` closes what was opened. Raises :class:`InvalidArgument` when there is no such application.
    """
    # So that an application's ``Bus()`` is on our database and signs what we verify, wherever we have them from.
    os.environ[variable("database_url")] = str(settings.database_url)
    os.environ[variable("secret")] = ",".join(settings.secret)
    instance = Instance(settings)
    set_current(instance)
    # For a start that fails half-way; after a regular stop there is nothing left to do.
    stack.callback(instance.shutdown, 1.0)
    authorize: Authorize | None = None
    if app_name is None:
        demo = _demo(instance, stack)
        beside, authorize = demo.app, demo.authorize
    else:
        beside = load_app(app_name)
    if settings.filters is not None:
        instance.filters.share(_filters(settings.filters))
    if settings.authorize is not None:
        authorize = load(settings.authorize, "function")
    return instance, _mount(StreamApp(instance, authorize), beside)


def _filters(name: str) -> Filters:
    found = load(name, "object")
    filters = getattr(found, "filters", found)
    if not isinstance(filters, Filters):
        raise InvalidArgument(f"{name} is a {type(found).__name__}, and neither a Bus nor Filters")
    return filters


def _demo(instance: Instance, stack: ExitStack) -> Demo:
    # Here, as who serves an application of one's own needs none of it.
    from .demo.site import Demo

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


def _mount(streams: StreamApp, application: WSGIApp) -> WSGIApp:
    """The streams under their prefix, the application everywhere else."""

    def mounted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        chosen: WSGIApp = streams if streams.serves(environ.get("PATH_INFO", "")) else application
        return chosen(environ, start_response)

    return mounted


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


def raise_descriptor_limit(connections: int) -> None:
    """Allow as many descriptors as the system lets us, and say where that is too few for all the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            pass
    if soft != resource.RLIM_INFINITY and soft < connections + _RESERVE:
        logger.warning(
            "the limit of %d open files is below max_connections=%d and a reserve of %d: raise it (ulimit -n), or lower"
            " max_connections",
            soft,
            connections,
            _RESERVE,
        )


def variables(settings: Settings) -> dict[str, str]:
    """The environment that gives another process these settings, but for those at a default of None or nothing."""
    given = {entry.name: getattr(settings, entry.name) for entry in fields(settings)}
    return {variable(name): _text(value) for name, value in given.items() if value not in (None, ())}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}"
    return ",".join(value) if isinstance(value, tuple) else str(value)
