"""The PostgreSQL of a simulation: the model in ``database``, with time, and with a ledger of what it commits."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import gevent
from gevent.event import Event

from pgbus_gevent.core.buckets import bucket_of, channel
from pgbus_gevent.errors import PgbusError

from . import clock, database
from .database import publishing
from .database.publishing import Outgoing
from .database.session import Session
from .database.statements import Statement, Work
from .database.tables import MessageRow
from .database.transactions import Transaction
from .ledger import Message, Stream
from .loop import CLOCK


class Server(database.Server):
    """The model, which tells of each commit. ``chance`` decides how long the steps of publishers take, on average ``step``."""

    def __init__(self, chance: Random, *, step: float, seed: int) -> None:
        super().__init__(CLOCK.time, pause=self._pause, choose=lambda number: chance.randrange(number), seed=seed)
        self.chance = chance
        self.step = step
        self.ledger: dict[str, Stream] = {}
        self.workers: dict[str, float] = {}
        self.on_commit: Callable[[list[Message]], None] = lambda messages: None
        self.on_ephemeral: Callable[[Message], None] = lambda message: None
        self.publishers: set[Session] = set()
        self.asking = database.Queries(self, wait=wait)
        self.stewarding = database.Stewardship(self, wait=wait)
        self._messages: dict[str, Message] = {}  # those that were published and not committed, by their data
        self._rows: dict[Transaction, list[MessageRow]] = {}
        self._ephemerals: dict[Transaction, Message] = {}
        self._positions: list[tuple[float, int]] = []

    def stream(self, name: str) -> Stream:
        """Return what the ledger has of a stream."""
        found = self.ledger.get(name)
        if found is None:
            found = self.ledger[name] = Stream()
        return found

    def channel(self, stream: str) -> str:
        """Return the channel of a stream's notifications."""
        return channel(self.doorbell, bucket_of(stream))

    # time

    def _pause(self, statement: Statement, point: str) -> bool:
        """Have a publisher's statement wait at a point."""
        if statement.session not in self.publishers or (point == database.DRAWN and self.chance.random() < 0.8):
            return False
        clock.loop().timer(self.chance.expovariate(1 / self.step)).start(self._go_on, statement, point)
        return True

    def _go_on(self, statement: Statement, point: str) -> None:
        if not statement.done and statement.paused_at == point:
            self.resume(statement)

    # commits

    def add_message(self, transaction: Transaction, row: MessageRow) -> None:
        super().add_message(transaction, row)
        rows = self._rows.setdefault(transaction, [])
        rows.append(row)
        transaction.on_undo(lambda: rows.remove(row))

    def finish(self, transaction: Transaction) -> None:
        messages = []
        rings = [payload for _, payload in transaction.notifications if payload.startswith('["message"')]
        for row in sorted(self._rows.pop(transaction, ()), key=lambda row: row.id):
            message = self._messages.pop(row.data)
            message.id, message.prev_id, message.seen_at = row.id, row.prev_id, CLOCK.now
            message.rang = any(json.loads(payload)[2:7:4] == [row.id, row.data] for payload in rings)
            self.stream(row.stream).history.append(message)
            messages.append(message)
        ephemeral = self._ephemerals.pop(transaction, None)
        if ephemeral is not None:
            self.on_ephemeral(ephemeral)
        self._positions.append((CLOCK.now, self.wal.end if transaction.logged is None else transaction.logged))
        if messages:
            self.on_commit(messages)
        super().finish(transaction)  # last, because the commits that waited for its locks may follow at once

    def abort(self, transaction: Transaction) -> None:
        self._rows.pop(transaction, None)
        self._ephemerals.pop(transaction, None)
        super().abort(transaction)

    # publishing

    def publish(self, messages: Sequence[Message], *, kind: str, holds: float, fails: bool) -> None:
        """Publish messages in one transaction, in this greenlet.

        ``kind`` is ``now``, ``commit`` or ``repeatable``. ``holds`` is how long the transaction stays open after its statements.
        If it ``fails``, it is rolled back then.
        """
        with self._publisher() as session:
            session.begin("repeatable read" if kind == "repeatable" else "read committed")
            for run in _runs(messages):
                for message in run:
                    self._messages[message.data] = message
                    message.event = run[0].event
                result(self._statement(session, run, kind))
            gevent.sleep(holds)
            if fails:
                session.rollback()
            else:
                result(session.commit())

    @contextmanager
    def _publisher(self) -> Iterator[Session]:
        session = self.session()
        self.publishers.add(session)
        try:
            yield session
        except PgbusError:
            pass  # a deadlock, a serialization failure, or the session was lost: an application would try again
        finally:
            self.publishers.discard(session)
            if session.statement is None:
                session.close()

    def _statement(self, session: Session, run: list[Message], kind: str) -> Statement:
        first = run[0]
        about = first.event, first.visible_to, first.exclude
        if kind == "commit":
            outgoing = [Outgoing(each.stream, each.data, *about, None) for each in run]
            return session.run(lambda own: publishing.queue(self, own, outgoing))
        if len(run) > 1:
            return session.broadcast_many(first.stream, [each.data for each in run], *about)
        return session.broadcast(first.stream, first.data, *about)

    def whisper(self, message: Message) -> None:
        """Publish an ephemeral message in a transaction of its own, in this greenlet."""
        outgoing = Outgoing(message.stream, message.data, message.event, message.visible_to, message.exclude, None)

        def work(own: Transaction) -> Work:
            self._ephemerals[own] = message
            yield from publishing.ephemeral(self, own, outgoing)

        with self._publisher() as session:
            result(session.run(work))

    def impersonate(self, messages: Sequence[Message], forge: Callable[[str, int, int], str]) -> None:
        """Publish messages of a stream, each in a transaction that first sends a notification of its own, in this greenlet.

        ``forge`` makes its payload of the stream, the id of the message, and that of the one before it.
        """
        with self._publisher() as session:
            for message in messages:
                session.begin()
                self._messages[message.data] = message
                id = result(session.broadcast(message.stream, message.data, message.event))
                # The transaction has the lock of the stream, so nothing comes between the two.
                payload = forge(message.stream, id, self.head(message.stream, self.now(None)))
                result(session.notify(self.channel(message.stream), payload))
                result(session.commit())

    def notify(self, name: str, payload: str) -> None:
        """Send a notification by hand, in this greenlet."""
        session = self.session()
        try:
            result(session.notify(name, payload))
        finally:
            session.close()

    def prune(self, stream: str, keep: int) -> None:
        """Remove a stream's oldest messages, so that ``keep`` remain."""
        pruning = database.Pruning(self, wait=wait)
        pruning.prune([stream], [-1.0 if keep == 0 else 1e9], [max(1, keep)], 10_000)
        self.stream(stream).prune(self.horizon(stream, self.now(None)))

    # losses

    def go_back(self, seconds: float, how: Callable[[database.Server, int], None]) -> list[Message]:
        """Crash, or promote a standby, and lose the commits of the last ``seconds``. Returns the messages that are lost."""
        place = bisect_left(self._positions, CLOCK.now - seconds, key=lambda entry: entry[0])
        position = self.wal.end
        if seconds and place < len(self._positions):
            position = max(self.wal.first, self._positions[place][1] - 1)
        how(self, position)
        self._positions = [entry for entry in self._positions if entry[1] <= position]
        self.workers.clear()
        now, lost = self.now(None), []
        for name, stream in self.ledger.items():
            horizon = self.horizon(name, now)
            lost += stream.lose({row.id for row in self.messages.above(name, horizon, now)}, horizon)
        return lost


def _runs(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Split messages into runs of one stream, each of which one statement appends."""
    run: list[Message] = []
    for message in messages:
        if run and run[0].stream != message.stream:
            yield run
            run = []
        run.append(message)
    yield run


def result(statement: Statement) -> Any:
    """Wait in this greenlet until a statement has ended, and return its value."""
    wait(statement)
    return statement.result()


def wait(statement: Statement) -> None:
    """Wait in this greenlet until a statement has ended."""
    if not statement.done:
        ended = Event()
        statement.on_end = ended.set
        if not statement.done:
            ended.wait()
