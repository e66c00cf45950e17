"""A real server in the process of the tests."""

from __future__ import annotations

from typing import Any

from ..hosts.pywsgi import Server, listen

SECRET = "a secret for tests alone"
"""Signs the stream names of the fixtures' server."""


class RunningServer:
    """A real server on a free port. ``app`` can be replaced while it runs."""

    def __init__(self, app: Any, prefix: str) -> None:
        self.app = app
        self.prefix = prefix
        self._server = Server(listen("127.0.0.1", 0), lambda *request: self.app(*request))
        self._server.start()
        self.port = int(self._server.server_port)
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Stop it; streams that were taken over are their Instance's."""
        self._server.stop(1.0)
