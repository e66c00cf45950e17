"""The statements of presence: an application's, about one member, and the streamer's, about all of a worker's at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from ..messages import Member
from .patience import READ, Patience
from .pool import Pool

Change = tuple[str, str, str, str | None]
"""Stream, member and connection of one that came, with the member's metadata as JSON, or that left, with None."""


class PresenceQueries:
    """On connections of one pool. Raises the exceptions of :mod:`pgbus_gevent.errors` alone; times are seconds."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._keeping = Patience(READ)

    def _all(self, statement: str, *parameters: Any, patience: Patience | None = None) -> list[tuple[Any, ...]]:
        with self._pool.connection(patience) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall()

    # an application's

    def join(self, stream: str, member: str, metadata: str, connection: str, ttl: float) -> bool:
        """Whether the member is new there; ``metadata`` is JSON."""
        arguments = (stream, member, metadata, connection, timedelta(seconds=ttl))
        return bool(self._all("select pgbus.presence_join(%s, %s, %s::jsonb, %s, %s)", *arguments)[0][0])

    def leave(self, stream: str, member: str, connection: str) -> bool:
        """Whether the member is gone by it."""
        return bool(self._all("select pgbus.presence_leave(%s, %s, %s)", stream, member, connection)[0][0])

    def touch(self, stream: str, member: str, connection: str, ttl: float) -> bool:
        """Whether the connection is still there, and is for as long again."""
        arguments = (stream, member, connection, timedelta(seconds=ttl))
        return bool(self._all("select pgbus.presence_touch(%s, %s, %s, %s)", *arguments)[0][0])

    def members(self, stream: str) -> list[Member]:
        """Who is there, first come first."""
        # As text: an application may have psycopg2 turn jsonb into something of its own.
        statement = "select member, metadata::text, joined_at, connections from pgbus.presence_members(%s)"
        return [Member(name, json.loads(text), at, count) for name, text, at, count in self._all(statement, stream)]

    def count(self, stream: str) -> int:
        """How many members are there."""
        return int(self._all("select pgbus.presence_count(%s)", stream)[0][0])

    # the streamer's

    def record(self, changes: Sequence[Change], *, ttl: float, grace: float) -> list[int]:
        """Write what happened, and announce what has come of it; the places of those that are to be tried again."""
        streams, members, connections, metadata = (list(column) for column in zip(*changes, strict=True))
        rows = self._all(
            "select pgbus.presence_record(%s::text[], %s::text[], %s::text[], %s::jsonb[], %s, %s)",
            *(streams, members, connections, metadata, timedelta(seconds=ttl), timedelta(seconds=grace)),
            patience=self._keeping,
        )
        return [int(place) - 1 for (place,) in rows]

    def touch_many(self, places: Sequence[tuple[str, str, str]], *, ttl: float) -> list[int]:
        """Keep each (stream, member, connection) alive; the places of those that are not there any more."""
        streams, members, connections = (list(column) for column in zip(*places, strict=True))
        arguments = (streams, members, connections, timedelta(seconds=ttl))
        statement = "select pgbus.presence_touch_many(%s::text[], %s::text[], %s::text[], %s)"
        rows = self._all(statement, *arguments, patience=self._keeping)
        return [int(place) - 1 for (place,) in rows]

    def sweep(self) -> float | None:
        """Remove what has expired, and announce who left by it; in how many seconds something is going to, None for never."""
        seconds = self._all("select pgbus.presence_sweep()", patience=self._keeping)[0][0]
        return None if seconds is None else float(seconds)
