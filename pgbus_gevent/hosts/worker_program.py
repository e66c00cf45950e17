"""gunicorn as ``serve --workers`` runs it: a separate program, which gets its settings in PGBUS_* variables.

``python -m pgbus_gevent.hosts.worker_program DESCRIPTOR KEPT PARENT STATED [APP]``: DESCRIPTOR is the listening socket. KEPT is
``kept`` if a service manager keeps it open. PARENT is the id of the process with which this one ends. STATED are the names of the
settings that were given to ``serve``, separated by commas.
This process is not patched for gevent, because a process that forks must not be. Its workers are patched.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
from contextlib import ExitStack
from typing import Any

from gunicorn import glogging
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import AppImportError, HaltServer

from ..commands.program import PROGRAM
from ..errors import InvalidArgument
from ..settings.table import Settings
from .closing_server import ClosingServer
from .logs import configure
from .serving import SPARE, WSGIApp, build

_PR_SET_PDEATHSIG = 1  # prctl(2)


class _Log(glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """Sends gunicorn's log records to the root logger, so that they have the format of the settings."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class _Arbiter(Arbiter):  # type: ignore[misc]
    """Ends with the status of the first worker that cannot load the application, even if a second one cannot either."""

    _halting = False

    def halt(self, *arguments: Any, **options: Any) -> None:
        self._halting = True
        super().halt(*arguments, **options)

    def reap_workers(self) -> None:
        try:
            super().reap_workers()
        except HaltServer:
            # gunicorn raises it for each such worker. While it already stops for the first one, the next would end it with a
            # traceback.
            if not self._halting:
                raise


class _Application(BaseApplication):  # type: ignore[misc]
    """gunicorn's application object. The master loads the configuration, and each worker loads the WSGI application."""

    def __init__(self, settings: Settings, descriptor: int, app_name: str | None, stated: frozenset[str]) -> None:
        self._settings = settings
        self._stated = stated
        self._app_name = app_name
        self._stack = ExitStack()
        self._options = {
            "bind": f"fd://{descriptor}",
            "workers": settings.workers,
            "worker_class": "pgbus_gevent.gunicorn_worker.Worker",
            "graceful_timeout": math.ceil(settings.grace + SPARE),
            "control_socket_disable": True,
            "logger_class": _Log,
            "loglevel": settings.log_level,
            "worker_exit": self._close,
        }
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            if name in self.cfg.settings:  # some releases of gunicorn lack some of the options
                self.cfg.set(name, value)

    def load(self) -> WSGIApp:
        try:
            return build(self._settings, self._app_name, self._stated, self._stack).application
        except InvalidArgument as error:
            # This exception ends the master. With another one it would start workers for ever.
            raise AppImportError(f"{PROGRAM}: {error}") from None

    def run(self) -> None:
        _Arbiter(self).run()

    def _close(self, server: Any, worker: Any) -> None:
        self._stack.close()


def main(descriptor: str, kept: str, parent: str, stated: str, app_name: str | None = None) -> None:
    """Run gunicorn until a signal ends it. Raises SystemExit with gunicorn's status."""
    _end_with(int(parent))
    settings = Settings.load()
    configure(settings.log_level, settings.log_format)
    ClosingServer.kept = kept == "kept"  # the workers inherit it
    _Application(settings, int(descriptor), app_name, frozenset(filter(None, stated.split(",")))).run()


def _end_with(parent: int) -> None:
    """Make the kernel send SIGTERM to this process when ``parent`` ends for any reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)  # the parent ended before the call of prctl


if __name__ == "__main__":
    main(*sys.argv[1:])
