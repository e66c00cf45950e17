"""How a server accepts: connections without a request are bounded, and a lack of descriptors is survived."""

from __future__ import annotations

import errno
import logging
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from time import monotonic
from typing import Any

import gevent

from ..core.retries import Seldom
from ..streamer.limits import most_waiting
from ..web.process import doors
from .closing_server import ClosingServer
from .request_body import SlowClient

logger = logging.getLogger("pgbus_gevent.server")

MADE_ROOM = 20
"""How many of the connections without a request are closed if no descriptor is left for a new one: at most this many at a time."""

LEAST_WAIT = 1.0
"""Seconds for which a connection may be without a request before it is closed because no descriptor is left."""

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class WaitingRoom:
    """The connections of a server that have no request: new ones, idle ones, and those whose head is not complete.

    Each has a deadline of its own. But clients that connect and send nothing could still open more within the deadline than there
    are descriptors. So there are ``most`` at once at most. If there is one more, the one that has waited longest is closed: a
    client that wants something sends its request at once, so it is not the oldest.

    Nothing here yields. Handlers enter and leave; the event loop, which accepts, makes room.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.closed = 0
        """How many were closed to make room."""
        self._waiting: dict[Any, float] = {}  # since when each socket waits, the one that has waited longest first
        self._seldom = Seldom(monotonic)

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def waits(self, sock: Any) -> Iterator[None]:
        """Count ``sock`` as a connection without a request during a block."""
        self._waiting[sock] = monotonic()
        if len(self._waiting) > self.most:
            self._tell()
            self._close(next(iter(self._waiting)))
        try:
            yield
        finally:
            self._waiting.pop(sock, None)

    def make_room(self) -> None:
        """Close some connections that have waited longest, because there are no descriptors left."""
        now = monotonic()
        for sock, since in list(islice(self._waiting.items(), MADE_ROOM)):
            if now - since >= LEAST_WAIT:
                self._close(sock)

    def _close(self, sock: Any) -> None:
        del self._waiting[sock]
        self.closed += 1
        # The handler finds the end of its input and closes the connection. It is not killed, because a request may have arrived in
        # this moment, which is then still answered.
        with suppress(OSError):
            sock._sock.shutdown(socket.SHUT_RD)

    def _tell(self) -> None:
        unlogged = self._seldom.due("full")
        if unlogged is not None:
            logger.warning(
                "more than %d connections have no request: closing those that have waited longest (%d so far). If clients open"
                " them on purpose, limit them in a firewall or a proxy; otherwise raise the limit of open files (ulimit -n)",
                *(self.most, self.closed),
            )


class AcceptingServer(ClosingServer):
    """A server that accepts with the bounds of :class:`WaitingRoom`, and without a tight loop if descriptors are lacking."""

    request_timeout: float
    # The longest pause after a failed accept, in seconds. gevent's second would keep clients waiting after descriptors are free.
    max_delay = 0.1

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._seldom = Seldom(monotonic)
        super().__init__(*arguments, **options)
        self.room = WaitingRoom(self._most_waiting())
        doors.add(self)

    def _most_waiting(self) -> int:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = most_waiting(soft)
        # While a pool of gunicorn is full, nothing is accepted, so nothing would make room.
        size = getattr(self.pool, "size", None)
        return most if size is None else max(1, min(most, size // 2))

    def do_read(self) -> Any:
        try:
            return super().do_read()
        except OSError as error:
            if error.errno not in _OUT_OF_RESOURCES:
                raise
            self.room.make_room()
            unlogged = self._seldom.due(error.errno)
            if unlogged is not None:
                logger.error(
                    "cannot accept connections: %s; trying again. Clients that are connected are served. Raise the limit of"
                    " open files (ulimit -n), or lower max_connections",
                    error.strerror,
                )
            # For this exception, too, gevent pauses a little longer each time, but it prints no traceback.
            raise gevent.GreenletExit from error

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> Any:
        """Make the handshake of TLS within the deadline, and handle the connection. gevent's would wait for ever."""
        wrapped = self.wrap_socket(client_socket, do_handshake_on_connect=False, **self.ssl_args)
        try:
            with self.room.waits(wrapped), gevent.Timeout(self.request_timeout, SlowClient()):
                wrapped.do_handshake()
        except OSError as error:
            logger.debug("%s made no handshake: %s", address[0] if isinstance(address, tuple) else "-", error)
            return None
        else:
            return self.handle(wrapped, address)
        finally:
            wrapped.close()
