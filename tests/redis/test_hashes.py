"""Reads of the hashes that all workers write, though any program that reaches Redis can write there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from redis_parts import RedisServer, needs_redis

from pgbus_gevent.errors import RedisUnavailable
from pgbus_gevent.redis import hashes
from pgbus_gevent.redis.links import Pipes
from pgbus_gevent.redis.urls import parse

pytestmark = [needs_redis, pytest.mark.program, pytest.mark.usefixtures("patient")]


@pytest.fixture
def pipes(server: RedisServer) -> Iterator[Pipes]:
    with closing(Pipes(parse(server.url))) as found:
        yield found


def test_a_hash_is_read_as_a_whole_with_the_answers_to_other_commands(server: RedisServer, pipes: Pipes) -> None:
    server.client.hset("h", mapping={"a": "1", "b": "2"})
    found, answers = hashes.read(pipes, "h", ("HLEN", "h"), ("ECHO", "x"))
    assert dict(zip(found[::2], found[1::2], strict=True)) == {b"a": b"1", b"b": b"2"} and answers == [2, b"x"]
    assert hashes.read(pipes, "none") == ([], [])


@pytest.mark.parametrize("extent", ["fields", "size"])
def test_a_hash_larger_than_workers_make_it_is_removed_unread(
    extent: str, server: RedisServer, pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "FIELDS", 100)
    monkeypatch.setattr(hashes, "SIZE", 100_000)
    most = 100 if extent == "fields" else 20
    server.client.hset("h", mapping={str(n): "x" for n in range(most)})
    assert len(hashes.read(pipes, "h")[0]) == 2 * most
    server.client.hset("h", "one more", "x" if extent == "fields" else "x" * 200_000)
    server.client.config_resetstat()
    with pytest.raises(RedisUnavailable, match="another program wrote to h in Redis"):
        hashes.read(pipes, "h")
    assert "cmdstat_hgetall" not in server.client.info("commandstats")
    assert hashes.read(pipes, "h") == ([], [])


def test_a_value_of_another_type_is_removed(server: RedisServer, pipes: Pipes) -> None:
    server.client.set("h", "x")
    with pytest.raises(RedisUnavailable, match="WRONGTYPE"):
        hashes.read(pipes, "h")
    assert hashes.read(pipes, "h") == ([], [])


def test_many_fields_are_removed_by_several_commands(server: RedisServer, pipes: Pipes) -> None:
    names = [b"%d" % n for n in range(2 * hashes.AT_ONCE + 1)]
    server.client.hset("h", mapping=dict.fromkeys([*names, b"kept"], b"x"))
    commands = hashes.removal("h", names)
    assert len(commands) == 3 and hashes.removal("h", []) == []
    pipes.ask("h", *commands)
    assert server.client.hkeys("h") == [b"kept"]
