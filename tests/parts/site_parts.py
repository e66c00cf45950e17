"""A site for the tests of the HTTP interface: an Instance, a StreamApp and a real server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import time
from typing import Any
from urllib.parse import quote

from raw_http import Answer, ask

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.names import Signer
from pgbus_gevent.hosts.pywsgi import Server, listen
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.web.stream_app import StreamApp

SECRETS = ("an old secret of the site", "the new secret of the site")
PUBLISH_TOKEN = "publish-token-of-the-site"
MAX_BODY = 1000
DEADLINE = 0.5
"""The deadline of an impatient site, in seconds."""

PATIENCE = 30.0
"""Seconds: deadlines of the product that no test is about. If this process stands still, they end nothing."""

SETTINGS: dict[str, Any] = {
    "secret": SECRETS,
    "public": ("public", "demo:*", "Ca[sz]e:?", "d*"),
    "publish_token": PUBLISH_TOKEN,
    "max_body": MAX_BODY,
    "request_timeout": PATIENCE,
    "connect_timeout": PATIENCE,
    "grace": 1.0,
}


class Site:
    """A running site. ``app`` can be replaced while it serves."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.bus = Bus(settings=instance.settings)
        self.app: Any = StreamApp(instance)
        self.server = Server(
            listen("127.0.0.1", 0),
            lambda *request: self.app(*request),
            request_timeout=instance.settings.request_timeout,
        )
        self.server.start()
        self.headers: dict[str, str] = {}  # of each get()
        self.port = int(self.server.server_port)
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self.server.stop(1.0)
        self.bus.close()
        self.instance.shutdown()

    def get(self, path: str, **headers: str) -> Answer:
        """Send a GET below the prefix, and return the whole answer."""
        return ask(self.port, f"/pgbus{path}", **{**self.headers, **headers})

    def publish(self, stream: str, body: Any = b"data", query: str = "", **headers: str) -> Answer:
        """Broadcast over HTTP with the publish token."""
        headers = {"Authorization": f"Bearer {PUBLISH_TOKEN}", **headers}
        return ask(self.port, f"/pgbus/streams/{quote(stream, safe='')}?{query}", "POST", body, **headers)

    @contextmanager
    def watch(self, stream: str, query: str = "", **headers: str) -> Iterator[StreamClient]:
        """Return a client of a stream. The name is put into the path as it is."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        with StreamClient(self.url, f"/pgbus/streams/{stream}{query and '?'}{query}", headers=names) as client:
            yield client

    def sign(self, stream: str, expires_in: float | None = None, secrets: tuple[str, ...] = SECRETS) -> str:
        """Return a signed name. ``expires_in`` may be negative."""
        return Signer(secrets).sign(stream, None if expires_in is None else time() + expires_in)


@contextmanager
def running_site(database_url: str, **changes: Any) -> Iterator[Site]:
    """Run a site on its own database."""
    site = Site(Instance(Settings(database_url=database_url, **{**SETTINGS, **changes})).start())
    try:
        yield site
    finally:
        site.close()


@contextmanager
def impatient_site(database_url: str, **changes: Any) -> Iterator[Site]:
    """Run a site that gives the authorize hook, and the body of a broadcast, no more than :data:`DEADLINE`.

    The server itself stays patient: it closes no connection whose request is late because this process stands still.
    """
    with running_site(database_url, request_timeout=DEADLINE, **changes) as site:
        site.server.request_timeout = PATIENCE
        yield site
