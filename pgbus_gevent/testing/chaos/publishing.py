"""The kinds of publishers. Each is a function that publishes some messages to a stream, and returns what became of them.

A function returns ``committed``, or ``unknown`` if it cannot know. It raises :class:`RolledBack` if the messages were certainly not
committed. Any error of the database or of the network counts as ``unknown``.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2

from ...bus import Bus
from .hooks import ROOM

PLAIN = tuple(f"chaos:plain-{n}" for n in range(6))
AUDIENCE = ("chaos:audience",)
EXCLUDING = ("chaos:exclude",)
SHORT = ("chaos:short",)
TABLE = ("chaos:table",)
COALESCED = ("chaos:coalesced",)
EPHEMERAL = ("chaos:ephemeral",)
STREAMS = (*PLAIN, *AUDIENCE, *EXCLUDING, *SHORT, *TABLE, *COALESCED, *EPHEMERAL, ROOM)

SCHEMA = """
create schema chaos;
create table chaos.ledger (message bigint primary key, stream text not null, kind text not null, msg_id bigint);
create table chaos.things (message bigint primary key, sent float8 not null);
select pgbus.watch_table('chaos.things', 'chaos:table');
"""
"""What the conductor adds to the database: the ledger, and a table that is watched."""

_LEDGER = "insert into chaos.ledger (message, stream, kind, msg_id) values (%s, %s, %s, %s)"
_NOW = (
    "with done as (select pgbus.broadcast(%(stream)s, %(data)s, visible_to => %(visible_to)s, exclude => %(exclude)s,"
    " key => %(key)s) as id)"
    " insert into chaos.ledger select %(message)s, %(stream)s, %(kind)s, id from done on conflict do nothing"
)


class RolledBack(Exception):
    """The messages were certainly not committed."""


class Ways:
    """The ways to publish that a publisher has: a session, a Bus and HTTP. The session is opened when it is first needed."""

    def __init__(self, url: str, bus: Bus, places: Sequence[str], token: str, folder: Path) -> None:
        self.bus, self.places, self.token, self.folder = bus, list(places), token, folder
        self.asked = 0.0
        """When the last statement that commits began."""
        self._url = url
        self._connection: Any = None

    @property
    def session(self) -> Any:
        """The session, in autocommit."""
        if self._connection is None:
            self._connection = psycopg2.connect(
                self._url, connect_timeout=3, application_name="chaos-publisher", options="-c statement_timeout=8s"
            )
            self._connection.autocommit = True
        return self._connection

    def forget(self) -> None:
        """Close the session after an error."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def run(self, statement: str, arguments: Any = None) -> None:
        """Run a statement."""
        with self.session.cursor() as cursor:
            cursor.execute(statement, arguments)

    @contextmanager
    def transaction(self) -> Any:
        """Give a cursor in a transaction, which is committed at the end. An error before the COMMIT means RolledBack."""
        connection = self.session
        connection.autocommit = False
        try:
            with connection.cursor() as cursor:
                try:
                    yield cursor
                except psycopg2.Error as error:
                    raise RolledBack from error
            self.asked = time.monotonic()
            connection.commit()
        finally:
            if not connection.closed:
                connection.rollback()
                connection.autocommit = True


def payload(message: int, size: int = 0) -> str:
    """Return the data of a message: its number, the time, and padding."""
    return f"{message} {time.monotonic():.6f} {'x' * size}"


def _now(ways: Ways, stream: str, message: int, kind: str, **more: str | None) -> None:
    arguments = {"visible_to": None, "exclude": None, "key": None, **more}
    ways.run(_NOW, {"stream": stream, "data": payload(message), "message": message, "kind": kind, **arguments})


def autocommit(ways: Ways, chance: random.Random, stream: str, messages: list[int]) -> str:
    """One statement for each message."""
    for message in messages:
        _now(ways, stream, message, "autocommit")
    return "committed"


def short(ways: Ways, chance: random.Random, stream: str, messages: list[int]) -> str:
    """The same, to a stream whose messages are soon removed."""
    for message in messages:
        _now(ways, stream, message, "short")
    return "committed"


def long(ways: Ways, chance: random.Random, stream: str, messages: list[int]) -> str:
    """A transaction that stays open for seconds, and publishes on commit."""
    with ways.transaction() as cursor:
        for message in messages:
            cursor.execute(_LEDGER, (message, stream, "long", None))
            cursor.execute("select pgbus.broadcast_on_commit(%s, %s)", (stream, payload(message)))
            time.sleep(chance.uniform(0.2, 1.5))
    return "committed"


def using(ways: Ways, chance: random.Random, stream: str, messages: list[int]) -> str:
    """A transaction of an application, with ``using=``."""
    with ways.transaction() as cursor:
        for message in messages:
            cursor.execute(_LEDGER, (message, stream, "using", None))
            ways.bus.stream(stream).broadcast(payload(message, 200), using=cursor)
    return "committed"


def batch(ways: Ways, chance: random.Random, stream: str, messages: list[int]) -> str:
    """Several messages by one call, in a transaction."""
    with ways.transaction() as cursor:
        for message in messages:
            cursor.execute(_LEDGER, (message, stream, "batch", None))
        cursor.execute("select pgbus.broadcast_many(%s, %s)", (stream, [payload(message) for message in messages]))
    return "committed"


