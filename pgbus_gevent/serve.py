"""``python -m pgbus_gevent.serve``: serves the streams, and beside them an application or the demo."""

from __future__ import annotations

from . import early_signals

if __name__ == "__main__":
    early_signals.hold()

from gevent import monkey

if __name__ == "__main__":
    # Patch before anything else is imported: a module keeps what it imported from an unpatched one.
    monkey.patch_all()

import gc
import logging
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import gevent

from .commands.program import PROGRAM, Parser, program_errors
from .commands.secret import read_or_make_secret
from .core.shown import visible
from .database import Database
from .database.embedded import EmbeddedPostgres
from .errors import EmbeddedError, InvalidArgument, PgbusError, SchemaMismatch
from .hosts import workers
from .hosts.app_probe import with_own_database
from .hosts.logs import configure
from .hosts.pywsgi import Server, listen
from .hosts.running import Stopper, run_until_stopped
from .hosts.service_manager import ServiceManager
from .hosts.serving import build, check_secret, load_app, raise_descriptor_limit
from .settings.casting import redact_url
from .settings.flags import add_flags, flags_given
from .settings.table import Settings, places
from .web.operators import MADE_TOKEN, make_token

__all__ = ["load_app", "main"]

logger = logging.getLogger("pgbus_gevent.serve")

_LOOK = 3.0  # seconds between two checks that the embedded server runs

