"""The roll of the workers through Redis: workers report there, and the steward writes all reports in one statement."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from time import monotonic, time
from typing import Any, NamedTuple, Protocol

from ..core.retries import Trouble
from ..errors import RedisRefused, RedisUnavailable
from . import hashes
from .links import TIMEOUT, Command, Pipes
from .session import RedisSession, Wakes
from .urls import RedisURL

logger = logging.getLogger("pgbus_gevent.roll")

COLLECT = 5.0
"""Seconds between two statements of the steward."""

AT_ONCE = 200
"""The most reports in one statement, because each may have many kilobytes."""

BELATED = 3
"""How many reports of a worker may be without an answer. Then it reports to the database itself."""

TRUSTED = 12.0
"""Seconds after a report to the database for which a report in Redis counts even without an answer, because the steward may not
have been there to take one yet. A worker expires after 20 s of silence."""

SIZE = 10_000
"""The most bytes of an answer that is read. What is longer is not of the steward."""

KEPT = 60
"""Seconds for which reports and answers are kept in Redis."""

FORGOTTEN = 30.0
"""Seconds after which a report that is not renewed is removed."""


class Fleet(Protocol):
    """The statements; :class:`pgbus_gevent.database.fleet.Fleet` has them."""

    def beat(
        self, id: str, host: str, pid: int, started_at: float, facts: Mapping[str, Any]
    ) -> tuple[float, float, int]: ...
    def leave(self, id: str) -> None: ...
    def beat_many(self, beats: Mapping[str, Mapping[str, Any]]) -> tuple[set[str], float, int]: ...


class Report(NamedTuple):
    """A report: its number, its text, and when it was first seen, in monotonic seconds."""

    number: int
    facts: Mapping[str, Any]
    seen: float


class RedisRoll:
    """The roll as the worker's roll call needs it. A worker's first report goes to the database, where it gets its row.

    Later ones go to Redis, if the steward has answered one of the last. Without answers, they go to the database again.
    """

    def __init__(
        self,
        url: RedisURL,
        fleet: Fleet,
        wakes: Wakes,
        *,
        clock: Callable[[], float] = monotonic,
        wall_clock: Callable[[], float] = time,
    ) -> None:
        self._url = url
        self._fleet = fleet
        self._wakes = wakes
        self._clock = clock
        self._wall_clock = wall_clock
        self._number = 0
        self._offset = 0.0
        self._last: tuple[float, int] | None = None
        self._told = 0.0
        self._seen: dict[str, Report] = {}
        self._refusals = Trouble(logger, "this worker reports to PostgreSQL: %s")

    # a worker

    def beat(
        self, id: str, host: str, pid: int, started_at: float, facts: Mapping[str, Any]
    ) -> tuple[float, float, int]:
        """Report that a worker lives. Return the database's time, the pace of the doorbell and the number of workers."""
        answer = self._report(id, facts)
        if answer is not None:
            return self._wall_clock() + self._offset, *answer
        began = self._wall_clock()
        now, pace, workers = self._fleet.beat(id, host, pid, started_at, facts)
        self._offset = now - (began + self._wall_clock()) / 2
        self._last, self._told = (pace, workers), self._clock()
        return now, pace, workers

    def _report(self, id: str, facts: Mapping[str, Any]) -> tuple[float, int] | None:
        """Report in Redis. Return the pace and the number of workers if the report counts."""
        session = self._wakes.session
        if session is None or not session.fresh:
            return None
        self._number += 1
        keys = session.keys
        report = keys.seal(session.reign, self._number, json.dumps([id, dict(facts)]), place=keys.roll)
        pipes = None
        try:
            pipes = Pipes(self._url, timeout=TIMEOUT)
            *_, size = pipes.ask(
                keys.roll,
                ("HSET", keys.roll, id, report),
                ("EXPIRE", keys.roll, KEPT),
                ("HSTRLEN", keys.answers, id),
            )
            found = pipes.ask(keys.answers, ("HGET", keys.answers, id))[0] if 0 < size <= SIZE else None
        except RedisUnavailable as error:
            if isinstance(error, RedisRefused):
                self._refusals.begins(error)
            return None
        finally:
            if pipes is not None:
                pipes.close()
        self._refusals.ends()
        sealed = keys.open(found, place=keys.answers) if found is not None else None
        if sealed is None:
            return self._last if self._clock() - self._told < TRUSTED else None
        whose, pace, workers = json.loads(sealed.payload)
        is_recent = whose == id and self._number - sealed.number <= BELATED
        return (float(pace), int(workers)) if is_recent else None

    def leave(self, id: str) -> None:
        """Take a worker off the roll. Its report in Redis is not renewed, and so is removed."""
        self._fleet.leave(id)

    # the steward

    def collect(self) -> None:
        """Write the reports of all workers to the database: a duty of the steward."""
        session = self._wakes.session
        if session is None or not session.fresh:
            return
        keys = session.keys
        pipes = Pipes(self._url)
        try:
            found, _ = hashes.read(pipes, keys.roll)
            alive, gone = self._sort(session, dict(zip(found[::2], found[1::2], strict=True)))
            ids = list(alive)
            for some in (ids[n : n + AT_ONCE] for n in range(0, len(ids), AT_ONCE)):
                known, pace, workers = self._fleet.beat_many({id: alive[id].facts for id in some})
                commands: list[tuple[str, Command]] = []
                for id in known:
                    text = json.dumps([id, pace, workers])
                    answer = keys.seal(session.reign, alive[id].number, text, place=keys.answers)
                    commands.append((keys.answers, ("HSET", keys.answers, id, answer)))
                pipes.run([*commands, (keys.answers, ("EXPIRE", keys.answers, KEPT))])
            for key in (keys.roll, keys.answers):
                pipes.ask(key, *hashes.removal(key, gone))
        finally:
            pipes.close()

    def _sort(self, session: RedisSession, found: Mapping[bytes, bytes]) -> tuple[dict[str, Report], list[bytes]]:
        """Return the reports that are new since the last time, and the names of the fields to remove.

        Those are the workers whose report is old, and what no worker has written.
        """
        now, seen, new = self._clock(), self._seen, {}
        self._seen = {}
        gone: list[bytes] = []
        for name, data in found.items():
            sealed = session.keys.open(data, place=session.keys.roll)
            id = name.decode(errors="replace")
            if sealed is None:
                gone.append(name)
                continue
            last = seen.get(id)
            if last is None or last.number != sealed.number:
                whose, facts = json.loads(sealed.payload)
                if whose != id:
                    gone.append(name)
                    continue
                last = new[id] = Report(sealed.number, facts, now)
            self._seen[id] = last
            if now - last.seen > FORGOTTEN:
                gone.append(name)
        return new, gone
