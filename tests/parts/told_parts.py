"""What a service manager hears of its services."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import gevent


class Told:
    """The socket on which a manager hears its services, and the lines that came."""

    def __init__(self, path: Path) -> None:
        self.lines: list[str] = []
        self._path = path
        self._sock: Any = gevent.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._greenlet = gevent.spawn(self._read)

    def _read(self) -> None:
        while True:
            self.lines += self._sock.recv(4096).decode().splitlines()

    def signs(self) -> int:
        return self.lines.count("WATCHDOG=1")

    def close(self) -> None:
        self._greenlet.kill()
        self._sock.close()
