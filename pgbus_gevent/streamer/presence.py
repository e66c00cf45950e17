"""Writes the leases of the members that are connected to this worker, and renews them.

Connections do not wait for it. Arrivals and departures are noted in memory, and one greenlet writes many of them in one statement.
A lease expires unless it is renewed. If a worker is killed, or cannot reach the database, its leases expire by themselves; another
worker then removes them and announces that the members have left.

At a crowd, announcements wait a moment in the database for further changes. The worker that wrote the first change comes back to
announce them; if it dies before, the next sweep does.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent.event import Event

from ..core.client import Subscriber, Subscription
from ..core.members import check_member, metadata_text
from ..core.retries import Backoff, Trouble
from ..core.shown import kind_of
from ..errors import DatabaseError, InvalidArgument

logger = logging.getLogger("pgbus_gevent.presence")

BATCH = 500
"""The most arrivals and departures in one statement. It takes tens of milliseconds, and holds the streams' presence locks."""

MAX_DEPARTURES = 20_000
"""The most departures that wait for the database. If there are more, the oldest leases are left to expire."""

RESTART_GRACE = 10.0
"""The least grace, in seconds, of members whose worker stops. Their clients come back to another worker after up to 5 s."""

EXPIRE_INTERVAL = 5.0
"""The longest time, in seconds, from when a lease expires until a worker removes it."""

_BUSY_PAUSE = 0.05  # before a change of a stream is tried again whose presence lock was taken
_HELD_PAUSE = 0.25  # the same if no change at all could be written; also the least pause between two sweeps
_TOGETHER = 0.02
_REST = 20  # the time between two sweeps is at least so many times as long as the last one took, for it reads the table
_BACKOFF = 1.0, 10.0  # the first and the longest pause while the database is away

_BAD_DATA = "22", "23", "54"  # classes of SQLSTATE: data exception, integrity constraint violation, limit exceeded

_Key = tuple[str, str]  # stream and connection
_Lease = tuple[str, str, str]  # stream, member and connection
_Change = tuple[str, str, str, str | None]  # and metadata; None for a departure


class Source(Protocol):
    """The statements that it needs; the database's ``presence`` has them.

    ``sweep`` removes expired leases, and ``flush`` announces what has waited long enough.
    """

    def record(self, changes: Sequence[_Change], *, ttl: float, grace: float) -> tuple[list[int], list[float]]: ...
    def flush(self) -> float | None: ...
    def touch_many(self, leases: Sequence[_Lease], *, ttl: float) -> list[int]: ...
    def sweep(self) -> float | None: ...


class Renewals(Protocol):
    """Where leases are renewed: the database, or Redis."""

    def touch_many(self, leases: Sequence[_Lease], *, ttl: float) -> list[int]: ...


