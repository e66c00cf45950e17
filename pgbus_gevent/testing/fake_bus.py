"""A Bus without a database, for unit tests of an application.

It is the real :class:`~pgbus_gevent.bus.Bus` with queries that keep everything in memory. It checks, returns and raises the
same, and one test module runs against both. It does not deliver messages; use the fixtures with a real server for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from ..bus import Bus
from ..core.members import NAMED, NAMED_AGAIN
from ..core.names import check_key
from ..database.batch import Outgoing
from ..database.statements import BROADCAST_MANY_ON_COMMIT, BROADCAST_ON_COMMIT, Publication
from ..errors import InvalidArgument
from ..messages import Member, Message
from ..settings.table import Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..settings.options import Options

_FIRST_ID = 1_700_000_000_000_000  # as large as a real id


class FakeBus(Bus):
    """A ``Bus`` in memory. :attr:`sent` holds every published message, including ephemeral ones, in the order of their commits.

    Takes ``settings``, or settings as keywords like ``Bus``; none is needed. Raises
    :class:`~pgbus_gevent.errors.InvalidSetting` for a value that is not allowed.
    """

    def __init__(self, *, settings: Settings | None = None, **options: Unpack[Options]) -> None:
        if settings is None:
            defaults: dict[str, Any] = {"database_url": "postgresql:///fake", "secret": ("a secret for tests alone",)}
            super().__init__(settings=Settings(**{**defaults, **options}))
        else:
            super().__init__(settings=settings, **options)
        self._fake = FakeDatabase()
        self.__dict__["database"] = self._fake  # where Bus keeps the real one

    @property
    def sent(self) -> list[Message]:
        """The messages that have been published so far."""
        return list(self._fake.queries.sent)

    @property
    def answers(self) -> list[list[tuple[Any, ...]]]:
        """The rows for the application's own statements: one list for each statement to come. Append to it; if it is empty,
        statements return no rows."""
        return self._fake.queries.answers

    @property
    def statements(self) -> list[tuple[str, Any]]:
        """The application's own statements so far, as (statement, parameters)."""
        return list(self._fake.queries.statements)

    def close(self) -> None:
        """Publish the messages that coalescing holds back. :attr:`sent` can still be read."""
        self.coalescer.close()


class FakeDatabase:
    """The parts of a Database that a Bus uses."""

    def __init__(self) -> None:
        self.queries = FakeQueries()
        self.presence = FakePresence(self.queries)


