"""Fixtures of the tests of ``deploy/``: a place of its own for each test, and a bus of the database that its servers have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg2.extensions as ext
import pytest
from place_parts import Place, needed

from pgbus_gevent.bus import Bus
from pgbus_gevent.testing.servers import SECRET


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    why = needed()
    if why:
        pytest.skip(why)
    found = Place(tmp_path)
    yield found
    found.close()


@pytest.fixture
def bus(pgbus_database: str) -> Iterator[Bus]:
    if not ext.parse_dsn(pgbus_database).get("host", "").startswith("/"):
        pytest.skip("the database is not on a unix socket, which every namespace reaches")
    with Bus(pgbus_database, secret=SECRET) as found:
        yield found
