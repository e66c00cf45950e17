"""gunicorn as ``serve --workers`` runs it: a program of its own, told by PGBUS_* variables what to serve.

``python -m pgbus_gevent.hosts.worker_program DESCRIPTOR PARENT STATED [APP]``: the listening socket, the process without which it
ends, and the names of the settings that somebody stated.
It is not patched for gevent, which a process that forks must not be; its workers are.
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

from ..commands.common import PROGRAM
from ..errors import InvalidArgument
from ..settings.table import Settings
from .logs import configure
from .serving import SPARE, WSGIApp, build

_PR_SET_PDEATHSIG = 1  # prctl(2)


class _Log(glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """The master's records among all others, in the format of the settings."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True


class _Arbiter(Arbiter):  # type: ignore[misc]
    """Ends with the status of the first worker that cannot load the application, also when a second one cannot."""

    _halting = False

    def halt(self, *arguments: Any, **options: Any) -> None:
        self._halting = True
        super().halt(*arguments, **options)

    def reap_workers(self) -> None:
        try:
            super().reap_workers()
        except HaltServer:
            # gunicorn raises it for each such worker: while it ends for the first, the next would end it with a traceback.
            if not self._halting:
                raise


class _Application(BaseApplication):  # type: ignore[misc]
    """What the master loads: its own configuration at once, the application in each worker."""

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
            if name in self.cfg.settings:  # not all of them are in every release
                self.cfg.set(name, value)

    def load(self) -> WSGIApp:
        try:
            return build(self._settings, self._app_name, self._stated, self._stack).application
        except InvalidArgument as error:
            # The master ends on it, instead of starting workers for ever.
            raise AppImportError(f"{PROGRAM}: {error}") from None

    def run(self) -> None:
        _Arbiter(self).run()

    def _close(self, server: Any, worker: Any) -> None:
        self._stack.close()


def main(descriptor: str, parent: str, stated: str, app_name: str | None = None) -> None:
    """Run until a signal ends it. Raises SystemExit with gunicorn's status."""
    _end_with(int(parent))
    settings = Settings.load()
    configure(settings.log_level, settings.log_format)
    _Application(settings, int(descriptor), app_name, frozenset(filter(None, stated.split(",")))).run()


def _end_with(parent: int) -> None:
    """Have the kernel send us SIGTERM when ``parent`` dies, however that comes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)  # it died before we asked


if __name__ == "__main__":
    main(*sys.argv[1:])
