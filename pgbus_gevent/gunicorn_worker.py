"""A worker class for gunicorn: ``gunicorn -k pgbus_gevent.gunicorn_worker.Worker app:app``.

gunicorn is the process manager: it forks, replaces workers that die or hang, reloads and stops. What it does not know of are the
connections that were taken over, so this worker starts the Instances after the fork, and sends their clients away before
it ends.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from time import monotonic
from typing import Any, ClassVar

import gevent
from gevent.pool import Pool
from gunicorn.http.wsgi import base_environ
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import VERSION, GeventWorker, PyWSGIHandler

from . import streamer
from .core.names import hide_signed
from .core.retries import Backoff
from .core.shown import visible
from .errors import PgbusError
from .hosts.load_board import BalancedServer, LoadBoard
from .hosts.pywsgi import Handler, Server
from .hosts.running import publish_held_back
from .streamer.instance import Instance

_LOOK = 0.1  # seconds: how late the order to stop is seen
_NOTIFY = 1.0  # seconds between two signs of life to the master, which replaces a worker that gives none
_SPARE = 1.0  # seconds that a worker ends before the master loses its patience
_LEAST_GRACE = 0.5  # seconds, whatever the master is told
_QUICK = 1.0  # seconds that SIGINT and SIGQUIT leave for the farewells
_RETRY = 1.0, 10.0  # seconds before an Instance that could not start is started again: at first, and at the most


class _Handler(Handler, PyWSGIHandler):  # type: ignore[misc]  # neither has types
    """Ours for the protocol, gunicorn's for its access log, where it has one."""

    def log_request(self) -> None:
        # Of a head that was refused there is no environ, or the one of the request before.
        if self.command is None or not self.server.log.access_log_enabled:
            Handler.log_request(self)
            return
        # Whatever the format of the log takes from it.
        shown = {name: visible(hide_signed(value)) for name, value in self.environ.items() if isinstance(value, str)}
        self.environ = {**self.environ, **shown}
        PyWSGIHandler.log_request(self)


