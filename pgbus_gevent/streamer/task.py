"""A greenlet with an owner that notices its death."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import monotonic

import gevent
from gevent.greenlet import Greenlet

logger = logging.getLogger("pgbus_gevent.task")

MAX_DEATHS = 5
DEATH_WINDOW = 60.0
"""More than MAX_DEATHS in so many seconds, and the task is given up: something is broken that a restart does not mend."""

_PAUSE = 0.1  # seconds before a restart, so that a task that dies at once does not spin


class Task:
    """Runs ``target``, which is not to return, in a greenlet named ``name``; starts it again when it ends all the same.

    ``on_failure`` is called with the name when it died too often. One lifecycle: :meth:`start`, :meth:`stop`, each of which may be
    called again.
    """

    def __init__(self, name: str, target: Callable[[], None], *, on_failure: Callable[[str], None]) -> None:
        self.name = name
        self.failed = False
        self.deaths: deque[float] = deque(maxlen=MAX_DEATHS + 1)
        self._target = target
        self._on_failure = on_failure
        self._greenlet: Greenlet[..., None] | None = None
        self._stopping = False

    @property
    def running(self) -> bool:
        """Whether it runs, or is about to again."""
        return self._greenlet is not None and not self._stopping and not self.failed

    def start(self) -> None:
        """Start it; nothing happens while it runs."""
        if self._greenlet is None:
            self._stopping = self.failed = False
            self.deaths.clear()
            self._spawn()

    def _spawn(self, delay: float = 0.0) -> None:
        self._greenlet = gevent.spawn_later(delay, self._target) if delay else gevent.spawn(self._target)
        self._greenlet.name = f"pgbus-{self.name}"
        self._greenlet.link(self._ended)

    def _ended(self, greenlet: Greenlet[..., None]) -> None:
        if self._stopping or greenlet is not self._greenlet:
            return
        now = monotonic()
        self.deaths.append(now)
        cause = "was killed or returned" if greenlet.exception is None else "failed"
        if len(self.deaths) > MAX_DEATHS and now - self.deaths[0] < DEATH_WINDOW:
            self.failed = True
            logger.critical("%s %s %d times within %g s: giving up", self.name, cause, len(self.deaths), DEATH_WINDOW)
            self._on_failure(self.name)
            return
        logger.error(
            "%s %s: starting it again", self.name, cause, exc_info=greenlet.exc_info if greenlet.exception else None
        )
        self._spawn(_PAUSE)

    def stop(self, timeout: float) -> bool:
        """End it; whether it ended within ``timeout`` seconds. Must not be called by the task itself."""
        self._stopping = True
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is None:
            return True
        greenlet.kill(block=True, timeout=timeout)
        if not greenlet.dead:
            logger.error("%s did not stop within %g s", self.name, timeout)
        return bool(greenlet.dead)
