"""How a server ends: whoever has come so far is answered, whoever has nothing to ask is let go."""

from __future__ import annotations

from typing import Any

import gevent
from gevent import pywsgi

BACKLOG = 4096
"""Connections that the kernel holds until they are accepted, as far as net.core.somaxconn lets it."""

LAST_CALL = 0.5
"""Seconds that a connection without a request has when the server stops: its request may be on its way."""

_WSGIServer: Any = pywsgi.WSGIServer


class ClosingServer(_WSGIServer):  # type: ignore[misc]
    """gevent's server, less the resets: closing a listening socket resets all who wait to be accepted."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.stopping = False
        self.idle: set[Any] = set()  # the greenlets of handlers that wait for another request to begin, and
        self.new: set[Any] = set()  # of those that wait for the first one of a connection
        self._last_call: Any = None
        super().__init__(*arguments, **options)

    @property
    def elsewhere(self) -> bool:
        """Whether clients are better off at another process, so that no connection is kept for a next request."""
        return False

    def close(self) -> None:
        """Accept nobody any more, end the idle connections, and each other one with the answer that it is owed.

        Those that wait to be accepted are accepted and answered too, unless another process will take them.
        :meth:`stop` does so too, then returns when these are out, or were cut off after its ``timeout`` in seconds.
        """
        if not self.stopping:
            self.stopping = True
            gevent.killall(list(self.idle), block=False)
            if self.new:
                self._last_call = gevent.spawn_later(LAST_CALL, self._end_new)
            if self.started and not self._has_heirs():
                self._empty_queue()
        super().close()

    def stop(self, timeout: float | None = None) -> None:
        """:meth:`close`, and wait for those that are still answered; for ``timeout`` seconds at the most."""
        super().stop(timeout)
        if self._last_call is not None:
            self._last_call.kill()

    def _end_new(self) -> None:
        gevent.killall(list(self.new), block=False)

    def _has_heirs(self) -> bool:
        """Whether other processes will accept who waits."""
        return False

    def _empty_queue(self) -> None:
        self.stop_accepting()
        for _ in range(BACKLOG):
            try:
                # Not a subclass's, which may have a reason to wait.
                accepted = None if self.full() else _WSGIServer.do_read(self)
            except OSError:
                return  # out of descriptors, or whatever else accepting may meet: what is left is reset
            if not accepted:
                return
            self.do_handle(*accepted)