def metadata_of(context: Any) -> Mapping[str, Any]:
    """Return the metadata of a connected member: the mapping under ``presence`` in its context, or an empty one."""
    found = context.get("presence") if isinstance(context, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _metadata_text(context: Any) -> str:
    """Return them as JSON. Raises InvalidArgument, also for what the context raises: an application's object may raise anything."""
    try:
        return metadata_text(metadata_of(context))
    except InvalidArgument:
        raise
    except BaseException as error:
        raise InvalidArgument(f"its context raised {kind_of(error)}") from None


class PresenceKeeper:
    """The greenlet that writes leases. :meth:`run` is its loop, and :meth:`finish` its end.

    ``Clients`` calls :meth:`joined`, :meth:`left` and :meth:`renamed`, in any greenlet or in the event loop. They yield only if
    a context's own code does. They may be called while :meth:`run` waits for a statement. A change is therefore taken out of the
    dicts before its statement begins, and put back after a failure only if no newer change for the same lease has been noted.

    ``tracked`` holds the names of the streams whose members are tracked. ``ttl`` is how many seconds a lease lasts if it is not
    renewed. ``grace`` is how many seconds a member that left is still counted, so that a reload is not announced.
    """

    def __init__(
        self,
        source: Source,
        *,
        tracked: Container[str],
        ttl: float,
        grace: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._source = source
        self.renewals: Renewals = source
        """Where leases are renewed."""
        self._tracked = tracked
        self._ttl = ttl
        self._grace = grace
        self._clock = clock
        self._here: dict[_Key, _Change] = {}  # the members that are connected, at most as many as subscriptions
        # The arrivals that must be written. True if a statement about one was tried: then the database may have the lease already.
        self._arrivals: dict[_Key, bool] = {}
        self._departures: dict[_Key, _Change] = {}
        self._writing = False
        self._flag = Event()
        self._touch_at = clock() + self._touch_interval()
        self._flushes: list[float] = []  # when announcements are due that this worker is to make, in order
        self._refused = Trouble(logger, "a member of %r is not tracked, and further ones are not logged: %s")
        self._overflow = Trouble(
            logger, "more than %d departures of members wait for the database: the oldest members are left to expire"
        )
        self._trouble = Trouble(logger, "cannot write presence, trying again: %s; %s", over="presence works again")

    @property
    def failing(self) -> bool:
        """Whether the last statement failed, so that presence in the database may be out of date."""
        return self._trouble.lasts

    def __len__(self) -> int:
        """How many subscriptions have a member that is tracked."""
        return len(self._here)

    @property
    def settled(self) -> bool:
        """Whether the database knows of every arrival and departure."""
        return not (self._arrivals or self._departures or self._writing)

    # called by Clients

    def joined(self, subscription: Subscription) -> None:
        """Note the arrival of a subscription's member. Ignore a subscription without a member, and a stream that is not tracked."""
        stream, subscriber = subscription.log.name, subscription.place.subscriber
        if subscriber.member is None or stream not in self._tracked:
            return
        try:
            metadata = _metadata_text(subscriber.context)
            change = (stream, check_member(subscriber.member), subscription.lease, metadata)
        except InvalidArgument as error:
            # Refused here, because in the database a bad member would fail the statement about many.
            self._refused.begins(stream, error)
            return
        key = (stream, subscription.lease)
        if self._here.get(key) == change or subscription.client.closed:
            return  # a recheck found nothing new, or the client left while the context's own code waited
        self._here[key] = change
        self._arrivals[key] = self._departures.pop(key, None) is not None
        self._flag.set()

    def left(self, subscription: Subscription) -> None:
        """Note the departure of a subscription's member. Ignore one that was not noted before."""
        self._leave((subscription.log.name, subscription.lease))

    def renamed(self, subscription: Subscription, before: Subscriber) -> None:
        """Note that a subscription has a new subscriber in its place; ``before`` is the old one."""
        subscriber = subscription.place.subscriber
        if before.member != subscriber.member:
            self.left(subscription)
            # Gives the new member a lease of its own. With the same lease, the arrival would cancel the departure.
            subscription.earlier_members += 1
        self.joined(subscription)

    def _leave(self, key: _Key) -> None:
        change = self._here.pop(key, None)
        # If the arrival was neither written nor tried, the database has no lease to remove.
        if change is not None and self._arrivals.pop(key, True):
            self._depart(key, change)
            self._flag.set()

    def _depart(self, key: _Key, change: _Change) -> None:
        self._departures[key] = (*change[:3], None)
        if len(self._departures) > MAX_DEPARTURES:
            del self._departures[next(iter(self._departures))]
            self._overflow.begins(MAX_DEPARTURES)

    # its greenlet

    def run(self) -> None:
        """Write changes and renew leases, for ever."""
        backoff = Backoff(*_BACKOFF, least_share=0.75)
        self._flag.set()  # a greenlet that was killed may have left changes
        while True:
            self._flag.wait(self._pause())
            self._flag.clear()
            try:
                self._do_due_work()
            except DatabaseError as error:
                self._failed(error)
                gevent.sleep(backoff.next())
                self._flag.set()
            else:
                self._trouble.ends()
                backoff.reset()

    def _pause(self) -> float | None:
        due = [self._touch_at] if self._here else []
        due += self._flushes[:1]
        return max(0.0, min(due) - self._clock()) if due else None

    def _do_due_work(self) -> None:
        # Renewals come first: writing changes may take long, and existing leases must not expire meanwhile.
        if self._here and self._clock() >= self._touch_at:
            self._touch()
        if not self.settled:
            self._write(self._take(BATCH), self._grace)
        if self._flushes and self._clock() >= self._flushes[0]:
            again = self._source.flush()
            now = self._clock()
            self._flushes = [at for at in self._flushes if at > now]
            self._flush_in([] if again is None else [again])

    def _flush_in(self, seconds: Iterable[float]) -> None:
        """Note in how many seconds announcements are due. Those that are due nearly together are one flush, the later one."""
        now = self._clock()
        found: list[float] = []
        for at in sorted([*self._flushes, *(now + each for each in seconds)], reverse=True):
            if not found or at < found[-1] - _TOGETHER:
                found.append(at)
        self._flushes = found[::-1]

    def _failed(self, error: DatabaseError) -> None:
        if error.sqlstate in ("42883", "42P01"):  # no such function, no such table
            remedy = "run `python -m pgbus_gevent migrate`, because the schema has no presence yet"
        elif error.sqlstate == "42501":  # insufficient privilege
            remedy = "grant this role the rights that docs/sql.md names for a server"
        else:
            remedy = "clients stay connected, and presence is corrected when the database is back"
        self._trouble.begins(error, remedy)

    def _take(self, limit: int) -> list[_Change]:
        """Take up to ``limit`` arrivals and departures out of the dicts, for a statement."""
        taken: list[_Change] = []
        # Arrivals first: if a member's new connection replaces an old one, and there is no grace, the member was never away.
        for key in list(self._arrivals)[:limit]:
            del self._arrivals[key]
            taken.append(self._here[key])
        for key in list(self._departures)[: limit - len(taken)]:
            taken.append(self._departures.pop(key))
        return taken

    def _write(self, changes: list[_Change], grace: float) -> None:
        again = changes
        self._writing = True
        try:
            again = self._record(changes, grace)
        finally:
            # Also if the greenlet is killed here: it is then unknown whether the statement was executed, so it is tried again.
            self._writing = False
            self._put_back(again)
        if not self.settled:
            if again:
                pause = _BUSY_PAUSE if len(again) < len(changes) else _HELD_PAUSE
                gevent.sleep(pause * random.uniform(0.5, 1.0))
            self._flag.set()
        else:
            self._overflow.ends()

    def _record(self, changes: list[_Change], grace: float) -> list[_Change]:
        """Write changes. Return those that must be tried again, because the presence lock of their stream was taken."""
        try:
            again, due = self._source.record(changes, ttl=self._ttl, grace=grace)
        except (InvalidArgument, DatabaseError) as error:
            # joined() refuses values that the database does not take. If it misses one, the bad value must not keep the others
            # out for ever, so the batch is halved until the bad change is alone.
            if isinstance(error, DatabaseError) and (error.sqlstate or "")[:2] not in _BAD_DATA:
                raise
            if len(changes) == 1:
                logger.error("PostgreSQL refuses the member %r: %s", changes[0][1], error)
                return []
        else:
            self._flush_in(due)
            return [changes[index] for index in again]
        middle = len(changes) // 2
        return self._record(changes[:middle], grace) + self._record(changes[middle:], grace)

    def _put_back(self, changes: list[_Change]) -> None:
        for change in changes:
            key = (change[0], change[2])
            if change[3] is None:
                if key not in self._here and key not in self._departures:
                    self._depart(key, change)
            elif key in self._here:
                self._arrivals[key] = True

    def _touch(self) -> None:
        leases = [change[:3] for key, change in self._here.items() if key not in self._arrivals]
        missing = self.renewals.touch_many(leases, ttl=self._ttl) if leases else []
        # Only after the statement, so that a renewal that fails is tried again. A lease outlasts two missed renewals,
        # or one after a renewal through Redis that was lost.
        self._touch_at = self._clock() + self._touch_interval()
        for index in missing:
            # The lease expired while this worker or the database was stopped, or was lost in a crash of the database.
            stream, _, connection = leases[index]
            if (stream, connection) in self._here:
                self._arrivals[stream, connection] = True

    def _touch_interval(self) -> float:
        return self._ttl / 3 * random.uniform(0.75, 1.0)

    # the steward's duty

    @property
    def expire_interval(self) -> float:
        """The longest time between two removals of expired leases, in seconds. A member that leaves must be found in its grace."""
        return min(EXPIRE_INTERVAL, max(_HELD_PAUSE, self._grace))

    def expire(self) -> float | None:
        """Remove the expired leases of all workers. Return in how many seconds the next one expires, or None."""
        began = self._clock()
        due = self._source.sweep()
        least = max(_HELD_PAUSE, _REST * (self._clock() - began))
        return None if due is None else max(least, due) + random.uniform(0.0, 0.05)

    # the end

    def finish(self, timeout: float) -> None:
        """Write the departure of all members, within ``timeout`` seconds. It yields. Call it after :meth:`run` has ended.

        The members get a grace in which their clients can come back to another worker. Leases that cannot be written expire.
        """
        for key in list(self._here):
            self._leave(key)
        leaving = self._take(len(self._departures))
        if not leaving:
            return
        deadline = gevent.Timeout(timeout)
        try:
            with deadline:
                while leaving:
                    leaving = self._record(leaving, max(self._grace, RESTART_GRACE))
                    gevent.sleep(_BUSY_PAUSE if leaving else 0.0)
        except (DatabaseError, gevent.Timeout) as error:
            if isinstance(error, gevent.Timeout) and error is not deadline:
                raise
            logger.warning("%d leases of members are left to expire, within %g s: %s", len(leaving), self._ttl, error)
