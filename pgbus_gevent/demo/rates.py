"""Bounds on what visitors do, such as to publish, for each address and for all together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from ..streamer.limits import network_of

REMEMBERED = 1000
"""The most addresses that are remembered. Of one that is forgotten, the count starts anew."""


class Pace(NamedTuple):
    """So many at once, and so many per second in the long run."""

    burst: int
    per_second: float


EACH = Pace(20, 5.0)
"""The pace of one address."""
ALL = Pace(100, 50.0)
"""The pace of all addresses together."""


class _Bucket:
    def __init__(self, pace: Pace, now: float) -> None:
        self._pace = pace
        self._left = float(pace.burst)
        self._at = now

    def fill(self, now: float) -> bool:
        """Fill up what time has brought. Returns whether there is room for one more."""
        self._left = min(self._pace.burst, self._left + (now - self._at) * self._pace.per_second)
        self._at = now
        return self._left >= 1

    def take(self) -> None:
        self._left -= 1


class Rates:
    """Counts one kind of request of a process, such as messages. With several workers, each has its own count."""

    def __init__(self, each: Pace = EACH, all: Pace = ALL, clock: Callable[[], float] = monotonic) -> None:
        self.each = each
        self._clock = clock
        self._all = _Bucket(all, clock())
        self._sources: OrderedDict[str, _Bucket] = OrderedDict()

    def admit(self, address: str) -> bool:
        """Whether one more from this address is allowed now. If so, it is counted."""
        now = self._clock()
        name = network_of(address)
        source = self._sources.pop(name, None) or _Bucket(self.each, now)
        self._sources[name] = source  # as the newest
        if len(self._sources) > REMEMBERED:
            self._sources.popitem(last=False)
        if not (source.fill(now) & self._all.fill(now)):
            return False
        source.take()
        self._all.take()
        return True
