"""One attempt at a time to start something. All greenlets that wait for it get its outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Generic, TypeVar

import gevent
from gevent.event import Event
from gevent.lock import RLock

from ..errors import PgbusError

logger = logging.getLogger("pgbus_gevent.streamer")

PAUSE = 1.0
"""Seconds after a failed attempt in which requests do not cause another one, because it would fail too."""

_T = TypeVar("_T")


class Shared(Generic[_T]):
    """Calls ``act`` in one greenlet at a time.

    A greenlet that comes while another is in ``act`` waits. If that call fails, it gets the same exception; if it succeeds, it
    calls ``act`` itself, which must then do nothing.
    """

    def __init__(self, act: Callable[[], _T]) -> None:
        self._act = act
        self._lock = RLock()
        self._ended = 0
        self._failure: BaseException | None = None

    def __call__(self) -> _T:
        """Call ``act``, or wait for the call that is under way. Raises the exceptions of ``act``."""
        before = self._ended
        with self._lock:
            if self._ended != before and self._failure is not None:
                raise self._failure
            self._failure = None
            try:
                return self._act()
            except Exception as error:
                self._failure = error
                raise
            finally:
                self._ended += 1


class Starter:
    """Starts something in the background, for requests that wait for it, each with its own timeout.

    ``start`` raises :class:`PgbusError` if it fails. Once it has been failing for ``patience`` seconds, :meth:`wait` returns at
    once.
    """

    def __init__(self, start: Callable[[], object], *, patience: float) -> None:
        self._start = start
        self._patience = patience
        self._running = False
        self._failing_since: float | None = None
        self._failed_at = -PAUSE
        self._done = Event()

    def begin(self) -> None:
        """Begin an attempt, unless one is under way or failed less than :data:`PAUSE` seconds ago. It never yields."""
        if not self._running and monotonic() - self._failed_at >= PAUSE:
            self._running = True
            gevent.spawn(self._try)

    def _try(self) -> None:
        began = monotonic()
        try:
            self._start()
            self._failing_since = None
            self._done.set()
        except PgbusError as error:
            if self._failing_since is None:
                self._failing_since = began
            self._failed_at = monotonic()
            # Meanwhile streams are refused as in any outage, and readyz answers 503.
            logger.error("the streamer cannot start: %s", error)
        finally:
            self._running = False

    def wait(self, timeout: float) -> None:
        """Yield until it has started, for at most ``timeout`` seconds, or until it has been failing for too long."""
        end = monotonic() + timeout
        while not self._done.is_set():
            now = monotonic()
            last = end if self._failing_since is None else min(end, self._failing_since + self._patience)
            if now >= last:
                return
            self.begin()
            self._done.wait(min(0.1, last - now))
