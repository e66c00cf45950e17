"""A Bus without a database, for unit tests of an application.

It is the real :class:`~pgbus_gevent.bus.Bus` on queries that keep everything in memory; what it checks, returns and raises is the
same, which one test holds for both. It delivers to nobody: for that there are the fixtures with a real server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import count
from typing import Any

from ..bus import Bus
from ..config import Settings
from ..database.queries import Publication
from ..errors import InvalidArgument
from ..messages import Message

_FIRST_ID = 1_700_000_000_000_000  # as large as real ones are


class FakeBus(Bus):
    """Like ``Bus``, with :attr:`sent`: every message that was published, ephemeral ones included, in the order of their commits."""

    def __init__(self, *, settings: Settings | None = None, **options: Any) -> None:
        options = {"secret": "a secret for tests alone", **options}
        super().__init__(settings=settings or Settings(database_url="postgresql:///fake", **options))
        self.__dict__["database"] = FakeDatabase()  # where Bus keeps the real one

    @property
    def sent(self) -> list[Message]:
        """What was published so far."""
        database: Any = self.database
        return list(database.queries.sent)

    def close(self) -> None:
        """Nothing to close; what was published stays to be looked at."""


class FakeDatabase:
    """Has the queries."""

    def __init__(self) -> None:
        self.queries = FakeQueries()


class FakeQueries:
    """The queries that a Bus makes, in memory."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self._ids = count(_FIRST_ID)
        self._keys: dict[tuple[str, str], int] = {}

    def broadcast(self, stream: str, data: str, publication: Publication) -> int:
        key = (stream, publication.key) if publication.key is not None else None
        if key is not None and key in self._keys:
            return self._keys[key]
        id = next(self._ids)
        self._append(stream, id, data, publication)
        if key is not None:
            self._keys[key] = id
        return id

    def broadcast_many(self, stream: str, data: Sequence[str], publication: Publication) -> int | None:
        ids = [self.broadcast(stream, text, publication) for text in data]
        return ids[-1] if ids else None

    def broadcast_ephemeral(self, stream: str, data: str, publication: Publication) -> None:
        self._append(stream, None, data, publication)

    def _append(self, stream: str, id: int | None, data: str, publication: Publication) -> None:
        now = datetime.now(timezone.utc)
        event, visible_to, exclude = publication[:3]
        self.sent.append(Message(stream, id, now, event, data, visible_to, exclude))

    def last_id(self, stream: str) -> int:
        return max((message.id for message in self.sent if message.stream == stream and message.id), default=0)

    def read_after(self, stream: str, after: int, limit: int) -> list[Message]:
        if after < 0 or limit < 1:
            raise InvalidArgument('bad cursor or limit: "after" is the last id that was seen, or 0; "max" is at least 1')
        found = [message for message in self.sent if message.stream == stream and (message.id or 0) > after]
        return found[:limit]

    @contextmanager
    def transaction(self, isolation: str | None = None) -> Iterator[FakeCursor]:
        cursor = FakeCursor(self)
        yield cursor
        cursor.commit()


class FakeCursor:
    """Takes an application's statements, for ``using=``; :attr:`statements` has those that are not the bus's own.

    Messages are published when the transaction's block ends, or by :meth:`commit`, and not at all when it raises. It answers
    no query of the application's.
    """

    def __init__(self, queries: FakeQueries) -> None:
        self.statements: list[tuple[str, Any]] = []
        self._queries = queries
        self._queued: list[tuple[str, Any]] = []
        self._answer: tuple[Any, ...] | None = None

    def execute(self, statement: str, parameters: Any = None) -> None:
        """Queue a broadcast, answer a watermark, note anything else."""
        if "pgbus.broadcast_" in statement:
            self._queued.append((statement, parameters))
        elif "pgbus.last_id" in statement:
            self._answer = (self._queries.last_id(parameters[0]),)
        else:
            self.statements.append((statement, parameters))

    def fetchone(self) -> tuple[Any, ...] | None:
        """The watermark that was asked for."""
        answer, self._answer = self._answer, None
        return answer

    def fetchall(self) -> list[tuple[Any, ...]]:
        """The same, as a list."""
        answer = self.fetchone()
        return [] if answer is None else [answer]

    def commit(self) -> None:
        """Publish what was queued."""
        queued, self._queued = self._queued, []
        for statement, (stream, data, *publication) in queued:
            if "ephemeral" in statement:
                self._queries.broadcast_ephemeral(stream, data, Publication(*publication))
            else:
                self._queries.broadcast(stream, data, Publication(*publication))

    def rollback(self) -> None:
        """Forget what was queued."""
        self._queued = []
