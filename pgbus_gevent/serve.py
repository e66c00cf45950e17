"""``python -m pgbus_gevent.serve``: the streams, and one's own application or the demo beside them, in one process."""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    # Before everything else is imported: what was imported unpatched stays so.
    monkey.patch_all()

import argparse
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from .bus import Bus
from .casting import redact_url
from .cli_common import program_errors, read_or_make_secret
from .config import Settings, add_flags, flags_given
from .database.embedded import EmbeddedPostgres
from .errors import InvalidArgument, InvalidSetting
from .hosts.pywsgi import Server, listen
from .logs import configure
from .streamer import set_current
from .streamer.instance import Instance
from .web.stream_app import StreamApp

logger = logging.getLogger("pgbus_gevent.serve")

DEMO_STREAMS = "demo:*"

_RESERVE = 256
# Descriptors for everything but streams: the database, requests of other kinds, files.

WSGIApp = Callable[..., Iterable[bytes]]


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal comes; the exit status."""
    parser = _parser()
    with program_errors(parser.prog) as outcome:
        arguments = parser.parse_args(argv)
        settings = Settings.load(**flags_given(arguments))
        configure(settings.log_level, settings.log_format)
        with ExitStack() as stack:
            outcome.status = _Service(settings, arguments.app, stack).run()
    return outcome.status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgbus_gevent.serve",
        description="Serve streams from PostgreSQL over Server-Sent Events, and an application beside them.",
        epilog="Without a database URL an embedded PostgreSQL is used, without APP the demo page is served.",
    )
    parser.add_argument("app", nargs="?", metavar="APP", help="module:application, a WSGI application to serve at /")
    add_flags(parser)
    return parser


class _Service:
    """Everything that a serving process has; ``stack`` closes what was opened, last first."""

    def __init__(self, settings: Settings, app_name: str | None, stack: ExitStack) -> None:
        self._stack = stack
        self._app_name = app_name
        self._stopping = Event()
        self._status = 0
        if settings.workers > 1:
            raise InvalidSetting("workers", settings.workers, "1: serving with more is not there yet")
        self._embedded: EmbeddedPostgres | None = None
        self.settings = self._complete(settings)

    def _complete(self, settings: Settings) -> Settings:
        """The settings with what the data directory provides: the database and the secret; and the demo's streams."""
        if settings.database_url is None:
            self._embedded = EmbeddedPostgres.open(settings.data_dir)
            self._stack.callback(self._embedded.close)
            secret = settings.secret or (read_or_make_secret(settings.data_dir, create=True),)
            settings = replace(settings, database_url=self._embedded.url, secret=secret)
        elif not settings.secret:
            raise InvalidSetting("secret", "", "a text of 16 characters or more, in PGBUS_SECRET or with --secret")
        if self._app_name is None:
            settings = replace(settings, public=(*settings.public, DEMO_STREAMS))
        return settings

    def run(self) -> int:
        """Start, serve until told to stop, stop; the exit status."""
        _raise_descriptor_limit(self.settings.max_connections)
        instance = Instance(self.settings, on_failure=self._fail)
        self._stack.callback(self._shut_down, instance)
        self._watch_signals()
        sock = listen(self.settings.host, self.settings.port)
        self._stack.callback(sock.close)
        instance.start()
        set_current(instance)
        server = Server(
            sock,
            _mount(StreamApp(instance), self._application()),
            request_timeout=self.settings.request_timeout,
            max_request_head=self.settings.max_request_head,
        )
        server.start()
        self._announce(server.server_port)
        # What was made so far stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        self._stopping.wait()
        _stop(server, instance, self.settings.grace)
        return self._status

    def _shut_down(self, instance: Instance) -> None:
        """For a start that failed half-way; after a regular stop there is nothing left to do."""
        instance.shutdown(1.0)

    def _application(self) -> WSGIApp:
        if self._app_name is not None:
            return load_app(self._app_name)
        from .demo.departures import Replayer, make_app

        bus = Bus(settings=replace(self.settings, migrate=False))
        self._stack.callback(bus.close)
        replayer = Replayer(bus, speed=self.settings.demo_speed)
        replayer.start()
        self._stack.callback(replayer.stop)
        app: WSGIApp = make_app(bus, speed=self.settings.demo_speed, prefix=self.settings.prefix)
        return app

    def _announce(self, port: int) -> None:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        database = redact_url(self.settings.database_url)
        print(f"pgbus_gevent serves http://{host}:{port}/ database {database} pid {os.getpid()}", flush=True)

    def _fail(self, part: str) -> None:
        logger.critical("%s has failed for good: stopping, to be started again by whoever watches this process", part)
        self._status = 1
        self._stopping.set()

    def _watch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, self._signalled, number)

    def _signalled(self, number: int) -> None:
        if self._stopping.is_set():
            logger.warning("second signal: ending at once")
            if self._embedded is not None:
                self._embedded.close()
            os._exit(128 + number)
        logger.info("%s: draining", signal.Signals(number).name)
        # Should anything block the event loop for good, the kernel ends the process all the same.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, self.settings.grace + 5.0)
        self._stopping.set()


def _stop(server: Server, instance: Instance, grace: float) -> None:
    """Accept nobody, send the streams away, let other requests finish; all within ``grace`` seconds."""
    deadline = monotonic() + grace
    server.stop_accepting()
    server.close()
    instance.shutdown(grace)
    server.stop(max(0.1, min(2.0, deadline - monotonic())))


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
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InvalidArgument(f"{name!r} does not name an application: write module:application")
    if sys.path[0] != "":
        sys.path.insert(0, "")
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise InvalidArgument(f"there is no module {error.name!r} to load {name!r} from") from None
        raise
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise InvalidArgument(f"{module_name} has no application {attribute!r}")
    app: WSGIApp = found
    return app


def _raise_descriptor_limit(connections: int) -> None:
    """Allow as many descriptors as the system lets us, and say where that is fewer than the connections we would take."""
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


if __name__ == "__main__":
    sys.exit(main())
