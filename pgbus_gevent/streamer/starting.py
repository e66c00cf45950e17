"""One attempt at a time to start something, whose outcome all get who waited for it."""

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
"""Seconds after an attempt that failed before requests have it tried again: none of them finds another outcome sooner."""

_T = TypeVar("_T")


class Shared(Generic[_T]):
    """Calls ``act``; greenlets that come meanwhile wait for that call, and get its outcome if it failed."""

    def __init__(self, act: Callable[[], _T]) -> None:
        self._act = act
        self._lock = RLock()
        self._ended = 0
        self._failure: BaseException | None = None

    def __call__(self) -> _T:
        """Raises what ``act`` raises."""
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
    """Starts something in the background for requests, which may wait for it, each as long as it likes.

    ``start`` raises :class:`PgbusError` where it fails. ``patience`` is for how many seconds it may go on failing before nobody
    waits any more.
    """

    def __init__(self, start: Callable[[], object], *, patience: float) -> None:
        self._start = start
        self._patience = patience
        self._running = False
        self._failing_since: float | None = None
        self._failed_at = -PAUSE
        self._done = Event()

    def begin(self) -> None:
        """See that an attempt is under way, but for a moment after one that failed; never yields."""
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
            # Streams are refused as for any outage, and readyz tells.
            logger.error("the streamer cannot start: %s", error)
        finally:
            self._running = False

    def wait(self, timeout: float) -> None:
        """Return once it has started, or after ``timeout`` seconds, or when it has been failing for too long."""
        end = monotonic() + timeout
        while not self._done.is_set():
            now = monotonic()
            last = end if self._failing_since is None else min(end, self._failing_since + self._patience)
            if now >= last:
                return
            self.begin()
            self._done.wait(min(0.1, last - now))
