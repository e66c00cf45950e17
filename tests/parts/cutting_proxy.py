"""A proxy that cuts each client's first connection a given number of bytes after the first frame, even within the next."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from time import monotonic

import gevent
from gevent.server import StreamServer
from raw_http import read_head

_END_OF_GREETING = b"\n\n\r\n"


class Line:
    """One client, by the number of bytes that it gets after the greeting. Its second connection gets everything."""

    def __init__(self, cut: int) -> None:
        self.cut = cut
        self.greeted = 0  # connections that have got the greeting
        self.opened: list[float] = []
        self.cut_at: float | None = None

    @property
    def away(self) -> float:
        """Return the seconds from the cut to the next connection, or None if there was none."""
        return self.opened[1] - self.cut_at if self.cut_at is not None and len(self.opened) > 1 else 0.0


class CuttingProxy:
    """Stands between the clients of ``stream`` and the server at ``port``."""

    def __init__(self, port: int) -> None:
        self._upstream = ("127.0.0.1", port)
        self.lines: dict[tuple[str, int], Line] = {}
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.stop()

    def _serve(self, client: socket.socket, _: object) -> None:
        try:
            with client, socket.create_connection(self._upstream) as server:
                head = read_head(client)
                if head is None:
                    return
                found = re.search(rb"/streams/([^?]+)\?.*?cut=(\d+)", head)
                assert found, head
                line = self.lines.setdefault((found[1].decode(), int(found[2])), Line(int(found[2])))
                line.opened.append(monotonic())
                server.sendall(head)
                watcher = gevent.spawn(_end_with, client, server)
                try:
                    self._relay(server, client, line, len(line.opened) == 1)
                finally:
                    watcher.kill()
        except OSError:
            pass  # one of them has left

    def _relay(self, server: socket.socket, client: socket.socket, line: Line, first: bool) -> None:
        received = b""
        while _END_OF_GREETING not in received:
            data = server.recv(65536)
            if not data:
                return
            received += data
        greeting = received.index(_END_OF_GREETING) + len(_END_OF_GREETING)
        client.sendall(received[:greeting])
        line.greeted += 1
        rest = received[greeting:]
        while first and not (rest and len(rest) >= line.cut):
            data = server.recv(65536)
            if not data:
                return
            rest += data
        if first:
            client.sendall(rest[: line.cut])
            line.cut_at = monotonic()
            client.shutdown(socket.SHUT_RDWR)
            return
        while True:
            client.sendall(rest)
            rest = server.recv(65536)
            if not rest:
                return


def _end_with(client: socket.socket, server: socket.socket) -> None:
    """End the server's connection when the client leaves. Until the next frame, nothing else would tell of that."""
    with suppress(OSError):
        while client.recv(65536):
            pass
    with suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)
