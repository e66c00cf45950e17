"""``serve --workers``: the parent of gunicorn's master, which owns the embedded database and passes signals on."""

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
from .service_manager import ServiceManager
from .serving import SPARE

logger = logging.getLogger("pgbus_gevent.serve")

APP_LOAD_ERROR = 4
"""gunicorn's exit status if the application cannot be loaded. The worker has logged why."""

MARGIN = 2.0
"""Seconds that the master has beyond its workers."""

_LOOK = 0.05  # seconds between two requests that find out whether the workers serve
_ANSWER_TIMEOUT = 5.0  # seconds for the answer to such a request
_BETWEEN_RELOADS = 1.0  # seconds


class Workers:
    """gunicorn as a child process.

    It has its own process group, so Ctrl-C reaches only this process, which then stops it in good order. ``stated`` are the names
    of the settings that were given to ``serve``. ``on_hurry`` is called when a second signal ends this process at once.
    """

    def __init__(
        self,
        settings: Settings,
        app_name: str | None,
        stated: frozenset[str],
        sock: Any,
        *,
        manager: ServiceManager,
        on_hurry: Callable[[], object],
    ) -> None:
        self._settings = settings
        self._manager = manager
        self._on_hurry = on_hurry
        self._address = sock.getsockname()
        self._started = False  # a signal may come before the child has started
        self._reload = Event()
        self._stopper = Stopper(settings.grace + SPARE + MARGIN, on_hurry=self._hurry, on_hangup=self._reload.set)
        self._stopper.watch_signals()
        kept = "kept" if manager.passes_socket else "own"
        arguments = [str(sock.fileno()), kept, str(os.getpid()), ",".join(stated)]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "pgbus_gevent.hosts.worker_program", *arguments, *filter(None, [app_name])],
            env=environment(settings),
            pass_fds=[sock.fileno()],
            start_new_session=True,
            # Ignore SIGHUP in the child until gunicorn handles it. Otherwise a reload that is requested while gunicorn loads would
            # end it.
            preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_IGN),
        )
        self._started = True
        # From here on only the child has the socket, so the port is free when the child has closed it.
        sock.close()

    def run(self, announce: Callable[[], None]) -> int:
        """Wait until a signal comes or the master ends, and return the exit status. ``announce`` is called when a worker serves."""
        watchers: list[Any] = [gevent.spawn(each) for each in (self._watch, self._reloads)]
        watchers.append(gevent.spawn(self._announce, announce))
        try:
            self._stopper.wait()
            self._manager.tell("STOPPING=1", "STATUS=stopping the workers")
            return self._stop()
        finally:
            gevent.killall(watchers)
            self._stopper.release()

    def _reloads(self) -> None:
        """Pass SIGHUP on, at most once a second.

        The master would handle many signals one after the other, and a later SIGTERM would have to wait for all of them.
        """
        while True:
            self._reload.wait()
            self._reload.clear()
            if self._stopper.asked:
                return  # when the master ends, it has no handler any more, so SIGHUP would kill it and the exit status would be 1
            logger.info("SIGHUP: replacing the workers")
            self._child.send_signal(signal.SIGHUP)
            gevent.sleep(_BETWEEN_RELOADS)

    def _watch(self) -> None:
        status = self._child.wait()
        if not self._stopper.asked:
            logger.critical("gunicorn ended with status %s", status)
            self._stopper.ask(2 if status == APP_LOAD_ERROR else 1)

    def _announce(self, announce: Callable[[], None]) -> None:
        while self._answer() in (0, 503):
            gevent.sleep(_LOOK)
        announce()
        self._manager.tell("READY=1", "STATUS=serving")
        # Any answer is a sign of life: one of 503 comes from workers that wait for the database, which a restart does not help.
        self._manager.keep_alive(lambda: self._answer() != 0)

    def _answer(self) -> int:
        """Ask a worker for its health. Return the status of its answer, or 0 if none comes."""
        connection = http.client.HTTPConnection(self._address[0], self._address[1], timeout=_ANSWER_TIMEOUT)
        try:
            connection.request("GET", f"{self._settings.prefix}/healthz", headers={"Connection": "close"})
            # An application with its own streams may have another prefix, and answers with another status.
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def _stop(self) -> int:
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(self._settings.grace + SPARE + MARGIN)
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
    """Raise :class:`PgbusError` if gunicorn is not installed."""
    if importlib.util.find_spec("gunicorn") is None:
        raise PgbusError("more than one worker needs gunicorn: pip install 'pgbus-gevent[workers]'")
