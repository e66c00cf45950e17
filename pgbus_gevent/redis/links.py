"""Connections to the servers of Redis, and the question which server has what.

Of redis-py, only the connections are used. Its client for sharded channels has lost subscriptions silently when a node failed over
or a slot moved. Here, each node has one connection, and any surprise ends the session, so that everything is asked anew.
"""

from __future__ import annotations

import ssl
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.connection import Connection, SSLConnection
from redis.crc import key_slot
from redis.exceptions import AskError, RedisError, ResponseError

from ..errors import RedisRefused, RedisUnavailable
from .refusals import LOGIN, SENTINEL_LOGIN, failure
from .urls import Address, RedisURL

Command = tuple[str | bytes | int, ...]

_ALL_SLOTS = 0, 16383

TIMEOUT = 3.0
"""Seconds for connecting to a server, and for each answer."""

FIND_TIMEOUT = 1.0
"""The same for the question where the servers are. Before each beacon it is asked again, and a beacon must not be late because a
Sentinel, or a node of the cluster, is away."""


@contextmanager
def translated(where: object, login: str = LOGIN) -> Iterator[None]:
    """Raise :class:`RedisUnavailable` for every error of redis-py and of the socket. ``login`` says where the login is given."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise failure(f"Redis at {where}", error, "is not available", login=login) from error


# Without these, redis-py looks for its version in the file system and tells it to the server, each time it connects.
_UNNAMED: dict[str, Any] = (
    {"driver_info": None} if hasattr(redis, "DriverInfo") else {"lib_name": None, "lib_version": None}
)


@contextmanager
def _closing_if_killed(connection: Any) -> Iterator[None]:
    """Close the socket if the greenlet is killed while it connects, as it is when a worker ends.

    redis-py closes it after ordinary errors only. While it connects, the socket is in a local variable, and the exception keeps
    that variable alive for as long as anybody holds the exception.
    """
    try:
        yield
    except BaseException as error:
        connection.disconnect()
        traceback.clear_frames(error.__traceback__)
        raise


class Link:
    """One connection to one server. Two greenlets may use it, if one only sends and the other only reads."""

    def __init__(self, url: RedisURL, address: Address, *, sentinel: bool = False, timeout: float = TIMEOUT) -> None:
        self.address = address
        self.where = f"{address[0]}:{address[1]}"
        self._login = SENTINEL_LOGIN if sentinel else LOGIN
        options: dict[str, Any] = {
            "host": address[0],
            "port": address[1],
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "socket_keepalive": True,
            "protocol": 2,
            "username": url.sentinel_username if sentinel else url.username,
            "password": url.sentinel_password if sentinel else url.password,
            "db": 0 if sentinel else url.db,
            **_UNNAMED,
        }
        if url.tls:
            options |= {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, "ssl_ca_certs": url.ca_file}
        kind: Any = SSLConnection if url.tls else Connection
        self._connection = kind(**options)
        with _closing_if_killed(self._connection), translated(self.where, self._login):
            self._connection.connect()

    def send(self, commands: Iterable[Command]) -> None:
        """Send commands, without waiting for the answers."""
        with translated(self.where, self._login):
            self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)

    def read(self) -> Any:
        """Return the next answer; an error reply is returned as a ``ResponseError``."""
        with translated(self.where, self._login):
            try:
                return self._connection.read_response()
            except ResponseError as error:
                return error

    def wait(self, timeout: float) -> bool:
        """Return whether something came within ``timeout`` seconds."""
        with translated(self.where, self._login):
            return bool(self._connection.can_read(timeout))

    def ask(self, *commands: Command) -> list[Any]:
        """Send commands in one go and return their answers; error replies are among them."""
        self.send(commands)
        return [self.read() for _ in commands]

    def one(self, *command: str | bytes | int) -> Any:
        """Send one command and return its answer. Raises :class:`RedisUnavailable` for an error reply."""
        (answer,) = self.ask(command)
        if isinstance(answer, Exception):
            raise failure(f"Redis at {self.where}", answer, f"refuses {command[0]!r}", login=self._login)
        return answer

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.disconnect()


class Layout:
    """Which server has which slots of keys. ``ranges`` are first and last slot, with the server that has them.

    ``source`` is the host of the URL that said so.
    """

    def __init__(self, ranges: Sequence[tuple[int, int, Address]], source: Address | None = None) -> None:
        self._ranges = sorted(ranges)
        self.source = source

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._ranges == other._ranges

    @property
    def servers(self) -> list[Address]:
        """The servers, each once."""
        return sorted({address for _, _, address in self._ranges})

    def of(self, name: str) -> Address:
        """Return the server of a key or a sharded channel. Raises :class:`RedisUnavailable` if no server has its slot."""
        slot = key_slot(name.encode())
        for first, last, address in self._ranges:
            if first <= slot <= last:
                return address
        raise RedisUnavailable(f"no node of the Redis cluster has the slot {slot}")


class Pipes:
    """Connections to the servers, for commands in one go. One greenlet at a time uses it.

    If a server fails, :class:`RedisUnavailable` is raised and the pipes are of no more use.
    """

    def __init__(self, url: RedisURL, *, timeout: float = TIMEOUT) -> None:
        self._url = url
        self._timeout = timeout
        self._layout = find(url)
        self._links: dict[Address, Link] = {}

    @property
    def current(self) -> bool:
        """Whether the servers still have what they had; this asks them."""
        found = find(self._url, first=self._layout.source)
        self._layout.source = found.source
        return found == self._layout

    def run(self, commands: Sequence[tuple[str, Command]]) -> list[Any]:
        """Send each command to the server of the name beside it. Return the answers in the order of the commands.

        An error reply is returned as an exception. The commands for one server are executed in their order.
        """
        by_node: dict[Address, list[int]] = {}
        for n, (name, _) in enumerate(commands):
            by_node.setdefault(self._layout.of(name), []).append(n)
        for address, numbers in by_node.items():
            if address not in self._links:
                self._links[address] = Link(self._url, address, timeout=self._timeout)
            self._links[address].send([commands[n][1] for n in numbers])
        answers: list[Any] = [None] * len(commands)
        for address, numbers in by_node.items():
            for n in numbers:
                answers[n] = self._links[address].read()
        return answers

    def ask(self, name: str, *commands: Command) -> list[Any]:
        """Send commands to the server that has ``name``. Return the answers; raise :class:`RedisUnavailable` for an error reply.

        If another program has put a value of another type at a command's key, it is removed. Otherwise it would stay for ever.
        """
        answers = self.run([(name, command) for command in commands])
        for answer, command in zip(answers, commands, strict=True):
            if isinstance(answer, Exception):
                if of_another_type(answer):
                    self.run([(name, ("UNLINK", command[1]))])
                if isinstance(
                    answer, AskError
                ):  # also MOVED; redis-py leaves only the slot and the address of its text
                    raise RedisUnavailable("a slot of the Redis cluster moves to another node")
                raise failure("Redis", answer, f"refuses {command[0]!r}")
        return answers

    def close(self) -> None:
        """Close the connections. Idempotent."""
        for one in self._links.values():
            one.close()


def of_another_type(answer: object) -> bool:
    """Whether an error reply says that a key has a value of another type. Only another program can have put it there."""
    return isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE")


def find(url: RedisURL, *, first: Address | None = None) -> Layout:
    """Ask which servers there are, the host ``first`` before the others. Raises :class:`RedisUnavailable` if nobody knows."""
    if url.kind == "single":
        return Layout([(*_ALL_SLOTS, url.hosts[0])])
    last, refusal = RedisUnavailable("the URL names no server"), None
    for host in sorted(url.hosts, key=lambda host: host != first):
        try:
            with link(url, host, sentinel=url.kind == "sentinel") as one:
                ranges = _master(url, one) if url.kind == "sentinel" else _slots(one)
                return Layout(ranges, source=host)
        except RedisRefused as error:
            refusal = error
        except RedisUnavailable as error:
            last = error
        except (ValueError, TypeError, IndexError) as error:
            last = RedisUnavailable(f"the answer of {host[0]}:{host[1]} about its servers cannot be read: {error!r}")
    raise refusal or last


@contextmanager
def link(url: RedisURL, address: Address, *, sentinel: bool = False) -> Iterator[Link]:
    """Connect for the time of a block, to ask where the servers are."""
    one = Link(url, address, sentinel=sentinel, timeout=FIND_TIMEOUT)
    try:
        yield one
    finally:
        one.close()


def _master(url: RedisURL, sentinel: Link) -> list[tuple[int, int, Address]]:
    found = sentinel.one("SENTINEL", "GET-MASTER-ADDR-BY-NAME", url.service)
    if not found:
        raise RedisUnavailable(f"the Sentinel at {sentinel.where} knows no master {url.service!r}")
    address = _text(found[0]), int(found[1])
    # During a failover a Sentinel may still name the former master.
    with link(url, address) as one:
        if _text(one.one("ROLE")[0]) != "master":
            raise RedisUnavailable(
                f"Redis at {one.where} is not a master, though the Sentinel at {sentinel.where} says so"
            )
    return [(*_ALL_SLOTS, address)]


def _slots(node: Link) -> list[tuple[int, int, Address]]:
    ranges = []
    for first, last, (host, port, *_), *_ in node.one("CLUSTER", "SLOTS"):
        # A node that does not know its own address names none. Then it is the one that was asked.
        ranges.append((int(first), int(last), (_text(host or b"") or node.address[0], int(port))))
    if not ranges:
        raise RedisUnavailable(f"the Redis cluster of {node.where} has no slots")
    return ranges


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
