"""Tells the database which members are connected to this worker, and keeps them there.

A connection never waits for it and knows nothing of it: who comes and goes is noted in memory, and written by one greenlet, many
at a time. What the database has is a lease on each connection, so a worker that is killed, or cannot reach the database, needs no
one to clean up after it: its members expire, and whichever worker sweeps them away announces that they have left.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Container, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

import gevent
from gevent.event import Event

from ..core.client import Subscriber, Subscription
from ..core.members import check_member, metadata_text
from ..core.retries import Backoff, Trouble
from ..errors import DatabaseError, InvalidArgument

logger = logging.getLogger("pgbus_gevent.presence")

BATCH = 500
"""The most comings and goings of one statement: some tens of milliseconds, in which it has the streams' presence locks."""

MAX_DEPARTURES = 20_000
"""Departures that wait for the database; of more, the oldest are left to expire, which needs nobody."""

RESTART_GRACE = 10.0
"""The least grace of members whose worker stops: their clients are told to come back after up to 5 s, elsewhere."""

SWEEP_INTERVAL = 5.0
"""The longest time from when a member expires, whose worker was killed, until a worker looks."""

_BUSY_PAUSE = 0.05  # before trying a stream again at which somebody else was
_HELD_PAUSE = 0.25  # the same, where nothing else could be written either; and between two sweeps
_BACKOFF = 1.0, 10.0  # the first and the longest pause while the database is away

_BAD_DATA = "22", "23", "54"  # classes of SQLSTATE: data exception, integrity constraint violation, limit exceeded

_Key = tuple[str, str]  # stream and connection
_Place = tuple[str, str, str]  # stream, member and connection
_Change = tuple[str, str, str, str | None]  # and metadata; None for a departure


class Source(Protocol):
    """What it needs of the database."""

    def record(self, changes: Sequence[_Change], *, ttl: float, grace: float) -> list[int]: ...
    def touch_many(self, places: Sequence[_Place], *, ttl: float) -> list[int]: ...
    def sweep(self) -> float | None: ...


def metadata_of(context: Any) -> Mapping[str, Any]:
    """The metadata of an automatic member: what its Subscriber's context, where that is a mapping, has under ``presence``."""
    found = context.get("presence") if isinstance(context, Mapping) else None
    return found if isinstance(found, Mapping) else {}


