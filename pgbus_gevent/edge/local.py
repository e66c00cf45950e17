"""What an edge keeps itself, because it has no database to share it through: its row of the roll, and wrong tokens."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic, time
from typing import Any, NamedTuple, NoReturn

from ..errors import DatabaseUnavailable
from .reads import OriginReads


class _Worker(NamedTuple):
    """This worker, with the fields of :class:`pgbus_gevent.database.fleet.Worker`."""

    id: str
    host: str
    pid: int
    age: float
    silent: float
    facts: dict[str, Any]


class LocalRoll:
    """A roll of one worker. The others, and those of the origin, keep their own."""

    def __init__(self, reads: OriginReads) -> None:
        self._reads = reads
        self._row: tuple[str, str, int, float, dict[str, Any], float] | None = None

    def beat(
        self, id: str, host: str, pid: int, started_at: float, facts: Mapping[str, Any]
    ) -> tuple[float, float, int]:
        """Keep the row. Return the clock of the origin's database in Unix seconds, no pace, and one worker."""
        self._row = id, host, pid, started_at, dict(facts), time()
        return self._reads.clock(), 0.0, 1

    def leave(self, id: str) -> None:
        """Forget the row."""
        self._row = None

    def with_samples(self, host: str | None = None, service: str | None = None) -> list[_Worker]:
        """Return this worker, whatever host and service are asked for: an edge knows no others."""
        return self.workers()

    def workers(self) -> list[_Worker]:
        """Return this worker."""
        if self._row is None:
            return []
        id, host, pid, started_at, facts, written_at = self._row
        now = time()
        return [_Worker(id, host, pid, now - started_at, now - written_at, facts)]

    def latest(self, stream: str, limit: int, letters: int) -> NoReturn:
        """Raise :class:`DatabaseUnavailable`, because only the origin keeps the messages of a stream."""
        raise DatabaseUnavailable("an edge keeps no messages of a stream: look at the origin's console")

    def retained(self, stream: str) -> NoReturn:
        """Raise :class:`DatabaseUnavailable`, because only the origin could count the messages of a stream."""
        raise DatabaseUnavailable(
            "an edge does not count the stored messages of a stream: look at the origin's console"
        )


SESSIONS = 1000
"""The most logins that a worker of an edge keeps."""


class LocalOperators:
    """In place of the table of logins. Each worker of an edge goes by the logins and the wrong tokens that it knows itself."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, tuple[bytes, float]] = {}  # with the hash of the token, and when each was opened

    def open_session(self, id: bytes, token: bytes, lifetime: float) -> None:
        """Keep a session."""
        self._sessions[id] = token, monotonic()
        if len(self._sessions) > SESSIONS:
            del self._sessions[next(iter(self._sessions))]

    def session_is_open(self, id: bytes, token: bytes, lifetime: float) -> bool:
        """Whether this worker has opened the session, with that token and less than ``lifetime`` seconds ago."""
        found, opened_at = self._sessions.get(id, (None, 0.0))
        return found == token and monotonic() - opened_at < lifetime

    def end_session(self, id: bytes) -> None:
        """Forget a session."""
        self._sessions.pop(id, None)

    def note_guess(self, door: str, address: str, guess: int, window: float) -> None:
        """Return None, because only the caller counts."""
