"""Servers of Redis: a fresh one for a test, and those that the tests of a file share. Parts that wait for longer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis_parts import PATIENCE, RedisCluster, RedisServer, redis_cluster, redis_server

from pgbus_gevent.redis import caps, leases, links, reads, roll, session
from pgbus_gevent.redis.session import RedisSession


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server of the test's own."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def single() -> Iterator[RedisServer]:
    """A server that the tests of a file share."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    """A cluster that the tests of a file share."""
    with redis_cluster() as servers:
        yield servers


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the parts wait for a minute where they wait for seconds.

    Otherwise they would turn from Redis to PostgreSQL, or end a session, because this process or Redis stood still for a moment.
    A test of a deadline sets it itself.
    """
    for kind in (links.Link, links.Pipes):
        monkeypatch.setitem(kind.__init__.__kwdefaults__, "timeout", PATIENCE)  # type: ignore[misc]
    monkeypatch.setattr(links, "FIND_TIMEOUT", PATIENCE)
    for module in (caps, leases, reads, roll, session):
        monkeypatch.setattr(module, "TIMEOUT", PATIENCE)
    monkeypatch.setattr(session, "SILENCE", PATIENCE)
    monkeypatch.setattr(RedisSession.hears, "__defaults__", (PATIENCE,))