BARE = "pgbus_gevent.hosts.bare:application"
"""The application that ``--no-demo`` serves."""
DEMO_STREAMS = "demo:*"
DEMO_PRESENCE = "demo:here"


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal comes, and return the exit status.

    ``argv`` are the arguments without the program's name; by default, those of the process. Raises SystemExit for ``--help`` and
    for wrong flags, as argparse does.
    """
    parser = _parser()
    manager = ServiceManager()
    with program_errors(PROGRAM) as outcome:
        arguments = parser.parse_args(argv)
        flags = flags_given(arguments)
        settings = Settings.load(**flags)
        configure(settings.log_level, settings.log_format)
        with ExitStack() as stack:
            app_name = BARE if arguments.no_demo else arguments.app
            outcome.status = _Service(settings, app_name, places(**flags), stack, manager).run()
    return outcome.status


def _parser() -> Parser:
    parser = Parser(
        prog=f"{PROGRAM} serve",
        description="Serve streams from PostgreSQL over Server-Sent Events, and an application beside them.",
        epilog="Without a database URL, an embedded PostgreSQL is used. Without APP and --no-demo, the demo is served.",
    )
    served = parser.add_mutually_exclusive_group()
    served.add_argument("app", nargs="?", metavar="APP", help="module:application, a WSGI application to serve at /")
    served.add_argument(
        "--no-demo", action="store_true", help="serve the streams alone, without an application or the demo"
    )
    add_flags(parser)
    return parser


class _Service:
    """The state of the program. ``stack`` closes all that was opened, in reverse order.

    ``places`` has the settings that were given to it, each with its flag, variable or file.
    """

    def __init__(
        self,
        settings: Settings,
        app_name: str | None,
        places: dict[str, str],
        stack: ExitStack,
        manager: ServiceManager,
    ) -> None:
        self._stack = stack
        self._manager = manager
        self._places = places
        self._stated = frozenset(places)
        self._app_name = app_name
        self._embedded: EmbeddedPostgres | None = None
        self._made_token = None if settings.operator_token else make_token()
        stack.callback(os.environ.pop, MADE_TOKEN, None)
        self.settings = self._complete(settings)

    def _complete(self, settings: Settings) -> Settings:
        """The settings with a database and a secret, from the data directory if they are not given, and with the demo's streams."""
        if settings.workers > 1:
            workers.check_installed()
        if settings.upstream is not None:
            return self._complete_edge(settings)
        if settings.database_url is None and self._app_name is not None:
            settings = with_own_database(settings, self._app_name)
        if settings.database_url is None:
            self._embedded = EmbeddedPostgres.open(settings.data_dir)
            self._stack.callback(self._embedded.close)
            self._stack.callback(gevent.spawn(_keep_running, self._embedded).kill)
            secret = settings.secret or (read_or_make_secret(settings.data_dir, create=True),)
            settings = replace(settings, database_url=self._embedded.url, secret=secret)
        elif self._app_name is None:  # an application may have its own streams with their own secret
            check_secret(settings)
        if self._app_name is None:
            settings = replace(
                settings,
                public=(*settings.public, DEMO_STREAMS),
                presence=(*settings.presence, DEMO_PRESENCE),
            )
        return settings

    def _complete_edge(self, settings: Settings) -> Settings:
        """The settings of an edge, which has neither a database nor the demo."""
        for name in sorted(self._stated & {"database_url", "listen_url", "replica_url"}):
            raise InvalidArgument(
                f"an edge has no database: leave out {self._places[name]}, or {self._places['upstream']}"
            )
        if self._app_name is None:
            check_secret(settings)
        return settings

    def run(self) -> int:
        """Start, serve until the order to stop comes, and stop. Return the exit status."""
        raise_descriptor_limit()
        try:
            return self._run_here() if self.settings.workers == 1 else self._run_workers()
        except SchemaMismatch as error:
            if self._embedded is None:
                raise
            raise EmbeddedError(
                f"another version of pgbus-gevent made the embedded database in {self.settings.data_dir}: {error.difference};"
                " delete that directory, with all its messages and your own tables, or give another --data-dir"
            ) from None

    def _run_here(self) -> int:
        stopper = Stopper(self.settings.grace, on_hurry=self._close_database)
        stopper.watch_signals()
        served, application = build(self.settings, self._app_name, self._stated, self._stack)
        sock = self._listen()
        for instance in served:
            instance.start()
        server = Server(
            sock,
            application,
            request_timeout=self.settings.request_timeout,
            max_request_head=self.settings.max_request_head,
        )
        server.kept = self._manager.passes_socket
        server.start()
        self._announce(server.server_port, served[0].settings)
        # All objects so far are permanent. Freeze them, so that no later collection traverses them again.
        gc.collect()
        gc.freeze()
        return run_until_stopped(server, served, stopper, self._manager)

    def _run_workers(self) -> int:
        sock = self._listen()
        port = sock.getsockname()[1]
        if self.settings.upstream is None:
            self._prepare_database()
        found = workers.Workers(
            self.settings, self._app_name, self._stated, sock, manager=self._manager, on_hurry=self._close_database
        )
        return found.run(lambda: self._announce(port, self.settings))

    def _prepare_database(self) -> None:
        # Migrate in this process, where a database that is away ends with one line and a status. A worker would be forked again.
        database = Database(self.settings)
        if self.settings.migrate:
            database.migrate()
        else:
            database.check_schema()
        database.close()

    def _close_database(self) -> None:
        if self._embedded is not None:
            self._embedded.close()

    def _listen(self) -> Any:
        host, port = self.settings.host, self.settings.port
        try:
            sock = self._manager.listener() if self._manager.passes_socket else listen(host, port)
        except OSError as error:
            raise PgbusError(
                f"cannot serve at {host} port {port}: {error.strerror}; give another --port (0 takes any free port)"
                " or --host, or stop the program that uses it"
            ) from None
        self._stack.callback(sock.close)
        self._host = sock.getsockname()[0] if self._manager.passes_socket else host
        return sock

    def _announce(self, port: int, settings: Settings) -> None:
        host = f"[{self._host}]" if ":" in self._host else self._host
        source = f"database {visible(str(redact_url(settings.database_url)))}"
        if settings.upstream is not None:
            source = f"origin {settings.upstream}"
        # One write: without buffering, print() writes the newline separately, and a worker's log line could come in between.
        print(f"pgbus_gevent serves http://{host}:{port}/ {source} pid {os.getpid()}\n", end="", flush=True)
        if self._app_name is None and self.settings.upstream is None and self._embedded is None:
            logger.warning(
                "serving the demo, which publishes all the time and keeps its tables in this database: give --no-demo to serve"
                " the streams alone, or module:application to serve an application beside them"
            )
        if self._made_token is not None:
            # Log it, because programs that read stdout expect a single line.
            where = f"http://{host}:{port}{self.settings.prefix}/console?token={self._made_token}"
            logger.info("no operator token is set, so this run has made one: the console is at %s", where)


def _keep_running(embedded: EmbeddedPostgres) -> None:
    """Start the embedded server again whenever it has ended."""
    failing = False
    while True:
        gevent.sleep(_LOOK)
        try:
            if embedded.revive():
                logger.warning("the embedded PostgreSQL had ended, and was started again")
            failing = False
        except EmbeddedError as error:
            if not failing:
                logger.error("the embedded PostgreSQL has ended and cannot be started; trying again: %s", error)
            failing = True


if __name__ == "__main__":
    sys.exit(main())
