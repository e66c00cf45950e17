"""The socket that a server listens on."""

from __future__ import annotations

import socket
from typing import Any

import gevent

from .closing_server import BACKLOG

DEAD_AFTER = 60.0
"""Seconds after which a connection is closed whose other side acknowledges nothing that it was sent."""


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


def tune(sock: Any) -> None:
    """Set the options that accepted sockets inherit."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    # Without it, an answer in two parts waits 40 ms for the client's delayed ACK.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Without it, the connection of an edge whose host has died lasts until the kernel gives up, after a quarter of an hour.
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(DEAD_AFTER * 1000))
