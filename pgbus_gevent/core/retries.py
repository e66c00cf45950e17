"""What everything that tries again has in common: how long to pause, and how often to tell the log."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Hashable


class Backoff:
    """Pauses in seconds between tries: ``first``, then twice as long each time, up to ``most``.

    Each is shortened at random, to ``least_share`` at the least, because many workers fail at the same moment and must not all
    come back at one.
    """

    def __init__(self, first: float, most: float, *, least_share: float = 0.5) -> None:
        self._first = first
        self._most = most
        self._least_share = least_share
        self._pause = 0.0

    def next(self) -> float:
        """How long to pause before the next try."""
        self._pause = min(self._most, max(self._first, 2 * self._pause))
        return self._pause * random.uniform(self._least_share, 1.0)

    def reset(self) -> None:
        """A try has succeeded: the next pause is the first again."""
        self._pause = 0.0


class Trouble:
    """Something that fails for a while. The log is told when that begins, and when it is over if ``over`` is given."""

    def __init__(self, logger: logging.Logger, message: str, *, over: str = "", level: int = logging.WARNING) -> None:
        self._logger = logger
        self._message = message
        self._over = over
        self._level = level
        self.lasts = False
        """Whether it fails now."""

    def begins(self, *arguments: object) -> None:
        """It has failed; ``arguments`` fill in the message. Nothing is said while it goes on failing."""
        if not self.lasts:
            self._logger.log(self._level, self._message, *arguments)
        self.lasts = True

    def ends(self) -> None:
        """It works."""
        if self.lasts and self._over:
            self._logger.info(self._over)
        self.lasts = False


class Seldom:
    """Decides whether to tell the log of a fault: of each kind once in ``seconds``, or once for good without a ``clock``.

    At most ``most`` kinds are remembered; of others nothing is told, because there may be as many as messages.
    """

    def __init__(self, clock: Callable[[], float] | None = None, *, seconds: float = 60.0, most: int = 1000) -> None:
        self._clock = clock
        self._seconds = seconds
        self._most = most
        self._told: dict[Hashable, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._told)

    def turn(self, kind: Hashable) -> int | None:
        """How often a fault of this kind went untold since the last time, if it is to be told now; else None."""
        now = 0.0 if self._clock is None else self._clock()
        last, untold = self._told.get(kind, (None, 0))
        if last is None and len(self._told) >= self._most:
            self._forget(now)
            if len(self._told) >= self._most:
                return None
        if last is not None and (self._clock is None or now - last < self._seconds):
            self._told[kind] = (last, untold + 1)
            return None
        self._told[kind] = (now, 0)
        return untold

    def forget(self, kind: Hashable) -> None:
        """The next fault of this kind is told."""
        self._told.pop(kind, None)

    def _forget(self, now: float) -> None:
        if self._clock is not None:
            self._told = {kind: told for kind, told in self._told.items() if now - told[0] < self._seconds}
