"""The fixtures, as a pytest plugin."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from ..bus import Bus
from ..config import Settings
from ..database import green
from ..hosts.pywsgi import Server, listen
from ..streamer.instance import Instance
from ..web.stream_app import StreamApp
from .client import StreamClient, stream_path
from .databases import TestDatabases

SECRET = "a secret for tests alone"


@pytest.fixture(scope="session")
def pgbus_databases() -> Iterator[TestDatabases]:
    """The server that test databases are made on: ``PGBUS_TEST_DATABASE_URL``, else an embedded one."""
    green.install()
    databases = TestDatabases(os.environ.get("PGBUS_TEST_DATABASE_URL"))
    yield databases
    databases.close()


@pytest.fixture
def pgbus_database(pgbus_databases: TestDatabases) -> Iterator[str]:
    """The URL of a fresh database with the schema in it."""
    url = pgbus_databases.make()
    yield url
    pgbus_databases.drop(url)


@pytest.fixture
def pgbus_settings(pgbus_database: str) -> Settings:
    """The settings of the fixtures; override it to change them."""
    return Settings(database_url=pgbus_database, secret=(SECRET,), public=("*",), grace=3.0, host="127.0.0.1")


@pytest.fixture
def pgbus_bus(pgbus_settings: Settings) -> Iterator[Bus]:
    """A Bus on the fresh database."""
    with Bus(settings=pgbus_settings) as bus:
        yield bus


@pytest.fixture
def pgbus_instance(pgbus_settings: Settings) -> Iterator[Instance]:
    """A started Instance on the fresh database, stopped after the test."""
    instance = Instance(pgbus_settings).start()
    yield instance
    instance.shutdown()


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


@pytest.fixture
def pgbus_server(pgbus_instance: Instance) -> Iterator[RunningServer]:
    """A real server of the Instance: ``.url``, ``.app`` to replace."""
    server = RunningServer(StreamApp(pgbus_instance), pgbus_instance.settings.prefix)
    yield server
    server.stop()


@pytest.fixture
def pgbus_client(pgbus_server: RunningServer) -> Iterator[Callable[..., StreamClient]]:
    """Connects clients to the server: ``pgbus_client("orders", since=None, headers=None)``."""
    clients: list[StreamClient] = []

    def connect(
        stream: str, since: int | None = None, headers: Mapping[str, str] | None = None, query: str = ""
    ) -> StreamClient:
        path = stream_path(pgbus_server.prefix, stream) + (f"?{query}" if query else "")
        client = StreamClient(pgbus_server.url, path, since=since, headers=headers)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.close()
