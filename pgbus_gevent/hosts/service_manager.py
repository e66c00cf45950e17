"""The service manager that started this process: the socket that it passes, and what it is told (sd_listen_fds(3), sd_notify(3)).

That is systemd, or any program with its protocol. Without one, nothing here does anything. ``serve`` makes the object first of all;
:func:`.running.run_until_stopped` makes one for other programs.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, MutableMapping
from typing import Any

import gevent

from ..errors import PgbusError
from .closing_server import BACKLOG

logger = logging.getLogger("pgbus_gevent.serve")

FIRST = 3
"""The descriptor of the first socket that is passed (SD_LISTEN_FDS_START)."""

_SIGNS = 3  # signs of life in the time after which the manager would end this process
_TAKES = 5.0  # seconds that the manager may take to read a message


class ServiceManager:
    """The manager of this process, as the variables in ``environ`` describe it.

    The variables are removed from there. Otherwise children would take them for their own: gunicorn and PostgreSQL, which know the
    protocol too, would report that the service is ready before it is.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        me = str(os.getpid())
        self._address = environ.pop("NOTIFY_SOCKET", "")
        watched = environ.pop("WATCHDOG_PID", me) == me
        limit = environ.pop("WATCHDOG_USEC", "")
        self.patience = int(limit) / 1e6 if watched and limit.isdigit() and int(limit) else None
        """The seconds without a sign of life after which the manager ends this process. None if it waits for none."""
        passed = environ.pop("LISTEN_PID", "") == me
        count = environ.pop("LISTEN_FDS", "")
        environ.pop("LISTEN_FDNAMES", None)
        self._passed = int(count) if passed and count.isdigit() else 0

    @property
    def passes_socket(self) -> bool:
        """Whether the manager has passed sockets. It keeps them open, for the next process of the service."""
        return self._passed > 0

    def listener(self) -> Any:
        """Return the socket that was passed, to listen on. Raises :class:`PgbusError` if it is not one that can be served."""
        if self._passed > 1:
            raise PgbusError(
                f"the service manager has passed {self._passed} sockets, but one is served: leave one ListenStream= in the unit"
            )
        try:
            sock = gevent.socket.socket(fileno=FIRST)
        except OSError as error:
            raise PgbusError(
                f"the socket that the service manager has passed cannot be used: {error.strerror}"
            ) from None
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or not sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            raise PgbusError(
                "the socket that the service manager has passed is not a listening TCP socket: write"
                " ListenStream=ADDRESS:PORT and Accept=no into the unit"
            )
        sock.set_inheritable(False)
        sock.listen(BACKLOG)  # the manager's own queue may be short
        sock.setblocking(False)
        return sock

    def tell(self, *lines: str) -> None:
        """Send assignments such as ``READY=1``. It may yield. An error is logged, because the service itself can go on."""
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with gevent.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_TAKES)
                sock.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            logger.warning("the service manager cannot be told %s: %s", lines[0], error)

    def keep_alive(self, lives: Callable[[], bool]) -> None:
        """Send signs of life for ever, as long as ``lives()`` says so. Run it in a greenlet: it cannot run if the process hangs.

        ``lives`` may yield, and is asked three times within :attr:`patience`. Without a manager that waits for signs, it returns.
        """
        if not self._address or self.patience is None:
            return
        while True:
            if lives():
                self.tell("WATCHDOG=1")
            gevent.sleep(self.patience / _SIGNS)
