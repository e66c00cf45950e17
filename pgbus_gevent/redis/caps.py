"""Caps over all workers through Redis: each worker reports there, and now and then one of them sums the reports.

The reports are fields of one hash. The sum is a text beside it, which every worker reads. The time is that of the server of Redis.

A worker that cannot use Redis reports to PostgreSQL. The worker that sums asks whether there are such workers. While there are,
all workers report to PostgreSQL too, and go by the sum there, so that a cap holds over all of them.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from time import monotonic
from typing import NamedTuple, Protocol

import gevent

from ..core.cap_sums import COUNTED, FRESH, Reported, sum_reports
from ..core.fleet_counts import Report, Sum
from ..core.retries import Trouble
from ..errors import RedisUnavailable
from . import hashes
from .keys import Keys
from .links import Pipes
from .session import RedisSession, Wakes
from .urls import RedisURL

logger = logging.getLogger("pgbus_gevent.caps")

TIMEOUT = 1.0
"""Seconds for an answer of Redis. After that, PostgreSQL is asked."""

REST = 5.0
"""The longest time in seconds for which Redis is not asked again after a failure."""

LONGEST_REST = 60.0
"""The same if Redis loses the reports again and again."""

LASTING = 180.0
"""Seconds without a loss of the reports after which the next one counts as the first."""

USABLE = 6.0
"""Seconds for which a sum is of use to a worker that cannot have a newer one, because another worker is summing."""

TURN_MS = 1000
"""Milliseconds after which another worker may sum if the one whose turn it was has not finished."""

AHEAD = 1.0
"""Seconds by which a report may be newer than the clock. Without this bound, a repeated one would count as long as the clock was
set back."""

KEPT = 60
"""Seconds for which reports and the sum are kept in Redis. Older reports are removed."""

SIZE = 1024 * 1024
"""The most bytes of the sum that are read. What is longer is not of a worker; a sum of a thousand keys has about 100,000."""

_SLICE = 2000  # keys that are read before other greenlets run


class Queries(Protocol):
    """The statements; :class:`pgbus_gevent.database.caps.CapQueries` has them."""

    def report(self, worker: str, report: Report, *, pause: float) -> Sum: ...
    def leave(self, worker: str) -> None: ...
    def others(self, workers: Iterable[str]) -> bool: ...


class RedisSum(NamedTuple):
    """A sum of the reports in Redis. ``kept`` is by worker and key. ``others``: other workers report to PostgreSQL only."""

    summed_at: float
    totals: Mapping[int, int]
    kept: Mapping[str, Mapping[int, int]]
    others: bool

    def text(self) -> str:
        """Return the sum as JSON. Keys are numbers, which a JSON object cannot have as names."""
        kept = [[worker, list(parts), list(parts.values())] for worker, parts in self.kept.items()]
        return json.dumps([self.summed_at, list(self.totals), list(self.totals.values()), kept, self.others])

    @classmethod
    def parse(cls, text: str) -> RedisSum:
        """Return the sum that a text is."""
        summed_at, keys, totals, kept, others = json.loads(text)
        parts = {worker: dict(zip(its_keys, counts, strict=True)) for worker, its_keys, counts in kept}
        return cls(summed_at, dict(zip(keys, totals, strict=True)), parts, others)


class RedisCaps:
    """The reports of caps as the worker's :class:`FleetCaps` needs them; its greenlet alone uses this."""

    def __init__(
        self, url: RedisURL, database: Queries, wakes: Wakes, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._url = url
        self._database = database
        self._wakes = wakes
        self._clock = clock
        self._idle: tuple[RedisSession, Pipes] | None = None
        self._rest_until = -inf
        self._told = -inf  # when this worker last reported to the database
        self._number = 0
        self._grew = False
        self._grown_at: float | None = None
        self._newest = -inf
        self._reported: tuple[RedisSession, float] | None = None  # when this worker last reported in Redis
        self._rest = REST
        self._losses = 0
        self._lost_at = -inf
        self._doubted = False  # whether no report has lasted since some were lost
        self._on_redis = False  # whether the last sum was of Redis
        self._partial = False
        self._partial_until = -inf
        self._trouble = Trouble(
            logger,
            "the counts for caps go to PostgreSQL until Redis is of use again: %s",
            over="the counts for caps go through Redis again",
        )

    # what FleetCaps calls

    def report(self, worker: str, report: Report, *, pause: float) -> Sum:
        """Replace the report of a worker. Return the last sum of all reports, which is at most ``pause`` seconds old.

        Raises :class:`DatabaseError` if neither Redis nor the database can be asked.
        """
        self._grew |= report.grew
        found = self._through_redis(worker, report, pause)
        if found is not None and not found[1].others:
            instant, last = found
            self._on_redis = True
            return self._marked(Sum(instant, last.summed_at, last.totals, last.kept.get(worker, {})))
        if self._on_redis and not self._partial:
            self._partial_until = self._clock() + COUNTED
        self._on_redis = False
        self._told = self._clock()
        return self._marked(self._database.report(worker, report, pause=pause))

    def _marked(self, found: Sum) -> Sum:
        """Mark a sum as partial if this worker has lately changed to the database.

        The other workers do so one after the other. There is a sum that is not partial between two changes that count, so that
        no connection that is gone counts for more than that time.
        """
        self._partial = self._clock() < self._partial_until
        return found._replace(partial=self._partial)

    def leave(self, worker: str) -> None:
        """Remove the report of a worker that ends."""
        # The listener may have ended already, and with it the session. Its names and connections are good for this.
        session = self._session() if self._idle is None else self._idle[0]
        if session is not None:
            with self._failing(), self._pipes(session) as pipes:
                name = session.keys.cap_reports
                pipes.ask(name, ("HDEL", name, worker))
        if self._clock() - self._told < COUNTED:
            self._database.leave(worker)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        if self._idle is not None:
            self._idle[1].close()
            self._idle = None

    # Redis

    def _session(self) -> RedisSession | None:
        """Return the session with Redis if it is of use now."""
        session = self._wakes.session
        return session if session is not None and session.fresh and self._clock() >= self._rest_until else None

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Let Redis rest if it fails."""
        try:
            yield
        except RedisUnavailable as error:
            self._rest_until = self._clock() + self._rest * random.uniform(0.5, 1.0)
            self._rest, self._reported = REST, None
            self._trouble.begins(error)
        else:
            self._trouble.ends()

    @contextmanager
    def _pipes(self, session: RedisSession) -> Iterator[Pipes]:
        """Give connections for the time of a block. They are used again in the same session, unless the block fails.

        With a new session, the keys may be on other servers.
        """
        idle, self._idle = self._idle, None
        if idle is not None and idle[0] is not session:
            idle[1].close()
            idle = None
        pipes = Pipes(self._url, timeout=TIMEOUT) if idle is None else idle[1]
        try:
            yield pipes
        except BaseException:  # also if the greenlet is killed: an answer may still be under way
            pipes.close()
            raise
        self._idle = session, pipes

    def _through_redis(self, worker: str, report: Report, pause: float) -> tuple[float, RedisSum] | None:
        """Report in Redis. Return an instant at which the report was there, and the last sum. None if Redis is of no use."""
        session = self._session()
        if session is None:
            return None
        with self._failing(), self._pipes(session) as pipes:
            keys, name = session.keys, session.keys.cap_reports
            now = _seconds(pipes.ask(name, ("TIME",))[0])
            grown_at = now if self._grew or self._grown_at is None else self._grown_at
            self._number += 1
            text = json.dumps([now, grown_at, report.keys, report.counts, report.caps])
            sealed = keys.seal(session.reign, self._number, text, place=f"{name} {worker}")
            is_new, _, time, last = pipes.ask(
                name,
                ("HSET", name, worker, sealed),
                ("EXPIRE", name, KEPT),
                ("TIME",),
                ("GETRANGE", keys.cap_sum, 0, SIZE),
            )
            self._grew, self._grown_at = False, grown_at
            instant = _seconds(time)
            if self._reports_last(session, is_new=bool(is_new)):
                return instant, self._last(pipes, session, worker, last, instant, pause)
        return None

    def _reports_last(self, session: RedisSession, *, is_new: bool) -> bool:
        """Note that this worker has reported, and return whether Redis keeps reports. ``is_new``: Redis had none of it.

        Raises :class:`RedisUnavailable` if there should have been one. Then those of the other workers may be lost as well, and
        a sum would not have them. After that, a report has to last until the next one before a sum is believed again.
        """
        before, now = self._reported, self._clock()
        self._reported = session, now
        if is_new and before is not None and before[0] is session and now - before[1] < KEPT / 2:
            self._losses = self._losses + 1 if now - self._lost_at < LASTING else 1
            self._lost_at, self._doubted = now, True
            self._rest = min(REST * 2 ** (self._losses - 1), LONGEST_REST)
            raise RedisUnavailable(
                "Redis has lost the reports: it was flushed, evicts keys, or another program removed them"
            )
        self._doubted = self._doubted and is_new
        return not self._doubted

    def _last(
        self, pipes: Pipes, session: RedisSession, worker: str, data: bytes, instant: float, pause: float
    ) -> RedisSum:
        """Return the last sum, which ``data`` is, or a new one if it is older than ``pause`` seconds."""
        keys = session.keys
        text = _opened(keys, keys.cap_sum, data)
        last = RedisSum.parse(text) if text is not None else None
        # One that is older than another that this worker has seen was repeated by somebody, or the clock was set back.
        if last is not None and (last.summed_at < self._newest or abs(instant - last.summed_at) >= USABLE):
            last = None
        if last is None or abs(instant - last.summed_at) >= pause:
            turn = ("SET", keys.cap_turn, worker, "NX", "PX", TURN_MS)
            if pipes.ask(keys.cap_turn, turn)[0] is not None or last is None:
                last = self._sum(pipes, session, worker)
        self._newest = last.summed_at
        return last

    def _sum(self, pipes: Pipes, session: RedisSession, worker: str) -> RedisSum:
        """Sum the reports in Redis, and write the sum."""
        keys, name = session.keys, session.keys.cap_reports
        found, (time,) = hashes.read(pipes, name, ("TIME",))  # what was there at this time is among them
        if worker.encode() not in found[::2]:
            self._reports_last(session, is_new=True)  # lost since this worker reported, and with it those of the others
        now = _seconds(time)
        fresh: list[str] = []
        old: list[bytes] = []
        sums = sum_reports(_reports(keys, found, now, fresh, old), now)
        last = RedisSum(now, sums.totals, sums.kept, self._database.others(fresh))
        self._number += 1
        sealed = keys.seal(session.reign, self._number, last.text(), place=keys.cap_sum)
        pipes.ask(name, ("SET", keys.cap_sum, sealed, "EX", KEPT), ("DEL", keys.cap_turn), *hashes.removal(name, old))
        return last


def _reports(keys: Keys, found: Sequence[bytes], now: float, fresh: list[str], old: list[bytes]) -> Iterator[Reported]:
    """Yield the reports that a worker of this database made lately; ``found`` has names and reports by turns.

    ``fresh`` gets the workers with a report of the last seconds, and ``old`` the names of the reports to remove. Other greenlets
    run from time to time.
    """
    size = 0
    for name, data in zip(found[::2], found[1::2], strict=True):
        worker = name.decode(errors="replace")
        text = _opened(keys, f"{keys.cap_reports} {worker}", data)
        if text is None:
            old.append(name)
            continue
        seen_at, grown_at, *columns = json.loads(text)
        if abs(now - seen_at) > KEPT:
            old.append(name)
        elif seen_at <= now + AHEAD:
            if seen_at > now - FRESH:
                fresh.append(worker)
            yield Reported(worker, seen_at, grown_at, Report(*columns))
        size += 1 + len(columns[0])
        if size >= _SLICE:
            size = 0
            gevent.sleep(0)


def _opened(keys: Keys, place: str, data: bytes) -> str | None:
    """Return what a worker of this database has sealed for a place, or None."""
    sealed = keys.open(data, place=place)
    return sealed.payload if sealed is not None else None


def _seconds(time: Sequence[bytes]) -> float:
    """Return Redis's answer to TIME, in Unix seconds."""
    return int(time[0]) + int(time[1]) / 1e6
