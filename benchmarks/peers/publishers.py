"""Publishers: an application that writes a row of its own and publishes a message, as the peer documents it.

The row of the application is in the table ``application.orders``, which is the ledger: a message is committed if its row is.
A publisher is a careful application. If PostgreSQL is away, it connects again, looks whether its COMMIT succeeded, and
otherwise repeats the transaction. If a peer that is told after the COMMIT does not answer, it tells it again, for ten seconds.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass

import httpx
import psycopg

from .adapters.base import Message, Peer
from .judge import Commit
from .site import Site

SETUP = """
create schema application;
create table application.orders (key text primary key, stream text not null);
"""
WARM_UP = "warmup"
"""The publisher's name in keys of messages that are not judged."""

_AGAIN = 0.2
_PATIENCE = 10.0
_ANSWER = 30.0  # a slow answer must not be taken for none, because the message would be published twice
_OUTAGE = 30.0


@dataclass(frozen=True)
class Pace:
    """How a publisher works. ``size`` is that of a message in bytes. ``hold`` is how long each transaction stays open at most,
    ``rolled_back`` the share of transactions that roll back, and ``dies`` the share of messages after whose COMMIT the publisher
    ends at once and another takes its place."""

    every: float
    size: int = 200
    hold: float = 0.0
    rolled_back: float = 0.0
    dies: float = 0.0


class Publisher(threading.Thread):
    """One publisher of one stream. Its messages are published one after the other."""

    def __init__(self, peer: Peer, site: Site, stream: str, name: str, pace: Pace, seed: int) -> None:
        super().__init__(daemon=True)
        self.commits: dict[str, Commit] = {}
        self.again = 0
        self.refused = 0
        self._peer = peer
        self._site = site
        self._stream = stream
        self._name = name
        self._pace = pace
        self._rng = random.Random(seed)
        self._ended = threading.Event()
        self._connection: psycopg.Connection | None = None
        self._http = httpx.Client(timeout=_ANSWER, verify=False)

    def end(self) -> None:
        """Let it publish nothing more."""
        self._ended.set()

    def run(self) -> None:
        """Publish until the end."""
        number = 0
        following = time.monotonic() + self._rng.uniform(0, self._pace.every)
        while not self._ended.wait(max(0.0, following - time.monotonic())):
            following = max(following + self._pace.every * self._rng.uniform(0.5, 1.5), time.monotonic())
            number += 1
            self.publish(number)
        self.close()

    def publish(self, number: int) -> None:
        """Publish a message, with all that may happen to it."""
        key = f"{self._stream}/{self._name}/{number}"
        message = Message(key, self._stream, key + " " + "x" * max(0, self._pace.size - len(key) - 1))
        rolls_back = self._rng.random() < self._pace.rolled_back
        hold = self._rng.uniform(self._pace.hold / 4, self._pace.hold)
        began = self._commit(message, hold, rolls_back)
        if began is None:
            return
        if self._rng.random() < self._pace.dies:
            self.close()  # nothing of this publisher goes on; the next call stands for the one that takes its place
        else:
            self._tell(message)
        self.commits[key] = Commit(self._stream, began, time.monotonic())

    def close(self) -> None:
        """Close the connections."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _commit(self, message: Message, hold: float, rolls_back: bool) -> float | None:
        """Commit, and return when the COMMIT was sent; None if the transaction rolled back."""
        deadline = time.monotonic() + _OUTAGE
        sent = None
        while True:
            try:
                connection = self._connect()
                if sent is not None and _is_committed(connection, message.key):
                    return sent
                with connection.cursor() as cursor:
                    cursor.execute("insert into application.orders values (%s, %s)", (message.key, message.stream))
                    self._peer.publish(cursor, message)
                    time.sleep(hold)
                    if rolls_back:
                        connection.rollback()
                        return None
                    sent = time.monotonic()
                    connection.commit()
                    return sent
            except psycopg.OperationalError:
                self.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(_AGAIN)

    def _connect(self) -> psycopg.Connection:
        if self._connection is None:
            self._connection = psycopg.connect(self._site.database_url, connect_timeout=5)
        return self._connection

    def _tell(self, message: Message) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._peer.publish_after(self._site, self._http, message)
                return
            except httpx.HTTPError:
                if time.monotonic() > deadline:
                    self.refused += 1
                    return
                self.again += 1
                time.sleep(_AGAIN)


def _is_committed(connection: psycopg.Connection, key: str) -> bool:
    with connection.transaction():
        return connection.execute("select 1 from application.orders where key = %s", (key,)).fetchone() is not None


def ledger(site: Site) -> set[str]:
    """Return the keys of all committed messages."""
    with psycopg.connect(site.database_url) as connection:
        return {key for (key,) in connection.execute("select key from application.orders")}


def render(peer: Peer, site: Site, stream: str) -> tuple[str | None, frozenset[str]]:
    """Render a page: the rows of the application, and the cursor with which the page subscribes."""
    with psycopg.connect(site.database_url) as connection, httpx.Client(timeout=5.0, verify=False) as http:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with connection.cursor() as cursor:
            found = peer.page(site, http, cursor, stream)
            cursor.execute("select key from application.orders where stream = %s", (stream,))
            return found, frozenset(key for (key,) in cursor.fetchall())
