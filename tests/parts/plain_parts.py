"""An Instance under gevent's unchanged WSGI server, which keeps its sockets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from gevent import pywsgi
from support import connect

from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.web.stream_app import StreamApp

HEARTBEAT = 0.5


class Plain:
    """An Instance under an unchanged gevent.pywsgi.WSGIServer."""

    def __init__(self, settings: Settings) -> None:
        self.instance = Instance(settings).start()
        options: Any = {"log": None, "environ": {"SERVER_NAME": "localhost"}}
        self.server = pywsgi.WSGIServer(("127.0.0.1", 0), StreamApp(self.instance), **options)
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.clients: list[StreamClient] = []

    def live(self, stream: str, since: int | None = None) -> StreamClient:
        client = connect(self.url, stream, since=since)
        self.clients.append(client)
        client.next("pgbus:connected", timeout=20)
        return client

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.instance.shutdown()
        self.server.stop(1.0)


@contextmanager
def plain(settings: Settings, **changes: Any) -> Iterator[Plain]:
    found = Plain(replace(settings, heartbeat=HEARTBEAT, **changes))
    try:
        yield found
    finally:
        found.close()
