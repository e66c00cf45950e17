"""The ear of a bus: tells its tails when their streams may have moved.

It has a LISTEN session, and *sweeps*: questions to the database that find messages without a notification. Transactions that commit
at the same moment do not all ring the doorbell, and a notification may be lost. It is only a hint: a tail reads every message from
the table.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from ..core import wakes
from ..core.buckets import ALL_BUCKETS, channel
from ..core.retries import Backoff, Trouble
from ..core.table_tail import TableTail
from ..database import statements
from ..errors import DatabaseError, Deaf
from .sessions import Sessions, translated

logger = logging.getLogger("pgbus_gevent.aio")

PING_INTERVAL = 2.0
"""Seconds between two looks whether the session still listens on the right channels."""

AFTER_DOORBELL = (0.01, 0.05, 0.25)
"""Seconds from a notification to each of the sweeps that follow it."""

MAX_SHARE = 0.2
"""The largest share of time that sweeps take."""

_PAUSES = 0.1, 5.0  # the first and the longest between two sessions, in seconds


class Follower:
    """A tail that is about to read, or waits. :attr:`woken` is set if its stream may have moved."""

    def __init__(self, place: TableTail) -> None:
        self.place = place
        self.woken = asyncio.Event()
        self.idle = False


class Ear:
    """Wakes the followers. Its two tasks run from the first follower on, until :meth:`close`.

    All of it runs in one event loop, and yields only where it awaits. A follower is registered before its tail reads, so a message
    that is committed during the read wakes it afterwards.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._followers: set[Follower] = set()
        self._rung = False
        self._alarm = asyncio.Event()  # the doorbell rang, or the time until the next sweep is over
        self._listening = False
        self._tasks: list[asyncio.Task[None]] = []
        self.closings = 0
        """How often it was closed. A tail that is older than the last time ends."""

    @property
    def listening(self) -> bool:
        """Whether notifications are heard."""
        return self._listening

    @contextmanager
    def following(self, place: TableTail) -> Iterator[Follower]:
        """Register a follower for the block."""
        follower = Follower(place)
        self._followers.add(follower)
        if not self._tasks:
            loops = [self._sweep] if self._sessions.settings.wake == "poll" else [self._sweep, self._listen]
            self._tasks = [asyncio.ensure_future(_for_ever(loop)) for loop in loops]
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    async def close(self) -> None:
        """End the tasks, and the session with them, and wake the tails, so that they end."""
        self.closings += 1
        self._wake_all()
        tasks, self._tasks = set(self._tasks), []
        while tasks:
            for task in tasks:
                task.cancel()
            # Again after a second, because psycopg may lose a cancellation: see cancellable().
            _, tasks = await asyncio.wait(tasks, timeout=1.0)

    def _wake_all(self) -> None:
        for follower in self._followers:
            follower.woken.set()

    # the session

    async def _listen(self) -> None:
        backoff = Backoff(*_PAUSES)
        trouble = Trouble(logger, "the session for new messages is lost, opening a new one: %s", over="listening again")
        while True:
            try:
                connection = await self._sessions.listen()
                try:
                    await self._hear_on(connection, backoff, trouble)
                finally:
                    self._listening = False
                    await connection.close()
            except DatabaseError as error:
                trouble.begins(error)
            self._ring()
            await asyncio.sleep(backoff.next())

    async def _hear_on(self, connection: psycopg.AsyncConnection[TupleRow], backoff: Backoff, trouble: Trouble) -> None:
        with translated():
            names = (await _channels(connection))[:2]
            doorbell, control = names
            wanted = [control, *(channel(doorbell, bucket) for bucket in sorted(ALL_BUCKETS))]
            await connection.execute("; ".join(f'listen "{name}"' for name in wanted))  # type: ignore[arg-type, unused-ignore]
            self._listening = True
            backoff.reset()
            trouble.ends()
            # What was committed before this session heard anything, perhaps on a server that has just taken another's place.
            self._wake_all()
            while True:
                async for notify in connection.notifies(timeout=PING_INTERVAL):
                    self._hear(notify.payload)
                *found, listens = await _channels(connection)
                if not listens:
                    raise Deaf("the session that answers is not the one that listens: a pooler is in between")
                if found != names:
                    return  # the names were replaced, so a new session listens on the new ones

    def _hear(self, payload: str) -> None:
        self._ring()
        wake = wakes.parse(payload)
        if isinstance(wake, wakes.NewMessage):
            self._wake(wake.stream, wake.id)
        elif isinstance(wake, wakes.Moved):
            for name in wake.streams or ():
                self._wake(name)

    def _ring(self) -> None:
        self._rung = True
        self._alarm.set()

    def _wake(self, stream: str, id: int | None = None) -> None:
        for follower in self._followers:
            if follower.place.stream == stream and (id is None or id > follower.place.cursor):
                follower.woken.set()

    # the sweeps

    async def _sweep(self) -> None:
        trouble = Trouble(logger, "cannot look for new messages, trying again: %s")
        pauses = list(AFTER_DOORBELL)
        while True:
            if await self._rings_within(pauses.pop(0) if pauses else self._interval * random.uniform(0.75, 1.0)):
                pauses = list(AFTER_DOORBELL)
                await asyncio.sleep(pauses.pop(0))
                self._rung = False
            began = monotonic()
            try:
                await self._look()
                trouble.ends()
            except DatabaseError as error:
                trouble.begins(error)
                pauses.clear()
            await asyncio.sleep(min((monotonic() - began) * (1 / MAX_SHARE - 1), self._interval))

    @property
    def _interval(self) -> float:
        interval = self._sessions.settings.catch_up_interval
        return interval if self._listening else interval / 10

    async def _rings_within(self, seconds: float) -> bool:
        # Not asyncio.wait_for: before Python 3.12, it loses a cancellation that comes in the moment in which the wait ends.
        timer = asyncio.get_running_loop().call_later(0.0 if self._rung else seconds, self._alarm.set)
        try:
            await self._alarm.wait()
        finally:
            timer.cancel()
            self._alarm.clear()
        return self._rung

    async def _look(self) -> None:
        """Wake the followers that wait and whose streams the database has moved, in either direction."""
        idle = [follower for follower in self._followers if follower.idle and not follower.woken.is_set()]
        heads: dict[str, int] = {}
        for follower in idle:
            place = follower.place
            heads[place.stream] = min(place.cursor, heads.get(place.stream, place.cursor))
        if not heads:
            return
        pruned = {follower.place.stream for follower in idle if follower.place.pruned}
        rows = await self._sessions.rows(statements.MOVED, statements.moved_asked(heads, pruned))
        _, moved = statements.moved_rows(rows)
        for follower in idle:
            newest = moved.get(follower.place.stream, follower.place.cursor)
            if newest > follower.place.cursor or (newest < follower.place.cursor and not follower.place.pruned):
                follower.woken.set()


async def _for_ever(part: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a part of the ear, and start it again if it fails in a way that it does not expect."""
    while True:
        try:
            await part()
        except Exception:
            logger.exception("a part that finds new messages has failed; starting it again")
        await asyncio.sleep(1.0)


async def _channels(connection: psycopg.AsyncConnection[TupleRow]) -> list[Any]:
    found = await (await connection.execute(statements.CHANNELS)).fetchone()
    assert found is not None  # a function returns a row
    return list(found)
