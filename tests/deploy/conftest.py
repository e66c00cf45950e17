"""Fixtures of the tests of ``deploy/``: a place of its own for each module, with servers, and a bus of their database."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg2.extensions as ext
import pytest
from place_parts import Place, needed

from pgbus_gevent.bus import Bus
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.testing.servers import SECRET


@pytest.fixture(scope="module")
def database_url(pgbus_databases: TestDatabases) -> str:
    url = pgbus_databases.make()
    if not ext.parse_dsn(url).get("host", "").startswith("/"):
        pytest.skip("the database is not on a unix socket, which every namespace reaches")
    return url


@pytest.fixture(scope="module")
def bus(database_url: str) -> Iterator[Bus]:
    with Bus(database_url, secret=SECRET) as found:
        yield found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    why = needed()
    if why:
        pytest.skip(why)
    found = Place(tmp_path_factory.mktemp("place"))
    yield found
    found.close()
