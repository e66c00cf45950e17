"""Holds coalesced messages for the length of a window, so that only the last of many writes to one target is published.

Each Bus has a ``Coalescer``. :mod:`pgbus_gevent.core.windows` knows which writes wait, and until when. This module has the timer,
publishes what is due, and deals with failures.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from weakref import WeakSet

import gevent
from gevent import monkey
from gevent.lock import BoundedSemaphore

from ..core.retries import Backoff
from ..core.windows import Counts, Windows, Write
from ..database.batch import Outgoing
from ..errors import DatabaseError, DatabaseUnavailable, InvalidArgument

logger = logging.getLogger("pgbus_gevent.coalescer")

MAX_WINDOW = 60.0
"""The longest window, in seconds. Messages that wait are lost if the process is killed, so they must not wait for long."""

MAX_WAITING = 10_000
"""How many writes may wait, each to a different target. The next write after that has to publish them first."""

KEEP_SECONDS = 60.0
"""Seconds for which the last write to a target is kept and retried while the database is away."""

_BATCH = 1000  # messages in one statement
_PAUSES = 0.1, 2.0  # seconds between two tries while the database is away: the first pause, and the longest
_TURN_TIMEOUT = 10.0  # seconds to wait for the turn
_FORK_PATIENCE = 1.0  # seconds to wait for a timer's thread before a fork

# SQLSTATE classes that mean that this message will always be refused: bad data, a constraint, a limit. Retrying it would hold up
# the others.
_REFUSED = ("22", "23", "54")

Cancel = Callable[[], object]

_timers: WeakSet[threading.Timer] = WeakSet()


def later(delay: float, function: Callable[[], None]) -> Cancel:
    """Call ``function`` after ``delay`` seconds. The function that is returned cancels the call.

    In a process that is patched for gevent, a greenlet makes the call. Otherwise a thread does, because the event loop might never
    run there.
    """
    if monkey.is_module_patched("socket"):
        greenlet = gevent.spawn_later(delay, function)
        greenlet.name = "pgbus-coalescer"
        return lambda: greenlet.kill(block=False)
    timer = threading.Timer(delay, function)
    timer.daemon = True
    _timers.add(timer)
    timer.start()
    return timer.cancel


def check_window(seconds: float) -> float:
    """Return the length of a window in seconds. Raises :class:`InvalidArgument` unless it is above 0 and at most MAX_WINDOW."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidArgument(f"coalesce={seconds!r:.80} is not allowed: expected a number of seconds")
    if not 0 < seconds <= MAX_WINDOW:
        raise InvalidArgument(
            f"coalesce={seconds!r} is not allowed: expected more than 0 and at most {MAX_WINDOW:g} seconds"
        )
    return float(seconds)


