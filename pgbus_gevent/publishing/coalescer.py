"""Holds writes back for a moment, so that of many to one target only the last is published; each Bus has one.

What waits, and until when, is for :mod:`pgbus_gevent.core.windows` to know; here are the timer, the publishing and its failures.
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
"""The longest window, in seconds: what waits is lost with the process, so it must not wait for long."""

MAX_WAITING = 10_000
"""Writes that wait, each to another target. With more, the next one has to publish what waits itself."""

KEEP_SECONDS = 60.0
"""How long the last write to a target is kept and tried again while the database is away."""

_BATCH = 1000  # messages in one statement
_PAUSES = 0.1, 2.0  # the first and the longest between tries while the database is away, in seconds
_TURN_TIMEOUT = 10.0  # seconds
_FORK_PATIENCE = 1.0  # seconds

# SQLSTATE classes of a message that will never be taken: bad data, a constraint, a limit. Tried again it would hold up the others.
_REFUSED = ("22", "23", "54")

Cancel = Callable[[], object]

_timers: WeakSet[threading.Timer] = WeakSet()


def later(delay: float, function: Callable[[], None]) -> Cancel:
    """Call ``function`` in ``delay`` seconds; returns what calls that off.

    By a greenlet where the process is patched for gevent, else by a thread, as nobody may ever run the event loop there.
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
    """Return the length of a window, or raise :class:`InvalidArgument`."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidArgument(f"coalesce is a number of seconds, not {type(seconds).__name__}")
    if not 0 < seconds <= MAX_WINDOW:
        raise InvalidArgument(f"coalesce={seconds!r} is not above 0 and at most {MAX_WINDOW:g} seconds")
    return float(seconds)


class Coalescer:
    """The writes of one Bus. ``publish`` sends messages in one transaction and raises :class:`DatabaseError` where it cannot.

    Any greenlet or thread may call the methods. :meth:`write` never yields, unless ``max_waiting`` is reached; :meth:`flush` and
    :meth:`close` do. One timer, made by ``later``, stands for all windows, and none while nothing waits.
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
        # Held for moments in which nothing yields; whoever publishes has the turn, so that batches cannot overtake one another.
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
        """What became of the writes of this process."""
        with self._lock:
            return self._windows.counts

    def write(self, message: Outgoing, target: str | None, window: float) -> None:
        """Keep a message until its window ends; it replaces what waits for the same stream, target, audience, event and kind.

        ``window`` is in seconds. Raises :class:`DatabaseError` where ``max_waiting`` is reached and what waits cannot be
        published: the message is not kept then.
        """
        if self._pid != os.getpid():
            self._reset()  # after a fork: what waits is the parent's to publish, and its locks and timer stayed there
        key = (message.stream, target, *message[2:])
        if len(self._windows) >= self._max_waiting and key not in self._windows:
            self._make_room()
        with self._lock:
            now = self._clock()
            self._windows.write(key, message, message.stream, window, now)
            self._arm(now)

    def _make_room(self) -> None:
        if self._failing:
            # Each of those who write would else wait in turn for a connect that fails.
            raise DatabaseUnavailable(
                f"{self._max_waiting} coalesced messages wait for the database already, which is away: {self._outage}"
            )
        self.flush()

    # the timer

    def _arm(self, now: float) -> None:
        """See to it that the timer comes when the next window ends."""
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
        # Whoever has the turn arms the timer anew when it is done.
        if self._turn.acquire(blocking=False):
            try:
                self._send_waiting(everything=False)
            except Exception:
                pass  # logged, and kept for the next try
            finally:
                self._end_turn()

    def _end_turn(self) -> None:
        self._turn.release()
        with self._lock:
            self._arm(self._clock())

    # publishing

    def flush(self) -> None:
        """End all windows now, and return when what they held is published: what is broadcast next comes after it.

        Raises :class:`DatabaseError` where it cannot be published: then it is kept and tried again.
        """
        self._take_turn()
        try:
            self._send_waiting(everything=True)
        finally:
            self._end_turn()

    def close(self) -> None:
        """Publish what waits; what cannot be published now is lost, with an error in the log. More can be written afterwards."""
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
        """Publish what waits, so that no thread has to see to it; what cannot be published waits on."""
        if self._pid == os.getpid() and len(self._windows) and not self._failing:
            with suppress(DatabaseError):  # logged
                self.flush()

    def _take_turn(self) -> None:
        end = self._clock() + _TURN_TIMEOUT
        # In short waits: a semaphore wakes one waiter for one release, and where that one is killed at that moment, nobody.
        while not self._turn.acquire(timeout=0.25):
            if self._clock() >= end:
                raise DatabaseUnavailable(f"coalesced messages are being published for more than {_TURN_TIMEOUT:g} s")

    def _send_waiting(self, *, everything: bool) -> None:
        """Publish what is due, or all. Only for who has the turn."""
        with self._lock:
            # After an outage all of it, as what was put back may be older or newer than what waits beside it.
            batch = self._windows.take(None if everything or self._failing else self._clock())
        while batch:
            chunk = batch[:_BATCH]
            try:
                refused = self._send(chunk)
            except BaseException as error:
                self._keep(batch, error)  # when the greenlet is killed, too: what it held must not go with it
                raise
            del batch[: len(chunk)]
            with self._lock:
                self._windows.done(published=len(chunk) - refused, dropped=refused)
                outage = self._failing
                self._recovered()
            if outage:
                logger.info("publishing coalesced messages again")

    def _send(self, writes: list[Write]) -> int:
        """Publish in one transaction; where the database refuses it, message by message. How many were refused."""
        try:
            self._publish([write.message for write in writes])
        except DatabaseError as error:
            if not (error.sqlstate or "").startswith(_REFUSED):
                raise
            if len(writes) > 1:
                # One bad message must not take the others with it.
                return sum(self._send([write]) for write in writes)
            logger.error("a coalesced message to %r was refused, and dropped: %s", writes[0].message.stream, error)
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
                "coalesced messages cannot be published, and are tried again for %g s; is the database reachable, and may this"
                " role publish? %s",
                self._keep_seconds,
                error,
                exc_info=None if isinstance(error, DatabaseError) else error,
            )
        if lost:
            logger.error("%d coalesced messages are lost, the database was away for too long: %s", lost, error)

    def _recovered(self) -> None:
        self._failing, self._retry_at = False, 0.0
        self._backoff.reset()

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            lost = len(self._windows.take())
            self._windows.done(dropped=lost)
            self._recovered()
        if lost:
            logger.error("%d coalesced messages are lost, the bus was closed while they waited: %s", lost, error)


_coalescers: WeakSet[Coalescer] = WeakSet()


def close_all() -> None:
    """Publish what waits anywhere in this process; for its end."""
    for coalescer in list(_coalescers):
        coalescer.close()


def total_counts() -> Counts:
    """What became of the writes of all of this process."""
    return Counts(*(sum(column) for column in zip(Counts(), *(one.counts for one in list(_coalescers)), strict=True)))


def _before_fork() -> None:
    """A process must not fork while it has threads: the child would have their locks, and not them."""
    if monkey.is_module_patched("socket"):
        return  # it has greenlets instead
    for coalescer in list(_coalescers):
        coalescer.finish_before_fork()
    for timer in list(_timers):
        if timer is not threading.current_thread():
            timer.join(_FORK_PATIENCE)


# For a program that ends without closing its Bus.
atexit.register(close_all)
os.register_at_fork(before=_before_fork)
