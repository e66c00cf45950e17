"""How many connections an owner or an address has on other workers, as far as its cap needs it.

A worker reports its counts that are near a cap to the database, or to Redis, and the reports of all workers are summed. The sum
comes back with the answer to a report. Nothing here yields.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

from .work import Flag

MOST = 1000
"""The most keys in a report. The keys that are nearest to their caps come first, and of equal ones the newest."""

_MOST_OF_ALL = 20_000  # keys in the reports of all workers, so that a sum takes tens of milliseconds
_LEAST = 100  # keys in a report, however many workers there are

Name = tuple[str, str]
"""``owner`` or ``address``, and its text."""

_SHARES = 4  # a worker reports a key from this part of its even share of the cap on
_REMEMBERED = 8  # reports
_FEW = 4  # workers; a fleet may have grown to so many without this worker's knowledge
_SUMS = 2  # sums after a change until it is settled: ends need two, and other reports may have been under way during the first


class _Near(NamedTuple):
    name: Name
    connections: int
    cap: int


class Report(NamedTuple):
    """The counts of the keys that are near their caps. ``grew`` says that one of them has grown since the last report."""

    keys: list[int]
    counts: list[int]
    caps: list[int]
    grew: bool = False


class Sum(NamedTuple):
    """The answer to a report; times in Unix seconds, by the clock of the database or of Redis.

    ``totals`` has the connections on all workers, of the keys that have half of their cap or more. ``kept`` has how many this
    worker may keep, of the keys that are above their cap. ``partial``: there may be workers that have not reported
    to this place yet.
    """

    instant: float
    summed_at: float
    totals: Mapping[int, int]
    kept: Mapping[int, int]
    partial: bool = False


class FleetCounts:
    """The counts of other workers. ``secrets`` are in order, the oldest first; the newest is the key of the digests.

    ``flag``, if there is one, is set when the next report should not wait.
    """

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        self._secret = blake2b(secrets[-1].encode() if secrets else b"").digest()
        self._elsewhere: dict[int, int] = {}
        # What it was when the sums began to be partial; None if they are not.
        self._before: dict[int, int] | None = None
        self._names: dict[int, Name] = {}  # of the keys in the last report
        self._reports: deque[tuple[float, dict[int, int]]] = deque(maxlen=_REMEMBERED)
        self._above: set[int] = set()  # the keys that were above their caps in the last sum
        self._summed_at = 0.0
        self.flag: Flag | None = None
        self._workers = 1
        self._grew = False
        self._changed = False  # since the last report
        self._awaited = 0  # how many sums are awaited
        self._told_at: float | None = None  # the instant of the first report with the last change

    def elsewhere(self, kind: str, text: str) -> int:
        """Return how many connections an owner or an address has on other workers; 0 if it is far from its cap."""
        return self._elsewhere.get(self._key((kind, text)), 0) if self._elsewhere else 0

    def _key(self, name: Name) -> int:
        found = blake2b("\0".join(name).encode(errors="surrogatepass"), digest_size=8, key=self._secret)
        return int.from_bytes(found.digest(), "big", signed=True)

    def changed(self, name: Name, connections: int, cap: int, *, grew: bool) -> None:
        """Note that an owner or an address has one connection more here, or one less.

        ``connections`` is the larger one of the two numbers. The other workers should know at once if it is this worker's even
        share of the cap, or if the connections on all workers are three quarters of the cap.
        """
        if cap and (
            max(self._workers, _FEW) * connections >= cap or 4 * (connections + self.elsewhere(*name)) >= 3 * cap
        ):
            self._changed = True
            self._grew |= grew
            self._told_at = None
            self._hurry(_SUMS)

    def ask(self) -> None:
        """Have this worker ask at once what the others have, because it refuses a connection for their sake."""
        self._hurry(1)

    def _hurry(self, sums: int) -> None:
        self._awaited = max(sums, self._awaited)
        if self.flag is not None:
            self.flag.set()

    @property
    def settled(self) -> bool:
        """Whether the next report may wait: two sums have the last change, and this worker has nothing above a cap."""
        return not self._awaited

    def report(self, counts: Iterable[tuple[str, Mapping[str, int], int]], workers: int) -> Report:
        """Return the report of a worker. ``counts`` has, for each kind, the counts by their texts, and the cap.

        The fleet has ``workers`` workers.
        """
        self._workers = workers
        self._changed = False
        grew, self._grew = self._grew, False
        if self.flag is not None:
            self.flag.clear()
        near = [
            _Near((kind, text), count, cap)
            for kind, found, cap in counts
            if cap
            for text, count in reversed([*found.items()])  # the newest first
            if count >= max(1, cap // (_SHARES * workers))
        ]
        most = max(_LEAST, min(MOST, _MOST_OF_ALL // workers))
        if len(near) > most:
            near.sort(key=lambda each: (each.connections + self.elsewhere(*each.name)) / each.cap, reverse=True)
            del near[most:]
        self._names = {self._key(each.name): each.name for each in near}
        return Report(list(self._names), [each.connections for each in near], [each.cap for each in near], grew)

    def learn(self, report: Report, found: Sum) -> dict[Name, int]:
        """Take the answer to a report. Return the owners and addresses of which connections are to end, and how many to keep.

        Those are the ones that have been above their caps in two sums one after the other. After one sum, the excess may only be
        a client that has moved from one worker to another between their reports.
        """
        self._reports.append((found.instant, dict(zip(report.keys, report.counts, strict=True))))
        # What the sum knew of this worker: its last report before. Its own report is in a sum that came with the answer.
        # If reports follow one another quickly and a sum is late, that one may be forgotten; then the oldest one is the nearest.
        mine: Mapping[int, int] = self._reports[0][1] if len(self._reports) == _REMEMBERED else {}
        for instant, counts in self._reports:
            if instant <= found.summed_at:
                mine = counts
        elsewhere = {key: total - mine.get(key, 0) for key, total in found.totals.items() if total > mine.get(key, 0)}
        self._before = (self._elsewhere if self._before is None else self._before) if found.partial else None
        # What was known before counts too, or each worker would let in as many as the cap until all have reported.
        for key, count in (self._before or {}).items():
            elsewhere[key] = max(count, elsewhere.get(key, 0))
        self._elsewhere = elsewhere
        self._await(found)
        if found.summed_at == self._summed_at:
            return {}
        self._summed_at = found.summed_at
        before, self._above = self._above, set(found.kept)
        return {self._names[key]: kept for key, kept in found.kept.items() if key in before and key in self._names}

    def _await(self, found: Sum) -> None:
        if self._changed:
            return  # something has changed while the statement ran
        if self._told_at is None or found.instant < self._told_at:  # the database's clock may be set back
            self._told_at = found.instant
        if self._summed_at != found.summed_at >= self._told_at:
            self._awaited = max(0, self._awaited - 1)
        if any(key in self._names for key in found.kept):
            self._awaited = max(1, self._awaited)

    def forget(self) -> None:
        """Forget the counts of other workers, because they are not known any more."""
        self._elsewhere = {}
        self._before = None
        self._reports.clear()
        self._above.clear()
        self._awaited = 0
