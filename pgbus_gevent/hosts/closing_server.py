"""How a server ends: it answers the requests that have arrived, and closes the idle connections."""

from __future__ import annotations

from typing import Any

import gevent
from gevent import pywsgi

BACKLOG = 4096
"""The length of the listening socket's queue, in connections. The kernel limits it to net.core.somaxconn."""

LAST_CALL = 0.5
"""Seconds that a new connection without a request has when the server stops, because its request may be on its way."""

_WSGIServer: Any = pywsgi.WSGIServer


class ClosingServer(_WSGIServer):  # type: ignore[misc]
    """gevent's server, without its resets: if a listening socket is closed, the kernel resets all connections in its queue."""

    # Whether a service manager keeps the socket open for the next process of the service, which then gets the queue.
    kept = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.stopping = False
        self.idle: set[Any] = set()  # greenlets of handlers that wait for another request of a connection
        self.new: set[Any] = set()  # greenlets of handlers that wait for the first request of a connection
        self._last_call: Any = None
        super().__init__(*arguments, **options)

    @property
    def elsewhere(self) -> bool:
        """Whether another process can serve clients better, so that connections are closed after each answer."""
        return False

    def close(self) -> None:
        """Stop accepting. Close the idle connections at once, and the others after the answer to their current request.

        The connections that wait in the queue are accepted and answered too, unless another process accepts from the same socket.
        """
        if not self.stopping:
            self.stopping = True
            gevent.killall(list(self.idle), block=False)
            if self.new:
                self._last_call = gevent.spawn_later(LAST_CALL, self._end_new)
            if self.started and not self.kept and not self._has_heirs():
                self._empty_queue()
        super().close()

    def stop(self, timeout: float | None = None) -> None:
        """:meth:`close`, and wait until all requests are answered. After ``timeout`` seconds, cut off the rest."""
        super().stop(timeout)
        if self._last_call is not None:
            self._last_call.kill()

    def _end_new(self) -> None:
        gevent.killall(list(self.new), block=False)

    def _has_heirs(self) -> bool:
        """Whether another process accepts from the same socket."""
        return False

    def _empty_queue(self) -> None:
        self.stop_accepting()
        for _ in range(BACKLOG):
            try:
                # Call gevent's method, because that of a subclass may wait.
                accepted = None if self.full() else _WSGIServer.do_read(self)
            except OSError:
                return  # for example, no descriptors are left; the kernel resets the rest of the queue
            if not accepted:
                return
            self.do_handle(*accepted)
