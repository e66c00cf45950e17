"""A worker class for gunicorn: ``gunicorn -k pgbus_gevent.gunicorn_worker.Worker app:app``.

gunicorn is the process manager: it forks, replaces workers that die or hang, reloads and stops. What it does not know of are the
connections that were taken over, so this worker starts the Instances after the fork, and sends their clients away before
it ends.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
from gevent.pool import Pool
from gunicorn.http.wsgi import base_environ
from gunicorn.workers.ggevent import VERSION, GeventWorker, PyWSGIHandler

from . import streamer
from .core.names import hide_signed
from .hosts.pywsgi import Handler, Server

_LOOK = 0.1  # seconds: how late the order to stop is seen
_NOTIFY = 1.0  # seconds between two signs of life to the master, which replaces a worker that gives none


class _Handler(Handler, PyWSGIHandler):  # type: ignore[misc]  # neither has types
    """Ours for the protocol, gunicorn's for its access log."""

    def log_request(self) -> None:
        if self.command is None:
            # A head that was refused: gunicorn would look for it in the environ, where there is nothing, or the one before.
            Handler.log_request(self)
            return
        self.environ["RAW_URI"] = hide_signed(self.environ["RAW_URI"])
        PyWSGIHandler.log_request(self)


class Worker(GeventWorker):  # type: ignore[misc]
    """One process's server; :meth:`run` is called by gunicorn after the fork, in a process that it has patched."""

    def run(self) -> None:
        for instance in streamer.instances():
            instance.on_failure = self._fail
            instance.start()
        servers = [self._serve(sock) for sock in self.sockets]
        notifier = gevent.spawn(self._keep_notifying)
        try:
            while self.alive:
                gevent.sleep(_LOOK)
            self._stop(servers)
        finally:
            notifier.kill()

    def _serve(self, sock: Any) -> Server:
        sock.setblocking(0)
        environ = base_environ(self.cfg)
        environ.update({"wsgi.multithread": True, "wsgi.multiprocess": True, "SERVER_SOFTWARE": VERSION})
        server = Server(
            sock,
            self.wsgi,
            spawn=Pool(self.worker_connections),
            log=self.log,
            handler_class=_Handler,
            environ=environ,
        )
        # One at a time, so that the workers that wait on the same socket get about the same share.
        server.max_accept = 1
        server.start()
        return server

    def _stop(self, servers: list[Server]) -> None:
        deadline = monotonic() + self.cfg.graceful_timeout
        for server in servers:
            server.close()
        grace = max(0.5, self.cfg.graceful_timeout - 1.0)  # before the master loses its patience
        gevent.joinall([gevent.spawn(instance.shutdown, grace) for instance in streamer.instances()])
        for server in servers:
            server.stop(max(0.1, deadline - monotonic()))

    def _keep_notifying(self) -> None:
        while True:
            self.notify()
            gevent.sleep(_NOTIFY)

    def _fail(self, part: str) -> None:
        self.log.critical("pgbus: %s has failed for good: this worker ends, to be replaced", part)
        self.alive = False
