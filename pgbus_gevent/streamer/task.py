"""A greenlet that is started again when it ends."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import monotonic

import gevent
from gevent.greenlet import Greenlet

from . import forks

logger = logging.getLogger("pgbus_gevent.task")

MAX_DEATHS = 5
"""If a task dies more often than this within :data:`DEATH_WINDOW`, it is given up, because a restart does not help."""

DEATH_WINDOW = 60.0
"""Seconds."""

_AGAIN = 0.5  # seconds until a task that is to stop is killed once more
_PAUSE = 0.1  # seconds before a restart, so that a task that dies at once does not use all of the CPU


class Task:
    """Runs ``target`` in a greenlet named after ``name``, and starts it again if it returns, raises or is killed.

    ``on_failure`` is called with the name when the task has died too often and is given up. :meth:`start` and :meth:`stop` may
    each be called again.
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
        """Whether the task runs, or is about to be started again."""
        return self._greenlet is not None and not self._stopping and not self.failed

    def start(self) -> None:
        """Start the task, unless it runs already."""
        if self._greenlet is None:
            self._stopping = self.failed = False
            self.deaths.clear()
            forks.running.add(self)
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
        """End the task. It yields, for at most ``timeout`` seconds. Return whether the task has ended.

        The task must not call this itself.
        """
        self._stopping = True
        forks.running.discard(self)
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is None:
            return True
        # Several times, because an application's code that waited in it may have caught the first exception.
        for _ in range(times := max(1, round(timeout / _AGAIN))):
            greenlet.kill(block=True, timeout=timeout / times)
        if not greenlet.dead:
            logger.error("%s did not stop within %g s", self.name, timeout)
        return bool(greenlet.dead)