class PresenceKeeper:
    """The greenlet that writes: :meth:`run` is its loop, :meth:`finish` its end. :meth:`joined`, :meth:`left` and
    :meth:`renamed` never yield.

    ``tracked`` are the names and patterns of the streams whose members are tracked. ``ttl`` is how long the database keeps a
    connection of which it hears nothing, ``grace`` how long it keeps one that left, lest a reload be announced; in seconds.
    """

    def __init__(
        self,
        source: Source,
        *,
        tracked: Container[str],
        ttl: float,
        grace: float,
        sweep_interval: float = SWEEP_INTERVAL,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._source = source
        self._tracked = tracked
        self._ttl = ttl
        self._grace = grace
        self._sweep_interval = sweep_interval
        self._clock = clock
        # Who is connected; its size is bounded by that of the registry.
        self._here: dict[_Key, _Change] = {}
        # Those of them that are to be written, and whether that was tried before: then they may be in the database already.
        self._arrivals: dict[_Key, bool] = {}
        self._departures: dict[_Key, _Change] = {}
        self._writing = False
        self._work = Event()
        self._touch_at = clock() + self._touch_interval()
        self._sweep_at = clock() + random.uniform(0.0, sweep_interval)
        self._refused = Trouble(logger, "a member of %r is not tracked, nor is any other that is refused so: %s")
        self._overflow = Trouble(
            logger, "more than %d members left while the database did not take it: the oldest are left to expire"
        )
        self.failing = False

    def __len__(self) -> int:
        """How many connections with a member there are."""
        return len(self._here)

    @property
    def settled(self) -> bool:
        """Whether the database knows of everybody who came and went."""
        return not (self._arrivals or self._departures or self._writing)

    # what the clients' keeper tells

    def joined(self, subscription: Subscription) -> None:
        """A connection follows a stream, or goes on following it. One without a member, or at a stream that is not tracked, is
        passed over.
        """
        stream, subscriber = subscription.log.name, subscription.place.subscriber
        if subscriber.member is None or stream not in self._tracked:
            return
        try:
            metadata = metadata_text(metadata_of(subscriber.context))
            change = (stream, check_member(subscriber.member), subscription.lease, metadata)
        except InvalidArgument as error:
            # Here, and not by the database: there it would fail the statement of many.
            self._refused.begins(stream, error)
            return
        key = (stream, subscription.lease)
        self._here[key] = change
        self._arrivals[key] = self._departures.pop(key, None) is not None
        self._work.set()

    def left(self, subscription: Subscription) -> None:
        """A connection follows a stream no more; one that was never told of is passed over."""
        self._leave((subscription.log.name, subscription.lease))

    def renamed(self, subscription: Subscription, before: Subscriber) -> None:
        """A subscription that was that of ``before`` is now that of its place's subscriber."""
        subscriber = subscription.place.subscriber
        if before.member != subscriber.member:
            self.left(subscription)
            # Else the one who comes would take the one who goes back.
            subscription.lives += 1
        if (before.member, metadata_of(before.context)) != (subscriber.member, metadata_of(subscriber.context)):
            self.joined(subscription)

    def _leave(self, key: _Key) -> None:
        change = self._here.pop(key, None)
        # One that was not written yet, nor tried, has never been there.
        if change is not None and self._arrivals.pop(key, True):
            self._depart(key, change)
            self._work.set()

    def _depart(self, key: _Key, change: _Change) -> None:
        self._departures[key] = (*change[:3], None)
        if len(self._departures) > MAX_DEPARTURES:
            del self._departures[next(iter(self._departures))]
            self._overflow.begins(MAX_DEPARTURES)

    # its greenlet

    def run(self) -> None:
        """Write, touch and sweep, for ever."""
        backoff = Backoff(*_BACKOFF, least_share=0.75)
        while True:
            self._work.wait(self._pause())
            self._work.clear()
            try:
                self._round()
            except DatabaseError as error:
                self._failed(error)
                gevent.sleep(backoff.next())
                self._work.set()
            else:
                if self.failing:
                    logger.info("presence works again")
                self.failing = False
                backoff.reset()

    def _pause(self) -> float:
        due = self._sweep_at if not self._here else min(self._sweep_at, self._touch_at)
        return max(0.0, due - self._clock())

    def _round(self) -> None:
        # Before what is new, which may go on for long: the leases of those who are there must not run out meanwhile.
        if self._here and self._clock() >= self._touch_at:
            self._touch()
        if not self.settled:
            self._write(self._take(BATCH), self._grace)
        if self._clock() >= self._sweep_at:
            self._sweep()

    def _failed(self, error: DatabaseError) -> None:
        if not self.failing:
            if error.sqlstate in ("42883", "42P01"):  # no such function, no such table
                hint = "run `python -m pgbus_gevent migrate`, as presence is not in the schema yet"
            elif error.sqlstate == "42501":  # insufficient privilege
                hint = "grant this role what docs/sql.md names for one that serves"
            else:
                hint = "clients stay connected, and presence is put right when the database is back"
            logger.warning("cannot write who is present, trying again: %s; %s", error, hint)
        self.failing = True

    def _take(self, limit: int) -> list[_Change]:
        """Arrivals and departures to be written; those that are in the hands of a statement are not among them any more."""
        taken: list[_Change] = []
        # Arrivals first: where one connection of a member replaces another, and there is no grace, nobody was away.
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
            # Also where the greenlet is killed in the middle: nobody knows whether the statement was done.
            self._writing = False
            self._put_back(again)
        if any(metadata is None for *_, metadata in changes):
            self._sweep_at = min(self._sweep_at, self._clock() + grace)
        if not self.settled:
            if again:
                pause = _BUSY_PAUSE if len(again) < len(changes) else _HELD_PAUSE
                gevent.sleep(pause * random.uniform(0.5, 1.0))
            self._work.set()
        else:
            self._overflow.ends()

    def _record(self, changes: list[_Change], grace: float) -> list[_Change]:
        """Those that are to be tried again."""
        try:
            return [changes[place] for place in self._source.record(changes, ttl=self._ttl, grace=grace)]
        except (InvalidArgument, DatabaseError) as error:
            # What the database does not take is checked for in joined(); should something slip through, it is not to
            # keep the others out for ever.
            if isinstance(error, DatabaseError) and (error.sqlstate or "")[:2] not in _BAD_DATA:
                raise
            if len(changes) == 1:
                logger.error("PostgreSQL does not take the member %r: %s", changes[0][1], error)
                return []
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
        places = [change[:3] for key, change in self._here.items() if key not in self._arrivals]
        missing = self._source.touch_many(places, ttl=self._ttl) if places else []
        # Only now: one that fails is tried again with everything else. A lease outlasts two that were not made.
        self._touch_at = self._clock() + self._touch_interval()
        for place in missing:
            # Expired while this worker stood still or the database was away, or gone with the database's crash.
            stream, _, connection = places[place]
            if (stream, connection) in self._here:
                self._arrivals[stream, connection] = True

    def _sweep(self) -> None:
        self._sweep_at = self._clock() + self._sweep_interval * random.uniform(0.75, 1.0)
        try:
            due = self._source.sweep()
        except DatabaseError:
            # Tried again with everything else. Else a round with nothing to do would pass for the end of the outage.
            self._sweep_at = self._clock()
            raise
        if due is not None:
            # Soon after, and not all workers at once.
            self._sweep_at = min(self._sweep_at, self._clock() + max(_HELD_PAUSE, due) + random.uniform(0.0, 0.05))

    def _touch_interval(self) -> float:
        return self._ttl / 3 * random.uniform(0.75, 1.0)

    # the end

    def finish(self, timeout: float) -> None:
        """Have all that are still here leave, in one statement, within ``timeout`` seconds; yields. :meth:`run` has ended.

        They get the time to come back that clients are given at a shutdown. What cannot be written expires.
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
            logger.warning(
                "%d connections of members are left to expire, within %g s: %s", len(leaving), self._ttl, error
            )
