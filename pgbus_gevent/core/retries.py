"""Pauses between tries, and limits on how often a fault is logged."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Hashable

from ..errors import RedisRefused, is_known


class Backoff:
    """Pauses between tries, in seconds: ``first``, then twice as long each time, up to ``most``.

    Each pause is multiplied by a random factor from ``least_share`` to 1, because many workers fail at the same moment and must
    not try again at the same moment.
    """

    def __init__(self, first: float, most: float, *, least_share: float = 0.5) -> None:
        self._first = first
        self._most = most
        self._least_share = least_share
        self._pause = 0.0

    def next(self) -> float:
        """Return the seconds to pause before the next try."""
        self._pause = min(self._most, max(self._first, 2 * self._pause))
        return self._pause * random.uniform(self._least_share, 1.0)

    def reset(self) -> None:
        """Start again with the first pause, because a try has succeeded."""
        self._pause = 0.0


class Trouble:
    """A fault that lasts for a while. It is logged once when it begins, and when it ends if the text ``over`` is given.

    An error that the pulse logs, because the origin refuses all that this edge asks, is not logged here. A refusal of Redis is
    logged as an error, because a person has to correct something, and once more if it becomes one of another kind.
    """

    def __init__(self, logger: logging.Logger, message: str, *, over: str = "", level: int = logging.WARNING) -> None:
        self._logger = logger
        self._message = message
        self._over = over
        self._level = level
        self.lasts = False
        """Whether the fault lasts now."""
        self._logged = False
        self._refusal = ""  # the kind of the refusal that was logged

    def begins(self, *arguments: object) -> None:
        """Log the fault, with ``arguments`` for the message, unless it has been logged and has not ended since."""
        refusal = next((each.kind for each in arguments if isinstance(each, RedisRefused)), self._refusal)
        if (not self._logged or refusal != self._refusal) and not any(map(is_known, arguments)):
            self._logger.log(logging.ERROR if refusal else self._level, self._message, *arguments)
            self._logged, self._refusal = True, refusal
        self.lasts = True

    def ends(self) -> None:
        """Note that the fault is over."""
        if self._logged and self._over:
            self._logger.info(self._over)
        self.lasts = self._logged = False
        self._refusal = ""


class Seldom:
    """Decides whether to log a fault: each kind once in ``seconds``, or only once if there is no ``clock``.

    ``clock`` returns monotonic seconds. At most ``most`` kinds are remembered. Other kinds are not logged, because there may be
    as many kinds as messages.
    """

    def __init__(self, clock: Callable[[], float] | None = None, *, seconds: float = 60.0, most: int = 1000) -> None:
        self._clock = clock
        self._seconds = seconds
        self._most = most
        self._logged: dict[Hashable, tuple[float, int]] = {}  # when each was logged, and how often it was not since

    def __len__(self) -> int:
        return len(self._logged)

    def due(self, kind: Hashable) -> int | None:
        """Return None if a fault of this kind is not to be logged now, else how many were not logged since the last one."""
        now = 0.0 if self._clock is None else self._clock()
        last, unlogged = self._logged.get(kind, (None, 0))
        if last is None and len(self._logged) >= self._most:
            self._forget(now)
            if len(self._logged) >= self._most:
                return None
        if last is not None and (self._clock is None or now - last < self._seconds):
            self._logged[kind] = (last, unlogged + 1)
            return None
        self._logged[kind] = (now, 0)
        return unlogged

    def forget(self, kind: Hashable) -> None:
        """Have the next fault of this kind logged."""
        self._logged.pop(kind, None)

    def _forget(self, now: float) -> None:
        if self._clock is not None:
            self._logged = {kind: entry for kind, entry in self._logged.items() if now - entry[0] < self._seconds}
