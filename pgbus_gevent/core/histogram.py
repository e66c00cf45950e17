"""A histogram without a lock: :meth:`Histogram.observe` never yields, so only one greenlet at a time is in it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Counts observations in buckets. ``bounds`` are the upper bounds, in rising order; the last bucket has no bound."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def counts(self) -> list[int]:
        """The number of observations in each bucket, not cumulated."""
        return list(self._counts)

    @property
    def cumulative(self) -> list[tuple[str, float]]:
        """Each upper bound as text, with the number of observations at or below it."""
        found, below = [], 0
        for bound, count in zip((*map(float, self.bounds), float("inf")), self._counts, strict=True):
            below += count
            found.append(("+Inf" if bound == float("inf") else repr(bound), float(below)))
        return found
