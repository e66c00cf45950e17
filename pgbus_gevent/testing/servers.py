"""A real server in the process of the tests."""

from __future__ import annotations

from typing import Any

from ..hosts.pywsgi import Server, listen

SECRET = "a secret for tests alone"  # nosec B105 # of servers that only tests start
"""The secret that signs stream names for the fixtures' server."""


class RunningServer:
    """A real server on a free port of 127.0.0.1. ``app``, a WSGI application, can be replaced while it runs."""

    def __init__(self, app: Any, prefix: str) -> None:
        self.app = app
        self.prefix = prefix
        self._server = Server(listen("127.0.0.1", 0), lambda *request: self.app(*request))
        self._server.start()
        self.port = int(self._server.server_port)
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Stop the server. Connections that were taken over belong to their Instance and stay open."""
        self._server.stop(1.0)
