"""``python -m pgbus_gevent.serve``: the streams, and one's own application or the demo beside them, in one process."""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    # Before everything else is imported: what was imported unpatched stays so.
    monkey.patch_all()

import gc
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from typing import Any

from .bus import Bus
from .casting import redact_url
from .cli_common import PROGRAM, Parser, program_errors, read_or_make_secret
from .config import Settings, add_flags, flags_given
from .database.embedded import EmbeddedPostgres
from .errors import InvalidArgument, InvalidSetting, PgbusError
from .hosts.pywsgi import Server, listen
from .hosts.running import Stopper, run_until_stopped
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
    """Serve until a signal comes; the exit status. Raises SystemExit for ``--help`` and wrong flags, as argparse."""
    parser = _parser()
    with program_errors(PROGRAM) as outcome:
        arguments = parser.parse_args(argv)
        settings = Settings.load(**flags_given(arguments))
        configure(settings.log_level, settings.log_format)
        with ExitStack() as stack:
            outcome.status = _Service(settings, arguments.app, stack).run()
    return outcome.status


def _parser() -> Parser:
    parser = Parser(
        prog=f"{PROGRAM} serve",
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
        self._embedded: EmbeddedPostgres | None = None
        self.settings = self._complete(settings)

    def _complete(self, settings: Settings) -> Settings:
        """The settings with what the data directory provides, the database and the secret; and the demo's streams."""
        if settings.workers > 1:
            raise InvalidSetting(
                "workers", settings.workers, "1; for more there is gunicorn -k pgbus_gevent.gunicorn_worker.Worker"
            )
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
        stopper = Stopper(self.settings.grace, on_hurry=self._embedded.close if self._embedded else None)
        stopper.watch_signals()
        instance = Instance(self.settings)
        set_current(instance)
        own = None if self._app_name is None else self._own_application(self._app_name)
        sock = self._listen()
        # For a start that fails half-way; after a regular stop there is nothing left to do.
        self._stack.callback(instance.shutdown, 1.0)
        instance.start()
        server = Server(
            sock,
            _mount(StreamApp(instance), own or self._demo()),
            request_timeout=self.settings.request_timeout,
            max_request_head=self.settings.max_request_head,
        )
        server.start()
        self._announce(server.server_port)
        # What was made so far stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        return run_until_stopped(server, [instance], stopper)

    def _listen(self) -> Any:
        host, port = self.settings.host, self.settings.port
        try:
            sock = listen(host, port)
        except OSError as error:
            raise PgbusError(
                f"cannot serve at {host} port {port}: {error.strerror}; give another --port (0 takes any that is free)"
                " or --host, or stop what has it"
            ) from None
        self._stack.callback(sock.close)
        return sock

    def _own_application(self, name: str) -> WSGIApp:
        # So that its ``Bus()`` is on our database and signs what we verify, wherever we have them from.
        os.environ["PGBUS_DATABASE_URL"] = str(self.settings.database_url)
        os.environ["PGBUS_SECRET"] = ",".join(self.settings.secret)
        return load_app(name)

    def _demo(self) -> WSGIApp:
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
    if not module_name or module_name.startswith(".") or not attribute:
        raise InvalidArgument(f"{name!r} does not name an application: write module:application")
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
    if not callable(found):
        raise InvalidArgument(f"{module_name} has no application {attribute!r}")
    app: WSGIApp = found
    return app


def _raise_descriptor_limit(connections: int) -> None:
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


if __name__ == "__main__":
    sys.exit(main())