def keys(ways: Ways, chance: random.Random, stream: str, messages: list[int]) -> str:
    """A key for each message, and the same again until the database has said that it is there."""
    for message in messages:
        for _ in range(40):
            try:
                _now(ways, stream, message, "keys", key=f"key-{message}")
                break
            except psycopg2.Error:
                ways.forget()
                time.sleep(1.0)
        else:
            return "unknown"
    return "committed"


def rollback(ways: Ways, chance: random.Random, stream: str, messages: list[int]) -> str:
    """A transaction that is rolled back."""
    with ways.transaction() as cursor:
        for message in messages:
            function = chance.choice(("broadcast", "broadcast_on_commit"))
            cursor.execute(f"select pgbus.{function}(%s, %s)", (stream, payload(message)))
        raise RolledBack


def crash(ways: Ways, chance: random.Random, stream: str, messages: list[int]) -> str:
    """A session that is cut between the statement and the answer to its COMMIT. What became of it is not known."""
    connection = ways.session
    with connection.cursor() as cursor:
        cursor.execute("begin")
        for message in messages:
            cursor.execute(_LEDGER, (message, stream, "crash", None))
            cursor.execute("select pgbus.broadcast_on_commit(%s, %s)", (stream, payload(message)))
        # psycopg2 is in C and waits for the answer, so the cut comes from a thread, with a descriptor of its own.
        line = socket.socket(fileno=os.dup(connection.fileno()))
        cutter = threading.Timer(chance.choice((0.0, chance.random() * 0.004)), line.shutdown, (socket.SHUT_RDWR,))
        cutter.start()
        try:
            cursor.execute("commit")
        finally:
            cutter.join()
            line.close()
    return "committed"


def audience(ways: Ways, chance: random.Random, stream: str, messages: list[int]) -> str:
    """Messages for one user, for those whom a filter permits, or for everybody."""
    for message in messages:
        visible_to = chance.choice((None, "odd", f"user:{chance.randrange(40)}"))
        _now(ways, stream, message, "audience", visible_to=visible_to)
    return "committed"


def exclude(ways: Ways, chance: random.Random, stream: str, messages: list[int]) -> str:
    """Messages that one connection does not get. The clients write the ids of their connections to files."""
    for message in messages:
        known = sorted(ways.folder.glob("connection-*"))
        author = chance.choice(known).read_text() if known else ""
        _now(ways, stream, message, "exclude", exclude=author or None)
    return "committed"


def ephemeral(ways: Ways, chance: random.Random, stream: str, messages: list[int]) -> str:
    """Messages that are not stored."""
    for message in messages:
        ways.run("select pgbus.broadcast_ephemeral(%s, %s, 'ephemeral')", (stream, payload(message)))
    return "committed"


def coalesced(ways: Ways, chance: random.Random, stream: str, messages: list[int]) -> str:
    """Writes that replace one another. The Bus publishes the last of them, in its own transaction."""
    for message in messages:
        ways.bus.stream(stream).broadcast(payload(message), coalesce=0.05, target=f"target-{messages[0]}")
    return "unknown"


def table(ways: Ways, chance: random.Random, stream: str, messages: list[int]) -> str:
    """Rows of a table that is watched."""
    with ways.transaction() as cursor:
        for message in messages:
            cursor.execute(_LEDGER, (message, stream, "table", None))
            cursor.execute("insert into chaos.things values (%s, %s)", (message, time.monotonic()))
    return "committed"


def http(ways: Ways, chance: random.Random, stream: str, messages: list[int]) -> str:
    """POST to a worker, with a key, and again until one has said that it is there."""
    for message in messages:
        for _ in range(20):
            try:
                _post(chance.choice(ways.places), stream, ways.token, f"key-{message}", payload(message))
                break
            except (OSError, HTTPException):
                time.sleep(1.0)
        else:
            return "unknown"
    return "committed"


def _post(place: str, stream: str, token: str, key: str, data: str) -> None:
    url = f"{place}/pgbus/streams/{urllib.parse.quote(stream)}?key={key}"
    request = urllib.request.Request(url, data.encode(), {"Authorization": f"Bearer {token}"}, method="POST")
    with urllib.request.urlopen(request, timeout=15) as response:  # nosec B310 # the run's own servers
        json.load(response)


class Kind(NamedTuple):
    """A kind of publisher: how many there are, the mean interval in seconds, and how many messages it publishes at a time."""

    name: str
    publish: Callable[[Ways, random.Random, str, list[int]], str]
    streams: tuple[str, ...]
    number: int
    interval: float
    size: tuple[int, int] = (1, 1)


KINDS = (
    Kind("autocommit", autocommit, PLAIN, 3, 0.3),
    Kind("long", long, PLAIN, 2, 0.5, (1, 3)),
    Kind("using", using, PLAIN, 2, 0.4, (1, 2)),
    Kind("batch", batch, PLAIN, 1, 1.0, (2, 8)),
    Kind("keys", keys, PLAIN, 2, 0.4),
    Kind("rollback", rollback, PLAIN, 1, 0.7, (1, 2)),
    Kind("crash", crash, PLAIN, 1, 0.5, (1, 2)),
    Kind("audience", audience, AUDIENCE, 1, 0.3),
    Kind("exclude", exclude, EXCLUDING, 1, 0.3),
    Kind("ephemeral", ephemeral, EPHEMERAL, 1, 0.3),
    Kind("coalesced", coalesced, COALESCED, 1, 0.5, (2, 6)),
    Kind("table", table, TABLE, 1, 0.4, (1, 3)),
    Kind("http", http, PLAIN, 1, 0.5),
    Kind("short", short, SHORT, 1, 0.3),
)