class FakeQueries:
    """The queries that a Bus uses, in memory."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.answers: list[list[tuple[Any, ...]]] = []
        self.statements: list[tuple[str, Any]] = []
        self._ids = count(_FIRST_ID)
        self._keys: dict[tuple[str, str], int] = {}

    def broadcast(self, stream: str, data: str, publication: Publication, trace: str | None = None) -> int:
        check_key(publication.key)
        key = (stream, publication.key) if publication.key is not None else None
        if key is not None and key in self._keys:
            return self._keys[key]
        id = next(self._ids)
        self._append(stream, id, data, publication)
        if key is not None:
            self._keys[key] = id
        return id

    def broadcast_many(
        self,
        stream: str,
        data: Sequence[str],
        publication: Publication,
        keys: Sequence[str | None] | None = None,
        trace: str | None = None,
    ) -> int | None:
        given = keys or [None] * len(data)
        ids = [
            self.broadcast(stream, text, publication._replace(key=key)) for text, key in zip(data, given, strict=True)
        ]
        return ids[-1] if ids else None

    def broadcast_ephemeral(self, stream: str, data: str, publication: Publication) -> None:
        self._append(stream, None, data, publication)

    def broadcast_batch(self, messages: Sequence[Outgoing]) -> None:
        for stream, data, event, visible_to, exclude, ephemeral in sorted(messages, key=lambda one: one.ephemeral):
            publication = Publication(event, visible_to, exclude)
            if ephemeral:
                self.broadcast_ephemeral(stream, data, publication)
            else:
                self.broadcast(stream, data, publication)

    def _append(self, stream: str, id: int | None, data: str, publication: Publication) -> None:
        now = _now()
        event, visible_to, exclude = publication[:3]
        self.sent.append(Message(stream, id, now, event or None, data, visible_to, exclude))

    def last_ids(self, streams: Sequence[str]) -> list[int]:
        return [_last_id(self.sent, stream) for stream in streams]

    def read_after(self, stream: str, after: int, limit: int) -> list[Message]:
        if after < 0:
            raise InvalidArgument(f'bad cursor {after}: "after" is the last id that was seen, or 0')
        if limit < 1:
            raise InvalidArgument(f'bad limit {limit}: "max" is at least 1')
        found = [message for message in self.sent if message.stream == stream and (message.id or 0) > after]
        return found[:limit]

    @contextmanager
    def transaction(self, isolation: str | None = None) -> Iterator[FakeDatabaseCursor]:
        database_cursor = FakeDatabaseCursor(self, one_snapshot=isolation in ("repeatable read", "serializable"))
        yield database_cursor
        database_cursor.commit()


class _Lease(NamedTuple):
    metadata: dict[str, Any]
    joined_at: datetime
    expires_at: datetime


class FakePresence:
    """Presence in memory. Joins and leaves are announced as in the real one, but each at once and alone.

    Expiry is not announced, because that is a worker's task.
    """

    def __init__(self, queries: FakeQueries) -> None:
        self._queries = queries
        self._leases: dict[tuple[str, str, str], _Lease] = {}  # in the order of the joins
        self._counted: set[str] = set()  # the streams whose members are not named

    def join(self, stream: str, member: str, metadata: str, connection: str, ttl: float) -> bool:
        now, known = _now(), {found.member: found for found in self.members(stream)}
        joined_at = known[member].joined_at if member in known else now
        self._leases.pop((stream, member, connection), None)
        self._leases[stream, member, connection] = _Lease(json.loads(metadata), joined_at, now + timedelta(seconds=ttl))
        return member not in known and self._announce("join", stream, member, json.loads(metadata))

    def leave(self, stream: str, member: str, connection: str) -> bool:
        lease = self._leases.pop((stream, member, connection), None)
        if lease is None or any(place[:2] == (stream, member) for place in self._leases):
            return False
        return self._announce("leave", stream, member, lease.metadata)

    def touch(self, stream: str, member: str, connection: str, ttl: float) -> bool:
        now, place = _now(), (stream, member, connection)
        lease = self._leases.get(place)
        if lease is None or lease.expires_at <= now:
            return False
        self._leases[place] = lease._replace(expires_at=now + timedelta(seconds=ttl))
        return True

    def members(self, stream: str) -> list[Member]:
        found: dict[str, Member] = {}
        for (where, name, _), lease in self._leases.items():
            if where == stream and lease.expires_at > _now():
                connections = found[name].connections + 1 if name in found else 1
                found[name] = Member(name, lease.metadata, lease.joined_at, connections)
        return sorted(found.values(), key=lambda member: (member.joined_at, member.member))

    def count(self, stream: str) -> int:
        return len(self.members(stream))

    def _announce(self, op: str, stream: str, member: str, metadata: dict[str, Any]) -> bool:
        total = self.count(stream)
        news: dict[str, Any] = {"op": op, "member": member, "metadata": metadata, "count": total}
        if total > (NAMED_AGAIN if stream in self._counted else NAMED):
            self._counted.add(stream)
            news = {"count": total}
        elif stream in self._counted:
            self._counted.remove(stream)
            news = {"op": "refresh", "count": total}
        self._queries.broadcast_ephemeral(stream, json.dumps(news), Publication("presence"))
        return True


class FakeDatabaseCursor:
    """A database cursor for ``using=`` that runs nothing: it answers an application's statements from :attr:`FakeBus.answers`.

    Messages are published at the end of the transaction's block, or by :meth:`commit`. If the block raises, they are dropped.
    """

    def __init__(self, queries: FakeQueries, *, one_snapshot: bool = False) -> None:
        self._queries = queries
        self._one_snapshot = one_snapshot
        self._snapshot: list[Message] | None = None
        self._queued: list[tuple[str, Any]] = []
        self._rows: list[tuple[Any, ...]] = []
        self.rowcount = -1
        """How many rows the last statement was answered with. Give an ``update`` as many as it should seem to change."""

    def execute(self, statement: str, parameters: Any = None) -> None:
        """Queue a broadcast, look up a watermark, or record any other statement."""
        self._rows = []
        if self._snapshot is None or not self._one_snapshot:
            self._snapshot = list(self._queries.sent)
        if statement == BROADCAST_MANY_ON_COMMIT:
            stream, *publication, messages = parameters
            for each in json.loads(messages):
                self.execute(BROADCAST_ON_COMMIT, (stream, each["data"], *publication, each["key"]))
        elif "pgbus.broadcast_" in statement:
            check_key(parameters[5] if len(parameters) > 5 else None)
            self._queued.append((statement, parameters))
        elif "pgbus.last_id" in statement:
            self._rows = [(_last_id(self._snapshot, stream),) for stream in parameters]
        else:
            self._queries.statements.append((statement, parameters))
            self._rows = self._queries.answers.pop(0) if self._queries.answers else []
        self.rowcount = len(self._rows)

    def pgbus_run(self, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Run a statement of a Bus that was given this object as ``using=``."""
        self.execute(statement, parameters)
        return self.fetchall()

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row, or None."""
        return self._rows.pop(0) if self._rows else None

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all remaining rows."""
        rows, self._rows = self._rows, []
        return rows

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.fetchall())

    def commit(self) -> None:
        """Publish the queued messages. Ephemeral ones come last, because notifications are sent after the commit."""
        queued, self._queued, self._snapshot = self._queued, [], None
        for statement, (stream, data, *publication) in sorted(queued, key=lambda one: "ephemeral" in one[0]):
            if "ephemeral" in statement:
                self._queries.broadcast_ephemeral(stream, data, Publication(*publication))
            else:
                self._queries.broadcast(stream, data, Publication(*publication[:4]))  # a fifth one is a trace

    def rollback(self) -> None:
        """Drop the queued messages."""
        self._queued, self._snapshot = [], None


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _last_id(messages: Sequence[Message], stream: str) -> int:
    return max((message.id for message in messages if message.stream == stream and message.id), default=0)
