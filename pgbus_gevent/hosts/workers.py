"""``serve --workers``: the process that stays beside gunicorn's master, holds the embedded database and passes signals on."""

from __future__ import annotations

import http.client
import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
from gevent.event import Event

from ..errors import PgbusError
from ..settings.passing import environment
from ..settings.table import Settings
from .running import Stopper
from .serving import SPARE

logger = logging.getLogger("pgbus_gevent.serve")

APP_LOAD_ERROR = 4
"""gunicorn's status where the application cannot be loaded; the worker has said why."""

_LOOK = 0.05  # seconds between two questions whether it serves already
_MARGIN = 2.0  # seconds that the master has beyond its workers
_ANSWER_TIMEOUT = 5.0
_BETWEEN_RELOADS = 1.0  # seconds


class Workers:
    """gunicorn as a child, in a process group of its own: Ctrl-C is for us alone, and we know what to make of it."""

    def __init__(
        self,
        settings: Settings,
        app_name: str | None,
        stated: frozenset[str],
        sock: Any,
        *,
        on_hurry: Callable[[], object],
    ) -> None:
        self._settings = settings
        self._on_hurry = on_hurry
        self._address = sock.getsockname()
        self._started = False  # signals may come before the child is there
        self._reload = Event()
        self._stopper = Stopper(settings.grace + SPARE + _MARGIN, on_hurry=self._hurry, on_hangup=self._reload.set)
        self._stopper.watch_signals()
        arguments = [str(sock.fileno()), str(os.getpid()), ",".join(stated), *([] if app_name is None else [app_name])]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "pgbus_gevent.hosts.worker_program", *arguments],
            env=environment(settings),
            pass_fds=[sock.fileno()],
            start_new_session=True,
            # A reload that is asked for while it loads would end it; gunicorn takes the signal from the start on, ignored or not.
            preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_IGN),
        )
        self._started = True
        # Held by the child alone, so that it is gone when the child has closed it.
        sock.close()

    def run(self, announce: Callable[[], None]) -> int:
        """Until a signal comes or the master ends; ``announce`` is called when it serves. The exit status."""
        watchers: list[Any] = [gevent.spawn(each) for each in (self._watch, self._reloads)]
        watchers.append(gevent.spawn(self._announce, announce))
        try:
            self._stopper.wait()
            return self._stop()
        finally:
            gevent.killall(watchers)
            self._stopper.release()

    def _reloads(self) -> None:
        """One reload for all signals of a moment: the master handles each by itself, and an order to end waits behind them."""
        while True:
            self._reload.wait()
            self._reload.clear()
            logger.info("SIGHUP: replacing the workers")
            self._child.send_signal(signal.SIGHUP)
            gevent.sleep(_BETWEEN_RELOADS)

    def _watch(self) -> None:
        status = self._child.wait()
        if not self._stopper.asked:
            logger.critical("gunicorn ended with status %s", status)
            self._stopper.ask(2 if status == APP_LOAD_ERROR else 1)

    def _announce(self, announce: Callable[[], None]) -> None:
        while not self._serves():
            gevent.sleep(_LOOK)
        announce()

    def _serves(self) -> bool:
        connection = http.client.HTTPConnection(self._address[0], self._address[1], timeout=_ANSWER_TIMEOUT)
        try:
            connection.request("GET", f"{self._settings.prefix}/healthz", headers={"Connection": "close"})
            # An application that has streams of its own may have them under another prefix, and nothing here.
            return connection.getresponse().status != 503
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _stop(self) -> int:
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(self._settings.grace + SPARE + _MARGIN)
            except subprocess.TimeoutExpired:
                self._kill()
        return self._stopper.status or int(self._child.returncode != 0)

    def _hurry(self) -> None:
        self._kill()
        self._on_hurry()

    def _kill(self) -> None:
        if not self._started:
            return
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all of them have ended


def check_installed() -> None:
    """Raises :class:`PgbusError` where there is no gunicorn."""
    if importlib.util.find_spec("gunicorn") is None:
        raise PgbusError("more than one worker needs gunicorn: pip install 'pgbus-gevent[workers]'")
