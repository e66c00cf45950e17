"""How many connections an owner or an address has on other workers, as far as its cap needs it.

A worker reports its counts that are near a cap to the database, which sums them. The sum comes back with the answer to a report.
Nothing here yields.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

MOST = 1000
"""The most keys in a report. The keys that are nearest to their caps come first, and of equal ones the newest."""

_MOST_OF_ALL = 20_000  # keys in the reports of all workers, so that a sum takes tens of milliseconds
_LEAST = 100  # keys in a report, however many workers there are

Name = tuple[str, str]
"""``owner`` or ``address``, and its text."""

_SHARES = 4  # a worker reports a key from this part of its even share of the cap on
_REMEMBERED = 8  # reports


class _Near(NamedTuple):
    name: Name
    connections: int
    cap: int


class Report(NamedTuple):
    """The counts of the keys that are near their caps."""

    keys: list[int]
    counts: list[int]
    caps: list[int]


class Sum(NamedTuple):
    """The database's answer to a report; times in Unix seconds.

    ``totals`` has the connections on all workers, of the keys that have half of their cap or more. ``kept`` has how many this
    worker may keep, of the keys that are above their cap.
    """

    instant: float
    summed_at: float
    totals: Mapping[int, int]
    kept: Mapping[int, int]


class FleetCounts:
    """The counts of other workers. ``secrets`` are in order, the oldest first; the newest is the key of the digests."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        self._secret = blake2b(secrets[-1].encode() if secrets else b"").digest()
        self._elsewhere: dict[int, int] = {}
        self._names: dict[int, Name] = {}  # of the keys in the last report
        self._reports: deque[tuple[float, dict[int, int]]] = deque(maxlen=_REMEMBERED)
        self._above: set[int] = set()  # the keys that were above their caps in the last sum
        self._summed_at = 0.0

    def elsewhere(self, kind: str, text: str) -> int:
        """Return how many connections an owner or an address has on other workers; 0 if it is far from its cap."""
        return self._elsewhere.get(self._key((kind, text)), 0) if self._elsewhere else 0

    def _key(self, name: Name) -> int:
        found = blake2b("\0".join(name).encode(errors="surrogatepass"), digest_size=8, key=self._secret)
        return int.from_bytes(found.digest(), "big", signed=True)

    def report(self, counts: Iterable[tuple[str, Mapping[str, int], int]], workers: int) -> Report:
        """Return the report of a worker. ``counts`` has, for each kind, the counts by their texts, and the cap.

        The fleet has ``workers`` workers.
        """
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
        return Report(list(self._names), [each.connections for each in near], [each.cap for each in near])

    def learn(self, report: Report, found: Sum) -> list[tuple[Name, int]]:
        """Take the answer to a report. Return the owners and addresses of which connections are to end, and how many to keep.

        Those are the ones that have been above their caps in two sums one after the other. After one sum, the excess may only be
        a client that has moved from one worker to another between their reports.
        """
        self._reports.append((found.instant, dict(zip(report.keys, report.counts, strict=True))))
        # What the sum knew of this worker: its last report before. Its own report is in a sum that came with the answer.
        mine: Mapping[int, int] = {}
        for instant, counts in self._reports:
            if instant <= found.summed_at:
                mine = counts
        self._elsewhere = {
            key: total - mine.get(key, 0) for key, total in found.totals.items() if total > mine.get(key, 0)
        }
        if found.summed_at == self._summed_at:
            return []
        self._summed_at = found.summed_at
        before, self._above = self._above, set(found.kept)
        return [(self._names[key], kept) for key, kept in found.kept.items() if key in before and key in self._names]

    def forget(self) -> None:
        """Forget the counts of other workers, because they are not known any more."""
        self._elsewhere.clear()
        self._reports.clear()
        self._above.clear()
