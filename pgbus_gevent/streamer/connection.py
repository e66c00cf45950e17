"""A client whose socket is ours: taken over from the server, so that it costs no greenlet."""

from __future__ import annotations

import socket
from collections.abc import Callable
from time import monotonic

from ..core import chunked as chunks
from ..core.client import Client, StreamRequest
from .io_writer import IoWriter


class Connection(Client):
    """``head`` is the response's status line and headers, which go out before the first frame; ``chunked`` whether they announce
    chunks, one for each write.

    ``on_drained`` is called with the connection when it can take more again, ``on_gone`` with it and a reason when the client has
    left; both in the hub. ``send_buffer`` is the kernel's for this socket, in bytes: by itself it would take 4 MB for a
    client that never reads. ``dead_after`` bounds, in seconds, how long the kernel goes on with a peer that acknowledges
    nothing.
    """

    __slots__ = ("_chunked", "_head", "_writer")

    def __init__(
        self,
        id: str,
        request: StreamRequest,
        sock: socket.socket,
        head: bytes,
        *,
        chunked: bool = False,
        on_drained: Callable[[Connection], None],
        on_gone: Callable[[Connection, str], None],
        send_buffer: int = 65536,
        dead_after: float = 30.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(id, request, now=clock())
        self._head = head
        self._chunked = chunked
        _tune(sock, send_buffer, dead_after)
        self._writer = IoWriter(sock, self, on_drained=on_drained, on_gone=on_gone, clock=clock)

    @property
    def blocked_since(self) -> float | None:
        return self._writer.blocked_since

    def send(self, data: bytes, now: float) -> None:
        self.last_sent = now
        if self._chunked:
            size = len(data)
            if size > chunks.COPIED:
                self._send_large(size, data, now)
                return
            data = chunks.chunk(data)
        if self._head:
            data, self._head = self._head + data, b""
        self.bytes_sent += len(data)
        self._writer.write(data, now)

    def _send_large(self, size: int, data: bytes, now: float) -> None:
        # As it is: all connections share it, the slow ones for long.
        head, self._head = self._head + chunks.head(size), b""
        self.bytes_sent += len(head) + size + len(chunks.END)
        self._writer.write_all((head, data, chunks.END), now)

    def finish(self, farewell: bytes, now: float) -> None:
        if self._chunked:
            farewell = chunks.chunk(farewell) + chunks.LAST
        self._writer.finish(self._head + farewell, now)
        self._head = b""

    def abort(self) -> None:
        self._writer.abort()


def _tune(sock: socket.socket, send_buffer: int, dead_after: float) -> None:
    sock.setblocking(False)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(dead_after * 1000))
    except OSError:
        pass  # the client has left already, which the first read tells