class Coalescer:
    """The coalesced writes of one Bus.

    ``publish`` sends messages in one transaction, and raises :class:`DatabaseError` if it fails. Any greenlet or thread may call
    the methods. :meth:`write` yields only if ``max_waiting`` is reached; :meth:`flush` and :meth:`close` yield. A single timer,
    made by ``later``, serves all windows. There is none while nothing waits.
    """

    def __init__(
        self,
        publish: Callable[[Sequence[Outgoing]], object],
        *,
        later: Callable[[float, Callable[[], None]], Cancel] = later,
        clock: Callable[[], float] = monotonic,
        max_waiting: int = MAX_WAITING,
        keep_seconds: float = KEEP_SECONDS,
    ) -> None:
        self._publish = publish
        self._later = later
        self._clock = clock
        self._max_waiting = max_waiting
        self._keep_seconds = keep_seconds
        self._reset()
        _coalescers.add(self)

    def _reset(self) -> None:
        self._pid = os.getpid()
        # The lock is held only while nothing yields. The turn is held while a batch is published, so that no later batch can
        # overtake it.
        self._lock = threading.Lock()
        self._turn = BoundedSemaphore(1)
        self._windows = Windows()
        self._cancel: Cancel | None = None
        self._armed_for: float | None = None
        self._backoff = Backoff(*_PAUSES)
        self._failing = False
        self._retry_at = 0.0
        self._outage = ""

    @property
    def counts(self) -> Counts:
        """How many writes of this process were published, replaced or dropped."""
        with self._lock:
            return self._windows.counts

    def write(self, message: Outgoing, target: str | None, window: float) -> None:
        """Keep a message until its window of ``window`` seconds ends.

        It replaces a waiting message of the same stream, target, audience, event and kind. Raises :class:`DatabaseError` if
        ``max_waiting`` is reached and the waiting messages cannot be published; the new message is then not kept.
        """
        if self._pid != os.getpid():
            self._reset()  # after a fork: the parent publishes what waited, and its locks and its timer do not work here
        key = (message.stream, target, *message[2:])
        if len(self._windows) >= self._max_waiting and key not in self._windows:
            self._make_room()
        with self._lock:
            now = self._clock()
            self._windows.write(key, message, message.stream, window, now)
            self._arm(now)

    def _make_room(self) -> None:
        if self._failing:
            # Otherwise each writer in turn would wait for a connection attempt that fails.
            raise DatabaseUnavailable(
                f"{self._max_waiting} coalesced messages already wait for the database, which is away: {self._outage}"
            )
        self.flush()

    # the timer

    def _arm(self, now: float) -> None:
        """Set the timer to the end of the next window."""
        at = self._windows.next_due
        if at is None:
            self._disarm()
            return
        at = max(at, self._retry_at)
        if self._armed_for is not None:
            if self._armed_for <= at:
                return
            self._disarm()
        self._armed_for = at
        self._cancel = self._later(max(0.0, at - now), self._fire)

    def _disarm(self) -> None:
        cancel, self._cancel, self._armed_for = self._cancel, None, None
        if cancel is not None:
            cancel()

    def _fire(self) -> None:
        with self._lock:
            self._cancel = self._armed_for = None
        # If another greenlet or thread has the turn, it sets the timer again when it is done.
        if self._turn.acquire(blocking=False):
            try:
                self._send_waiting(everything=False)
            except Exception:  # nosec B110 # it is not swallowed: see below
                pass  # _keep has logged it, and keeps the messages for the next try
            finally:
                self._end_turn()

    def _end_turn(self) -> None:
        self._turn.release()
        with self._lock:
            self._arm(self._clock())

    # publishing

    def flush(self) -> None:
        """End all windows now, and return when their messages are published. Later broadcasts then come after them.

        Raises :class:`DatabaseError` if they cannot be published; they are then kept, and retried.
        """
        self._take_turn()
        try:
            self._send_waiting(everything=True)
        finally:
            self._end_turn()

    def close(self) -> None:
        """Publish the waiting messages. Those that cannot be published are dropped, and an error is logged.

        More messages can be written afterwards.
        """
        if self._pid != os.getpid():
            return
        try:
            self._take_turn()
        except DatabaseError as error:
            self._give_up(error)
            return
        try:
            self._send_waiting(everything=True)
        except Exception as error:
            self._give_up(error)
        finally:
            self._end_turn()

    def finish_before_fork(self) -> None:
        """Publish the waiting messages, so that no timer's thread runs during the fork. If that fails, they keep waiting."""
        if self._pid == os.getpid() and len(self._windows) and not self._failing:
            with suppress(DatabaseError):  # _keep has logged it
                self.flush()

    def _take_turn(self) -> None:
        end = self._clock() + _TURN_TIMEOUT
        # Wait in short steps. A release wakes one waiter; if that greenlet is killed at this moment, no other one would be woken.
        while not self._turn.acquire(timeout=0.25):
            if self._clock() >= end:
                raise DatabaseUnavailable(
                    f"another greenlet or thread has been publishing coalesced messages for more than {_TURN_TIMEOUT:g} s;"
                    " try again later"
                )

    def _send_waiting(self, *, everything: bool) -> None:
        """Publish the messages that are due, or all of them. The caller must have the turn."""
        with self._lock:
            # After an outage take all, because the messages that were put back may be older or newer than those beside them.
            batch = self._windows.take(None if everything or self._failing else self._clock())
        while batch:
            chunk = batch[:_BATCH]
            try:
                refused = self._send(chunk)
            except BaseException as error:
                self._keep(batch, error)  # also if the greenlet is killed, or its messages would be lost with it
                raise
            del batch[: len(chunk)]
            with self._lock:
                self._windows.done(published=len(chunk) - refused, dropped=refused)
                outage = self._failing
                self._recovered()
            if outage:
                logger.info("coalesced messages are published again")

    def _send(self, writes: list[Write]) -> int:
        """Publish the messages in one transaction, and if it is refused, one by one. Return how many were refused."""
        try:
            self._publish([write.message for write in writes])
        except DatabaseError as error:
            if not (error.sqlstate or "").startswith(_REFUSED):
                raise
            if len(writes) > 1:
                # One bad message must not take the others with it.
                return sum(self._send([write]) for write in writes)
            logger.error(
                "a coalesced message to %r was dropped: the database refused it: %s", writes[0].message.stream, error
            )
            return 1
        return 0

    def _keep(self, batch: list[Write], error: BaseException) -> None:
        with self._lock:
            now = self._clock()
            first, self._failing = not self._failing, True
            self._retry_at = now + self._backoff.next()
            self._outage = str(error)
            lost = self._windows.keep(batch, now, keep_seconds=self._keep_seconds)
        if first:
            logger.warning(
                "coalesced messages cannot be published and are retried for %g s; check that the database is reachable and that"
                " this role may publish: %s",
                self._keep_seconds,
                error,
                exc_info=None if isinstance(error, DatabaseError) else error,
            )
        if lost:
            logger.error("%d coalesced messages are lost because the database was away for too long: %s", lost, error)

    def _recovered(self) -> None:
        self._failing, self._retry_at = False, 0.0
        self._backoff.reset()

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            lost = len(self._windows.take())
            self._windows.done(dropped=lost)
            self._recovered()
        if lost:
            logger.error("%d coalesced messages are lost because the bus was closed while they waited: %s", lost, error)


_coalescers: WeakSet[Coalescer] = WeakSet()


def close_all() -> None:
    """Close the Coalescers of all Buses of this process. Called when the process ends."""
    for coalescer in list(_coalescers):
        coalescer.close()


def total_counts() -> Counts:
    """The counts of all Coalescers of this process together."""
    return Counts(*(sum(column) for column in zip(Counts(), *(one.counts for one in list(_coalescers)), strict=True)))


def _before_fork() -> None:
    """Wait for the timers' threads. A child process would inherit the locks that they hold, but not the threads."""
    if monkey.is_module_patched("socket"):
        return  # the timers are greenlets here
    for coalescer in list(_coalescers):
        coalescer.finish_before_fork()
    for timer in list(_timers):
        if timer is not threading.current_thread():
            timer.join(_FORK_PATIENCE)


# For programs that end without closing their Bus.
atexit.register(close_all)
os.register_at_fork(before=_before_fork)
