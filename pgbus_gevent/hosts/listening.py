"""The socket that a server listens on."""

from __future__ import annotations

import socket
from typing import Any

import gevent

from .closing_server import BACKLOG


def listen(host: str, port: int, *, reuse_port: bool = False) -> Any:
    """Return a listening socket on ``host`` and ``port`` (0: any free port). Raises OSError if it cannot be opened."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = gevent.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
