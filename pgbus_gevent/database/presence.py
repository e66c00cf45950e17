"""The statements of presence: an application's, about one member, and the streamer's, about all members of a worker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from ..messages import Member
from .patience import READ, Patience
from .pool import Pool

Change = tuple[str, str, str, str | None]
"""Stream, member, connection, and the member's metadata as JSON if it joined, or None if it left."""


class PresenceQueries:
    """Uses connections of one pool. Raises only the exceptions of :mod:`pgbus_gevent.errors`. Durations are in seconds."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._keeping = Patience(READ, waits=True)

    def _all(self, statement: str, *parameters: Any, patience: Patience | None = None) -> list[tuple[Any, ...]]:
        with self._pool.connection(patience) as connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall()

    # an application's

    def join(self, stream: str, member: str, metadata: str, connection: str, ttl: float) -> bool:
        """Add a connection of a member. Returns whether the member is new to the stream. ``metadata`` is JSON."""
        arguments = (stream, member, metadata, connection, timedelta(seconds=ttl))
        return bool(self._all("select pgbus.presence_join(%s, %s, %s::jsonb, %s, %s)", *arguments)[0][0])

    def leave(self, stream: str, member: str, connection: str) -> bool:
        """Remove a connection of a member. Returns whether that was its last one."""
        return bool(self._all("select pgbus.presence_leave(%s, %s, %s)", stream, member, connection)[0][0])

    def touch(self, stream: str, member: str, connection: str, ttl: float) -> bool:
        """Renew the lease of a connection. Returns False if it has no lease any more."""
        arguments = (stream, member, connection, timedelta(seconds=ttl))
        return bool(self._all("select pgbus.presence_touch(%s, %s, %s, %s)", *arguments)[0][0])

    def members(self, stream: str) -> list[Member]:
        """Return the members of a stream, in the order in which they joined."""
        # Reads the metadata as text, so that no caster of an application applies to it.
        statement = "select member, metadata::text, joined_at, connections from pgbus.presence_members(%s)"
        return [Member(name, json.loads(text), at, count) for name, text, at, count in self._all(statement, stream)]

    def count(self, stream: str) -> int:
        """Return the number of members of a stream."""
        return int(self._all("select pgbus.presence_count(%s)", stream)[0][0])

    # the streamer's

    def record(self, changes: Sequence[Change], *, ttl: float, grace: float) -> tuple[list[int], list[float]]:
        """Write joins and leaves, and announce the result, or let it wait for other changes.

        Returns the indexes of the changes that must be tried again, and in how many seconds to call :meth:`flush`, once for each.
        """
        streams, members, connections, metadata = (list(column) for column in zip(*changes, strict=True))
        ((again, due),) = self._all(
            "select again, due from pgbus._presence_record(%s::text[], %s::text[], %s::text[], %s::jsonb[], %s, %s)",
            *(streams, members, connections, metadata, timedelta(seconds=ttl), timedelta(seconds=grace)),
            patience=self._keeping,
        )
        return [int(place) - 1 for place in again], due

    def flush(self) -> float | None:
        """Announce what has waited long enough. Returns in how many seconds to try again, None if nothing has stayed."""
        due: float | None = self._all("select pgbus._presence_flush()", patience=self._keeping)[0][0]
        return due

    def touch_many(self, places: Sequence[tuple[str, str, str]], *, ttl: float) -> list[int]:
        """Renew the lease of each (stream, member, connection). Returns the indexes of those that have no lease any more."""
        streams, members, connections = (list(column) for column in zip(*places, strict=True))
        arguments = (streams, members, connections, timedelta(seconds=ttl))
        statement = "select pgbus.presence_touch_many(%s::text[], %s::text[], %s::text[], %s)"
        rows = self._all(statement, *arguments, patience=self._keeping)
        return [int(place) - 1 for (place,) in rows]

    def sweep(self) -> float | None:
        """Remove expired leases, and announce what waits. Returns the seconds until there is more to do, None for never."""
        seconds = self._all("select pgbus.presence_sweep()", patience=self._keeping)[0][0]
        return None if seconds is None else float(seconds)
