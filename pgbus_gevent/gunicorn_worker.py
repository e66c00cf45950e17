"""A worker class for gunicorn: ``gunicorn -k pgbus_gevent.gunicorn_worker.Worker app:app``.

gunicorn manages the processes: it forks, replaces workers that die or hang, reloads, and stops. It does not know the connections
that were taken over. So this worker starts the Instances after the fork, and sends their clients away before it ends.
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

_LOOK = 0.1  # seconds between two looks for the order to stop
_NOTIFY = 1.0  # seconds between two signs of life to the master, which replaces a worker that gives none
_SPARE = 1.0  # seconds by which a worker ends before the master would kill it
_LEAST_GRACE = 0.5  # seconds for the farewells, even if gunicorn's graceful_timeout is shorter
_QUICK = 1.0  # seconds for the farewells after SIGINT and SIGQUIT
_RETRY = 1.0, 10.0  # seconds until an Instance that could not start is started again: the first pause, and the longest


class _Handler(Handler, PyWSGIHandler):  # type: ignore[misc]  # neither has types
    """Our handler for the protocol, and gunicorn's for its access log if that is enabled."""

    def log_request(self) -> None:
        # If the head was refused, there is no environ, or only that of the request before.
        if self.command is None or not self.server.log.access_log_enabled:
            Handler.log_request(self)
            return
        # The log's format may take any value from the environ, so clean all of them.
        shown = {name: visible(hide_signed(value)) for name, value in self.environ.items() if isinstance(value, str)}
        self.environ = {**self.environ, **shown}
        PyWSGIHandler.log_request(self)


class Worker(GeventWorker):  # type: ignore[misc]
    """gunicorn's worker class for pgbus: it serves the application and its streams in one process.

    gunicorn calls :meth:`run` after the fork, in a process that it has patched for gevent. The worker balances connections with the
    other workers, and tells gunicorn's master that it lives.
    """

    server_software = VERSION
    _status = 0
    _grace: float | None = None  # seconds, for a quick stop; None if gunicorn's graceful_timeout counts
    _board: ClassVar[LoadBoard | None] = None

    def __init__(self, age: int, *arguments: Any) -> None:
        super().__init__(age, *arguments)
        # This still runs in the master, so all of its children inherit the same board.
        if Worker._board is None:
            Worker._board = LoadBoard()
        self._slot = Worker._board.slot(age)
        self._unstarted: set[Instance] = set()  # Instances that could not be started yet

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse to fork while an Instance runs in the master, with SystemExit. gunicorn calls this in the master."""
        if any(task.running for instance in streamer.instances() for task in instance.tasks.values()):
            # Each worker would get a copy of its greenlets, which would share the database connections.
            log.critical(
                "pgbus: with --preload, the application must not start an Instance when it is imported, as streamer.current()"
                " does. Make it with Instance(); then each worker starts its own"
            )
            sys.exit(1)

    def run(self) -> None:
        """Serve until the order to stop comes, then drain."""
        servers = [self._server(sock) for sock in self.sockets]
        helpers = [gevent.spawn(self._keep_notifying)]
        try:
            if self.alive:  # False if a signal came while the application was loaded
                helpers += self._start_instances()
            # All objects so far are permanent. Freeze them, so that no later collection traverses them again.
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
            slot=self._slot,
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
        """Start all Instances before the first connection is accepted; return the greenlets that retry the failed ones."""
        found = streamer.instances()
        tries = gevent.joinall([gevent.spawn(self._start, instance) for instance in found])
        failed = [instance for instance, attempt in zip(found, tries, strict=True) if not attempt.get()]
        return [gevent.spawn(self._keep_starting, instance) for instance in failed]

    def _start(self, instance: Instance) -> bool:
        self._watch(instance)
        try:
            instance.start()
        except PgbusError as error:
            # Do not end, because the master would then fork replacements without a pause. Meanwhile readyz answers 503, and
            # connections are left to the other workers, or answered with the request to reconnect later.
            self._unstarted.add(instance)
            self.log.error("pgbus: the streamer cannot start, trying again: %s", error)
            return False
        self._unstarted.discard(instance)
        return True

    def _able(self) -> bool:
        """Whether this worker can take clients. An Instance that starts with its first request does not count before that."""
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
        self.log.critical("pgbus: %s has failed for good: this worker ends, and gunicorn's master replaces it", part)
        self._status = 1
        self.alive = False

    def _keep_notifying(self) -> None:
        while True:
            self.notify()
            # The application may have made more Instances since.
            for instance in streamer.instances():
                self._watch(instance)
            gevent.sleep(_NOTIFY)

    def notify(self) -> None:
        """Tell the master that this worker lives.

        If the master is gone, drain and end, because nothing would replace this worker if it hung.
        """
        self.tmp.notify()
        if self.alive and self.ppid != os.getppid():
            self.log.info("pgbus: the master is gone: %s drains and ends", self)
            self.alive = False

    # the end

    def init_signals(self) -> None:
        """Ignore SIGHUP and SIGUSR2, which are for the master. A terminal that hangs up sends SIGHUP to all of its processes."""
        super().init_signals()
        for number in (signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, lambda *_: None)

    def handle_quit(self, sig: int, frame: Any) -> None:
        """End soon, after SIGINT or SIGQUIT. The hook ``worker_int`` may yield, which a signal handler must not, so a greenlet
        calls it."""
        self._grace = _QUICK
        self.alive = False
        gevent.spawn(self.cfg.worker_int, self)

    def _drain(self, servers: list[Server]) -> None:
        """Close the servers, send the streams' clients away and let other requests finish, before the master kills this worker."""
        patience = self.cfg.graceful_timeout - _SPARE if self._grace is None else self._grace
        deadline = monotonic() + max(_LEAST_GRACE, patience)
        self._slot.leave()
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
    """The limits of the server, by the settings of the Instances; empty without an Instance."""
    found = [instance.settings for instance in streamer.instances()]
    if not found:
        return {}
    return {
        "request_timeout": max(settings.request_timeout for settings in found),
        "max_request_head": max(settings.max_request_head for settings in found),
    }
