"""Shared parts of the tests of edges: an edge and its origin in this process, and a network between them that fails."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import gevent
from gevent.event import Event
from gevent.server import StreamServer
from support import PATIENCE, Serving, serving, until

from pgbus_gevent.settings.table import Settings

TOKEN = "a-worker-token-for-tests"


class Hop:
    """A TCP port that leads to an origin. It can cut its connections, hold back their bytes, and refuse new ones."""

    def __init__(self, *urls: str) -> None:
        self.targets = [int(url.rpartition(":")[2]) for url in urls]
        """The ports that new connections lead to, in turn."""
        self.delay = 0.0
        """Seconds for which each piece of bytes is held back."""
        self.flows = Event()
        self.flows.set()
        self.open = True
        self.opens = Event()
        self.opens.set()
        """While it is clear, new connections hang."""
        self.taken = 0
        self.waiting = 0
        """How many new connections hang."""
        self._sockets: list[socket.socket] = []
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _serve(self, client: socket.socket, _: object) -> None:
        if not self.open:
            return
        self.taken += 1
        self.waiting += 1
        self.opens.wait()
        self.waiting -= 1
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self.targets[self.taken % len(self.targets)])) as server,
        ):
            self._sockets += [client, server]
            back = gevent.spawn(self._pass_on, server, client)
            try:
                self._pass_on(client, server)
                back.join()
            finally:
                back.kill()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.flows.wait()
                if self.delay:
                    gevent.sleep(self.delay)
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End all connections."""
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.flows.set()
        self.opens.set()
        self.cut()
        self._server.stop(1)


@contextmanager
def hop(*urls: str) -> Iterator[Hop]:
    """Run a network between an edge and its origins."""
    found = Hop(*urls)
    try:
        yield found
    finally:
        found.close()


def edge_settings(settings: Settings, origin_url: str, **changes: Any) -> Settings:
    """Return the settings of an edge of the origin at ``origin_url``."""
    return replace(
        settings,
        **{"database_url": None, "upstream": f"{origin_url}/pgbus", "worker_token": TOKEN, "presence": (), **changes},
    )


@contextmanager
def edge_of(
    settings: Settings, origin_url: str, *, parts: dict[str, Any] | None = None, **changes: Any
) -> Iterator[Serving]:
    """Run an edge in this process, which follows the origin."""
    with serving(edge_settings(settings, origin_url, **changes), parts=parts) as edge:
        until(lambda: edge.instance.listener.live, "the edge hears its origin", PATIENCE)
        yield edge
