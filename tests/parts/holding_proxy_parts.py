"""A proxy that holds the answers for streams until they end, as a virus scanner does that reads whole answers."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import gevent
from gevent.server import StreamServer
from raw_http import read_head

_CONNECTION = re.compile(rb"\r\nconnection:[^\r]*", re.IGNORECASE)


class HoldingProxy:
    """Leads to the server at ``port``. While :attr:`holding`, an answer below ``/streams`` is passed on when it has ended.

    ``asked`` has the targets of the requests. If a client leaves, its request ends at the server too.
    """

    def __init__(self, port: int) -> None:
        self.holding = True
        self.asked: list[str] = []
        self._port = port
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.stop()

    def polls(self) -> list[str]:
        """Return the requests that were polls."""
        return [target for target in self.asked if "poll=" in target]

    def _serve(self, client: socket.socket, _: object) -> None:
        with suppress(OSError):
            head = read_head(client)
            if head is None:
                return
            target = head.split()[1].decode()
            self.asked.append(target)
            with socket.create_connection(("127.0.0.1", self._port)) as upstream:
                # One request for each connection, so that the end of the answer is the end of the connection.
                head = _CONNECTION.sub(b"", head)
                upstream.sendall(head[:-2] + b"connection: close\r\n\r\n")
                self._pass_on(client, upstream, held=self.holding and "/streams" in target)

    def _pass_on(self, client: socket.socket, upstream: socket.socket, held: bool) -> None:
        watching = gevent.spawn(_until_it_leaves, client, upstream)
        parts = []
        try:
            while data := upstream.recv(65536):
                if held:
                    parts.append(data)
                else:
                    client.sendall(data)
            client.sendall(b"".join(parts))
        finally:
            watching.kill()


def _until_it_leaves(client: socket.socket, upstream: socket.socket) -> None:
    with suppress(OSError):
        while client.recv(65536):
            pass
        upstream.shutdown(socket.SHUT_RDWR)


@contextmanager
def holding_proxy(port: int) -> Iterator[HoldingProxy]:
    proxy = HoldingProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
