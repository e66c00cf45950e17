"""``python -m pgbus_gevent.serve``: the streams, and one's own application or the demo beside them."""

from __future__ import annotations

from . import early_signals

if __name__ == "__main__":
    early_signals.hold()

from gevent import monkey

if __name__ == "__main__":
    # Before everything else is imported: what was imported unpatched stays so.
    monkey.patch_all()

import gc
import logging
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import gevent

from .commands.common import PROGRAM, Parser, program_errors, read_or_make_secret
from .core.shown import visible
from .database import Database
from .database.embedded import EmbeddedPostgres
from .errors import EmbeddedError, InvalidSetting, PgbusError
from .hosts import workers
from .hosts.app_probe import with_own_database
from .hosts.logs import configure
from .hosts.pywsgi import Server, listen
from .hosts.running import Stopper, run_until_stopped
from .hosts.serving import build, load_app, raise_descriptor_limit
from .settings.casting import redact_url
from .settings.flags import add_flags, flags_given
from .settings.table import Settings, stated
from .web.operators import MADE_TOKEN, make_token

__all__ = ["load_app", "main"]

logger = logging.getLogger("pgbus_gevent.serve")

_LOOK = 3.0  # seconds between two looks whether the embedded server runs

DEMO_STREAMS = "demo:*"
DEMO_PRESENCE = "demo:here"


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal comes; the exit status. Raises SystemExit for ``--help`` and wrong flags, as argparse."""
    parser = _parser()
    with program_errors(PROGRAM) as outcome:
        arguments = parser.parse_args(argv)
        flags = flags_given(arguments)
        settings = Settings.load(**flags)
        configure(settings.log_level, settings.log_format)
        with ExitStack() as stack:
            outcome.status = _Service(settings, arguments.app, stated(**flags), stack).run()
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
    """Everything that the program has; ``stack`` closes what was opened, last first."""

    def __init__(self, settings: Settings, app_name: str | None, stated: frozenset[str], stack: ExitStack) -> None:
        self._stack = stack
        self._stated = stated
        self._app_name = app_name
        self._embedded: EmbeddedPostgres | None = None
        self._made_token = None if settings.operator_token else make_token()
        stack.callback(os.environ.pop, MADE_TOKEN, None)
        self.settings = self._complete(settings)

    def _complete(self, settings: Settings) -> Settings:
        """The settings with what the data directory provides, the database and the secret; and the demo's streams."""
        if settings.workers > 1:
            workers.check_installed()
        if settings.database_url is None and self._app_name is not None:
            settings = with_own_database(settings, self._app_name)
        if settings.database_url is None:
            self._embedded = EmbeddedPostgres.open(settings.data_dir)
            self._stack.callback(self._embedded.close)
            self._stack.callback(gevent.spawn(_keep_running, self._embedded).kill)
            secret = settings.secret or (read_or_make_secret(settings.data_dir, create=True),)
            settings = replace(settings, database_url=self._embedded.url, secret=secret)
        elif (
            not settings.secret and self._app_name is None
        ):  # an application may have streams, and a secret, of its own
            raise InvalidSetting("secret", "", "a text of 16 characters or more, in PGBUS_SECRET or with --secret")
        if self._app_name is None:
            settings = replace(
                settings,
                public=(*settings.public, DEMO_STREAMS),
                presence=(*settings.presence, DEMO_PRESENCE),
            )
        return settings

    def run(self) -> int:
        """Start, serve until told to stop, stop; the exit status."""
        raise_descriptor_limit()
        return self._run_here() if self.settings.workers == 1 else self._run_workers()

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
        server.start()
        self._announce(server.server_port, served[0].settings.database_url)
        # What was made so far stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        return run_until_stopped(server, served, stopper)

    def _run_workers(self) -> int:
        sock = self._listen()
        port = sock.getsockname()[1]
        # Here, where a database that is not there is one line and a status.
        database = Database(self.settings)
        if self.settings.migrate:
            database.migrate()
        else:
            database.check_schema()
        database.close()
        found = workers.Workers(self.settings, self._app_name, self._stated, sock, on_hurry=self._close_database)
        return found.run(lambda: self._announce(port, self.settings.database_url))

    def _close_database(self) -> None:
        if self._embedded is not None:
            self._embedded.close()

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

    def _announce(self, port: int, database_url: str | None) -> None:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        database = redact_url(database_url)
        print(
            f"pgbus_gevent serves http://{host}:{port}/ database {visible(str(database))} pid {os.getpid()}", flush=True
        )
        if self._made_token is not None:
            # In the log, as whoever reads stdout expects one line.
            where = f"http://{host}:{port}{self.settings.prefix}/console?token={self._made_token}"
            logger.info("no operator token is set, so this run has one of its own: the console is at %s", where)


def _keep_running(embedded: EmbeddedPostgres) -> None:
    """Start the embedded server again whenever it has ended: nobody else would."""
    failing = False
    while True:
        gevent.sleep(_LOOK)
        try:
            if embedded.revive():
                logger.warning("the embedded PostgreSQL had ended: it was started again")
            failing = False
        except EmbeddedError as error:
            if not failing:
                logger.error("the embedded PostgreSQL has ended, and cannot be started; trying again: %s", error)
            failing = True


if __name__ == "__main__":
    sys.exit(main())
