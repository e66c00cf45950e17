"""Servers of Redis: a fresh one for a test, and those that the tests of a file share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis_parts import RedisCluster, RedisServer, redis_cluster, redis_server


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