class Worker(GeventWorker):  # type: ignore[misc]
    """One process's server; :meth:`run` is called by gunicorn after the fork, in a process that it has patched."""

    server_software = VERSION
    _status = 0
    _grace: float | None = None  # of a quick stop; else what the settings say
    _board: ClassVar[LoadBoard | None] = None

    def __init__(self, age: int, *arguments: Any) -> None:
        super().__init__(age, *arguments)
        # This is still the master, whose children all get the same board.
        if Worker._board is None:
            Worker._board = LoadBoard()
        self._place = Worker._board.place(age)
        self._unstarted: set[Instance] = set()  # those that could not be started

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Called in the master before it forks. Raises SystemExit where an Instance runs there."""
        if any(task.running for instance in streamer.instances() for task in instance.tasks.values()):
            # Each worker would have a copy of its greenlets, on the same connections to the database.
            log.critical(
                "pgbus: with --preload the application must not start an Instance, as streamer.current() does, when it is"
                " imported: make it with Instance(), and each worker starts its own"
            )
            sys.exit(1)

    def run(self) -> None:
        """Serve until told to stop, then drain."""
        servers = [self._server(sock) for sock in self.sockets]
        helpers = [gevent.spawn(self._keep_notifying)]
        try:
            if self.alive:  # it may have been told to end while it loaded the application
                helpers += self._start_instances()
            # What was made so far stays: the collector need not look at it again and again.
            gc.collect()
            gc.freeze()
            for server in servers:
                server.start()
            while self.alive:
                for server in servers:
                    server.show(monotonic())
                gevent.sleep(_LOOK)
            gevent.killall(helpers[1:])
            self._drain(servers)
        finally:
            gevent.killall(helpers)
        if self._status:
            sys.exit(self._status)

    def _server(self, sock: Any) -> BalancedServer:
        sock.setblocking(0)
        environ = base_environ(self.cfg)
        environ.update({"wsgi.multithread": True, "wsgi.multiprocess": True, "SERVER_SOFTWARE": self.server_software})
        tls = {"ssl_context": ssl_context(self.cfg)} if self.cfg.is_ssl else {}
        return BalancedServer(
            sock,
            self.wsgi,
            place=self._place,
            streams=_streams,
            able=self._able,
            spawn=Pool(self.worker_connections),
            log=self.log,
            handler_class=_Handler,
            environ=environ,
            **_limits(),
            **tls,
        )

    # life

    def _start_instances(self) -> list[gevent.Greenlet[..., Any]]:
        """Start all, before anybody is accepted; the greenlets that go on trying with those that cannot be."""
        found = streamer.instances()
        tries = gevent.joinall([gevent.spawn(self._start, instance) for instance in found])
        failed = [instance for instance, attempt in zip(found, tries, strict=True) if not attempt.get()]
        return [gevent.spawn(self._keep_starting, instance) for instance in failed]

    def _start(self, instance: Instance) -> bool:
        self._watch(instance)
        try:
            instance.start()
        except PgbusError as error:
            # readyz tells, and clients are left to other workers, or sent away to come back: ending would have the master fork
            # without a pause.
            self._unstarted.add(instance)
            self.log.error("pgbus: the streamer cannot start, trying again: %s", error)
            return False
        self._unstarted.discard(instance)
        return True

    def _able(self) -> bool:
        """Whether this worker takes clients. Instances that the application starts with its first request do not count before."""
        if any(not instance.tasks["dispatcher"].running for instance in self._unstarted):
            return False
        started = [instance for instance in streamer.instances() if instance.tasks["dispatcher"].running]
        return not any(instance.unready for instance in started)

    def _keep_starting(self, instance: Instance) -> None:
        backoff = Backoff(*_RETRY)
        while True:
            gevent.sleep(backoff.next())
            if self._start(instance):
                return

    def _watch(self, instance: Instance) -> None:
        if instance.on_failure is None:
            instance.on_failure = self._fail

    def _fail(self, part: str) -> None:
        self.log.critical("pgbus: %s has failed for good: this worker ends, to be replaced", part)
        self._status = 1
        self.alive = False

    def _keep_notifying(self) -> None:
        while True:
            self.notify()
            # Those that the application has made only now.
            for instance in streamer.instances():
                self._watch(instance)
            gevent.sleep(_NOTIFY)

    def notify(self) -> None:
        """Tell the master that we live. Without a master there is nobody to replace us: the clients are better off elsewhere."""
        self.tmp.notify()
        if self.alive and self.ppid != os.getppid():
            self.log.info("pgbus: the master is gone: %s drains and ends", self)
            self.alive = False

    # the end

    def init_signals(self) -> None:
        """A terminal that hangs up sends SIGHUP to all of its processes, and gunicorn's master alone knows what to make of it."""
        super().init_signals()
        for number in (signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, lambda *_: None)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGINT or SIGQUIT: end soon. Gives way, which a signal's handler must not, so it is done by the loop."""
        self._grace = _QUICK
        self.alive = False
        gevent.spawn(self.cfg.worker_int, self)

    def _drain(self, servers: list[Server]) -> None:
        """Accept nobody, send the streams away, let other requests finish; before the master loses its patience."""
        patience = self.cfg.graceful_timeout - _SPARE if self._grace is None else self._grace
        deadline = monotonic() + max(_LEAST_GRACE, patience)
        self._place.leave()
        for server in servers:
            server.close()
        gevent.joinall([gevent.spawn(self._shut_down, instance, deadline) for instance in streamer.instances()])
        gevent.joinall([gevent.spawn(server.stop, max(0.1, deadline - monotonic())) for server in servers])
        publish_held_back(deadline - monotonic())

    def _shut_down(self, instance: Instance, deadline: float) -> None:
        instance.shutdown(min(instance.settings.grace, deadline - monotonic()))


def _streams() -> int:
    return sum(len(instance.registry) for instance in streamer.instances())


def _limits() -> dict[str, Any]:
    """The server's own settings, where there is an Instance that has them."""
    found = [instance.settings for instance in streamer.instances()]
    if not found:
        return {}
    return {
        "request_timeout": max(settings.request_timeout for settings in found),
        "max_request_head": max(settings.max_request_head for settings in found),
    }
