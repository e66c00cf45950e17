"""The server: its tables and sequences, who holds what, the ids, and the order of the commits."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from pgbus_gevent.errors import DatabaseError

from . import deferred, ids
from .listening import Ear
from .locks import Locks
from .sequences import Sequence, Wal
from .session import Session
from .statements import DEADLOCK, LOCK_TIMEOUT, Statement, Work
from .tables import EphemeralRow, HorizonRow, Keyed, MessageRow, Messages, RevocationRow
from .transactions import Snapshot, Transaction, Version

_Key = TypeVar("_Key")
_Row = TypeVar("_Row", bound=Version)


class Server:
    """A PostgreSQL with the schema ``pgbus``. It reads no clock: ``clock`` returns Unix seconds.

    ``lock_number`` is the hash of streams. ``pause`` is asked at the points at which a statement can be paused; if it returns
    True, the statement waits until :meth:`resume`. ``choose`` picks which of several statements that were woken at once goes on
    first, by its place. With ``breaks_deadlocks``, a statement that would close a circle of waits fails at once.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        lock_number: Callable[[str], int] = ids.lock_number,
        pause: Callable[[Statement, str], bool] = lambda statement, point: False,
        choose: Callable[[int], int] = lambda number: 0,
        breaks_deadlocks: bool = True,
        seed: int = 0,
    ) -> None:
        self.clock, self.lock_number = clock, lock_number
        self.pause, self.choose, self.breaks_deadlocks = pause, choose, breaks_deadlocks
        self._random = random.Random(seed)
        self.started_at = clock()
        self.file = self._random.getrandbits(32)
        self.doorbell, self.control = f"pgbus_{seed:032x}", f"pgbus_{seed:032x}c"
        self.can_notify = True
        """Whether the notification queue is less than half full."""
        self.queue_pages = 1_048_576
        self.csn = 0
        self.next_xid = 1000
        self.wal = Wal()
        self._make_sequences()
        self.messages = Messages()
        self.horizons: Keyed[str, HorizonRow] = Keyed()
        self.ephemerals: Keyed[int, EphemeralRow] = Keyed()
        self.revocations: Keyed[int, RevocationRow] = Keyed()
        self.locks = Locks()
        self.ears: list[Ear] = []
        self.sessions: list[Session] = []
        self.open_transactions: list[Transaction] = []
        self.jumps = 0
        """How often the ids were moved."""
        self._ready: deque[Statement] = deque()
        self._running = False

    def _make_sequences(self) -> None:
        def sequence(name: str, start: int = 0, *, logged: bool = True) -> Sequence:
            found[name] = Sequence(name, self.wal, start, logged=logged)
            return found[name]

        found: dict[str, Sequence] = {}
        self.message_ids = sequence("message_ids", round(self.clock() * 1e6))
        self.floor = sequence("floor", 1)
        self.jumped = sequence("jumped", logged=False)
        self.highest = sequence("highest", logged=False)
        self.forgotten = sequence("forgotten")
        self.ephemeral_ids = sequence("ephemeral_ids", 1)
        self.last_ring, self.ring_pause = sequence("last_ring"), sequence("ring_pause")
        self.steward = sequence("steward", logged=False)
        self.steward_sign = sequence("steward_sign", logged=False)
        self.steward_company = sequence("steward_company", logged=False)
        self.sequences = found

    # sessions and statements

    def session(self) -> Session:
        session = Session(self)
        self.sessions.append(session)
        return session

    def end(self, session: Session, error: Exception) -> None:
        """End a session, as if its backend were terminated. A commit that is in the WAL is completed."""
        self.sessions.remove(session)
        session.lost = error
        statement, transaction = session.statement, session.transaction
        if statement is not None:
            if statement.waits_for is not None:
                self.locks.leave(statement.waits_for, statement)
            transaction = statement.transaction
            statement.lose(error)
            session.statement = None
        session.transaction = None
        if transaction is not None and transaction in self.open_transactions:
            if transaction.logged is not None:
                self.finish(transaction)
            else:
                self.abort(transaction)
        if statement is not None:
            statement.on_end()
        self.run_ready()

    def listen(self) -> Ear:
        """Return a session that hears notifications: at first on no channel."""
        ear = Ear(self)
        self.ears.append(ear)
        return ear

    def open(self, session: Session | None, isolation: str) -> Transaction:
        transaction = Transaction(session, isolation)
        self.open_transactions.append(transaction)
        return transaction

    def start(
        self,
        session: Session,
        transaction: Transaction | None,
        work: Callable[[Transaction], Work],
        *,
        ends: bool = False,
    ) -> Statement:
        """Run a statement as far as it goes. Without a transaction, it has one of its own; ``ends`` says that it is a COMMIT."""
        own = transaction or self.open(session, "read committed")
        if own.failed:
            raise DatabaseError(
                "current transaction is aborted, commands ignored until end of transaction block", "25P02"
            )
        self.snapshot(own)

        def alone() -> Work:
            value = yield from work(own)
            yield from deferred.commit(self, own)
            return value

        statement = Statement(session, own, work(own) if transaction else alone(), self.clock())
        statement.ends_transaction = ends or transaction is None
        session.statement = statement
        self._ready.append(statement)
        self.run_ready()
        return statement

    def run_ready(self) -> None:
        """Run the statements that do not wait any more, one after the other."""
        if self._running:
            return
        self._running = True
        try:
            while self._ready:
                place = self.choose(len(self._ready)) if len(self._ready) > 1 else 0
                statement = self._ready[place]
                del self._ready[place]
                self._advance(statement)
        finally:
            self._running = False

    def _advance(self, statement: Statement, error: Exception | None = None) -> None:
        while not statement.done:
            session = statement.session
            request = statement.advance(error or session.doom)
            error = session.doom = None
            if isinstance(request, str):
                if self.pause(statement, request):
                    statement.paused_at = request
                    return
            elif request is not None and not self.locks.take(request, statement.transaction):
                statement.waits_for, statement.waits_since = request, self.clock()
                if self.breaks_deadlocks and self.in_deadlock(statement):
                    error = DatabaseError("deadlock detected", DEADLOCK)
                    continue
                self.locks.wait(request, statement)
                return
        self._ended(statement)

    def _ended(self, statement: Statement) -> None:
        session, transaction = statement.session, statement.transaction
        session.statement = None
        if statement.ends_transaction:
            session.transaction = None
            if statement.error is not None:
                self.abort(transaction)
        elif statement.error is not None:
            self.fail_transaction(transaction)
        statement.on_end()

    def resume(self, statement: Statement) -> None:
        """Let a statement go on that was paused."""
        assert statement.paused_at is not None
        statement.paused_at = None
        self._ready.append(statement)
        self.run_ready()

    def fail(self, statement: Statement, error: Exception) -> None:
        """End a statement that waits or is paused: it was cancelled, its time is over, or it is the victim of a deadlock."""
        assert not statement.done
        if statement.waits_for is not None:
            self.locks.leave(statement.waits_for, statement)
        self._advance(statement, error)
        self.run_ready()

    def expire(self) -> None:
        """End the waits that are longer than their session's ``lock_timeout``."""
        for session in list(self.sessions):
            statement = session.statement
            if statement is None or statement.waits_for is None or not session.lock_timeout:
                continue
            if self.clock() - statement.waits_since >= session.lock_timeout:
                self.fail(statement, DatabaseError("canceling statement due to lock timeout", LOCK_TIMEOUT))

    def blockers(self, statement: Statement) -> list[Session]:
        """Return the sessions for which a statement waits: the one that has the lock, and those that wait before it."""
        key = statement.waits_for
        holder = None if key is None else self.locks.holder(key)
        if key is None or holder is None:
            return []
        queue = self.locks.queue(key, self.clock())
        before = queue[: queue.index(statement)] if statement in queue else queue
        return [found for found in (holder.session, *(other.session for other in before)) if found is not None]

    def in_deadlock(self, statement: Statement) -> bool:
        """Whether the statement waits, through others, for itself."""
        seen: list[Statement] = []
        current: Statement | None = statement
        while current is not None and current.waits_for is not None and current not in seen:
            seen.append(current)
            holder = self.locks.holder(current.waits_for)
            current = None if holder is None or holder.session is None else holder.session.statement
        return current is statement and bool(seen)

    # transactions

    def now(self, own: Transaction | None) -> Snapshot:
        return Snapshot(self.csn, own, self.ended_below)

    def snapshot(self, transaction: Transaction) -> Snapshot:
        """Return what the next statement of a transaction sees."""
        if not transaction.has_one_snapshot:
            return self.now(transaction)
        if transaction.snapshot is None:
            transaction.snapshot = self.now(transaction)
        return transaction.snapshot

    def assign_xid(self, transaction: Transaction) -> int:
        if transaction.xid is None:
            transaction.xid, self.next_xid = self.next_xid, self.next_xid + 1
        return transaction.xid

    @property
    def ended_below(self) -> int:
        """The lowest number of a transaction that has not ended."""
        return min((one.xid for one in self.open_transactions if one.xid is not None), default=self.next_xid)

    def log(self, transaction: Transaction) -> None:
        """Write the commit into the WAL."""
        if transaction.xid is not None:
            transaction.logged = self.wal.append("", transaction.xid)

    def finish(self, transaction: Transaction) -> None:
        """Make a commit visible, give back its locks, and deliver its notifications."""
        self.csn += 1
        transaction.csn = self.csn
        self._close(transaction)
        for name, payload in transaction.notifications:
            for ear in self.ears:
                ear.hear(name, payload)

    def abort(self, transaction: Transaction) -> None:
        transaction.undo_all()
        self._close(transaction)
        self.run_ready()

    def fail_transaction(self, transaction: Transaction) -> None:
        """Undo the transaction, or its innermost subtransaction, after an error. It stays open, and does nothing any more."""
        if transaction.failed:
            return
        transaction.failed = True
        if transaction.savepoints:
            transaction.undo_innermost()
            self.give_back(transaction)
        else:
            self.abort(transaction)

    def _close(self, transaction: Transaction) -> None:
        self.open_transactions.remove(transaction)
        transaction.locks.clear()
        self.give_back(transaction)

    def give_back(self, transaction: Transaction) -> None:
        self._ready.extend(self.locks.give_back(transaction, self.clock()))
        self.run_ready()

    # rows

    def add_message(self, transaction: Transaction, row: MessageRow) -> None:
        self.assign_xid(transaction)
        self.messages.add(row)
        transaction.on_undo(lambda: self.messages.remove(row))
        if str(row.id) == transaction.setting("ring"):
            deferred.add(transaction, row)

    def add(self, table: Keyed[_Key, _Row], key: _Key, row: _Row, transaction: Transaction) -> None:
        self.assign_xid(transaction)
        table.add(key, row)
        transaction.on_undo(lambda: table.remove(key, row))

    def remove(self, row: Version, transaction: Transaction) -> None:
        self.assign_xid(transaction)
        row.died = transaction
        transaction.on_undo(lambda: setattr(row, "died", None))

    # ids

    def draw(self, sequence: Sequence, transaction: Transaction) -> int:
        before = self.wal.end
        value = sequence.next()
        if self.wal.end > before:
            self.assign_xid(transaction)
        return value

    def random_id(self) -> int:
        return self._random.getrandbits(52)

    def head(self, stream: str, snapshot: Snapshot) -> int:
        """Return the id of the stream's newest message, or its horizon."""
        horizon = self.horizon(stream, snapshot)
        return next((row.id for row in self.messages.newest(stream, horizon, snapshot)), horizon)

    def horizon(self, stream: str, snapshot: Snapshot) -> int:
        row = self.horizons.get(stream, snapshot)
        return 0 if row is None else row.id
