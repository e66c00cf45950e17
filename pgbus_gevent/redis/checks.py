"""The questions that ``doctor`` asks Redis. They change nothing there."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import NamedTuple

from redis.exceptions import NoPermissionError, ReadOnlyError, RedisError

from .keys import SHARDS, Keys
from .links import FIND_TIMEOUT, Command, Layout, Link, find
from .session import SILENCE, RedisSession
from .urls import Address, RedisURL


class Servers(NamedTuple):
    """The servers that the URL leads to, the longest time that one took to answer, in seconds, and the version of one, if known."""

    addresses: list[str]
    seconds: float
    version: str


class Denials(NamedTuple):
    """What the servers would refuse. ``rights`` are commands that the user may not run, with Redis's reason.

    ``others`` are refusals for other causes: it is full, a replica, or a node of a cluster. ``unknown`` says why the rights
    could not be checked; otherwise it is empty.
    """

    rights: list[str]
    others: list[str]
    unknown: str


class RedisChecks:
    """Asks the questions, each on connections of its own. Raises :class:`pgbus_gevent.errors.RedisUnavailable`."""

    def __init__(self, url: RedisURL) -> None:
        self._url = url

    def servers(self) -> Servers:
        """Find the servers, and connect to each."""
        addresses, slowest, version = find(self._url).servers, 0.0, ""
        for address in addresses:
            link = Link(self._url, address, timeout=FIND_TIMEOUT)
            try:
                began = monotonic()
                link.ask(("TIME",))  # an error reply is an answer, too
                slowest = max(slowest, monotonic() - began)
                info = link.ask(("INFO", "server"))[0]
                if isinstance(info, bytes):
                    version = _version(info.decode(errors="replace")) or version
            finally:
                link.close()
        return Servers([f"{host}:{port}" for host, port in addresses], slowest, version)

    def denials(self, keys: Keys) -> Denials:
        """Find out which of the workers' commands the servers would refuse.

        The commands are queued in a transaction that is discarded. A server checks the rights before it queues a command.
        """
        layout = find(self._url)
        rights: dict[str, None] = {}
        others: dict[str, None] = {}
        for address in layout.servers:
            link = Link(self._url, address, timeout=FIND_TIMEOUT)
            try:
                opened = link.ask(("MULTI",))[0]
                if isinstance(opened, Exception):  # without it, the commands would be executed
                    return Denials([], [], f"{link.where} refuses MULTI: {opened}")
                commands = list(_commands(keys, layout, address))
                for command, answer in zip(commands, link.ask(*commands), strict=True):
                    if isinstance(answer, NoPermissionError):
                        rights[f"{command[0]!s} ({answer})"] = None
                    elif isinstance(answer, ReadOnlyError):
                        others[f"{link.where} is a replica, to which nothing can be written"] = None
                    elif isinstance(answer, RedisError):
                        others[f"{link.where} refuses {command[0]!s}: {answer}"] = None
                link.ask(("DISCARD",))
            finally:
                link.close()
        return Denials(list(rights), list(others), "")

    def beacon(self, keys: Keys, timeout: float = SILENCE) -> float | None:
        """Subscribe as a worker does. Return after how many seconds a beacon came; None if none did within ``timeout``."""
        began = monotonic()
        session = RedisSession(self._url, keys)
        try:
            session.follow(None)
            return monotonic() - began if session.hears(timeout) else None
        finally:
            session.close()


def _commands(keys: Keys, layout: Layout, address: Address) -> Iterator[Command]:
    """Yield the commands of workers and relays, with names that this server has."""
    shard = next((n for n in range(SHARDS) if layout.of(keys.shard_channel(n)) == address), None)
    if shard is not None:
        name = f"{keys.shard_channel(shard)}:doctor"
        yield "XADD", name, "MAXLEN", "~", 1000, "1-0", "m", ""
        yield "XRANGE", name, "-", "+", "COUNT", 1
        yield "XREVRANGE", name, "+", "-", "COUNT", 1
        yield "SET", name, 1, "EX", 1
        yield "EXPIRE", name, 1
        yield "UNLINK", name
        if keys.sharded:
            yield "SPUBLISH", keys.shard_channel(shard), ""
        else:
            yield "PUBLISH", keys.control, ""
    for name in (keys.roll, keys.cap_reports, keys.leases):
        if layout.of(name) == address:
            yield "HSET", name, "doctor", ""
            yield "HGET", name, "doctor"
            yield "HLEN", name
            yield "HSTRLEN", name, "doctor"
            yield "MEMORY", "USAGE", name, "SAMPLES", 0
            yield "HGETALL", name
            yield "HDEL", name, "doctor"
            yield ("TIME",)
    if layout.of(keys.cap_turn) == address:
        yield "GETRANGE", keys.cap_sum, 0, 1
        yield "DEL", keys.cap_turn


def _version(info: str) -> str:
    """Return the name and the version of a server, from what it says about itself."""
    facts = dict(line.split(":", 1) for line in info.split("\r\n") if ":" in line)
    if "valkey_version" in facts:
        return f"Valkey {facts['valkey_version']}"
    return f"Redis {facts['redis_version']}" if "redis_version" in facts else ""
