"""Sessions: each runs one statement at a time, in a transaction of its own or in one that it has begun."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable

from . import deferred, publishing
from .statements import Blocked, Statement, Work
from .transactions import READ_COMMITTED, Snapshot, Transaction

if TYPE_CHECKING:
    from .server import Server


class Session:
    """A session of the server. Its methods return a :class:`Statement`, which may wait; those without a result never wait.

    ``lock_timeout`` is in seconds, 0 for none; :meth:`Server.expire` applies it.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transaction: Transaction | None = None
        self.statement: Statement | None = None
        """The statement that runs or waits."""
        self.lock_timeout = 0.0
        self.doom: Exception | None = None
        """Raised in place of what the next statement does, as a serialization failure that the model does not know of."""
        self.lost: Exception | None = None

    # transactions

    def begin(self, isolation: str = READ_COMMITTED) -> None:
        self._check_idle()
        assert self.transaction is None, "there is a transaction already"
        self.transaction = self.server.open(self, isolation)

    def commit(self) -> Statement:
        """Run the triggers of the commit, and commit. A transaction that has failed is rolled back instead."""
        transaction = self._open_transaction()
        if transaction.failed:
            self.rollback()
            return self.server.start(self, None, lambda _: deferred.nothing())
        return self.server.start(self, transaction, lambda own: deferred.commit(self.server, own), ends=True)

    def rollback(self) -> None:
        transaction = self._open_transaction()
        self._check_idle()
        self.transaction = None
        if transaction in self.server.open_transactions:
            self.server.abort(transaction)

    def savepoint(self, name: str) -> None:
        self._good_transaction().savepoint(name)

    def rollback_to(self, name: str) -> None:
        transaction = self._open_transaction()
        self._check_idle()
        self._check_savepoint(transaction, name)
        transaction.rollback_to(name)
        self.server.give_back(transaction)

    def release(self, name: str) -> None:
        transaction = self._good_transaction()
        self._check_savepoint(transaction, name)
        transaction.release(name)

    def constraints_immediate(self) -> Statement:
        """SET CONSTRAINTS ALL IMMEDIATE: run the triggers of the commit now, and from now on with each statement."""
        return self.run(lambda transaction: deferred.immediate(self.server, transaction))

    def _check_savepoint(self, transaction: Transaction, name: str) -> None:
        if not transaction.has(name):
            self.server.fail_transaction(transaction)
            raise DatabaseError(f'savepoint "{name}" does not exist', "3B001")

    def _open_transaction(self) -> Transaction:
        self._check_lost()
        assert self.transaction is not None, "there is no transaction"
        return self.transaction

    def _good_transaction(self) -> Transaction:
        transaction = self._open_transaction()
        self._check_idle()
        if transaction.failed:
            raise DatabaseError("current transaction is aborted", "25P02")
        return transaction

    def _check_idle(self) -> None:
        self._check_lost()
        if self.statement is not None:
            raise Blocked("the session still runs a statement")

    def _check_lost(self) -> None:
        if self.lost is not None:
            raise self.lost

    # statements

    def run(self, work: Callable[[Transaction], Work]) -> Statement:
        """Start a statement; in a transaction of its own if none was begun."""
        self._check_idle()
        return self.server.start(self, self.transaction, work)

    def read(self, question: Callable[[Snapshot], Any]) -> Any:
        """Return the answer to a question about the snapshot. Reading never waits."""

        def work(transaction: Transaction) -> Work:
            return question(self.server.snapshot(transaction))
            yield  # it is a generator

        return self.run(work).result()

    def close(self) -> None:
        """End the session. An open transaction is rolled back. Idempotent."""
        if self in self.server.sessions:
            self.server.end(self, DatabaseUnavailable("the session was closed"))

    def broadcast(
        self,
        stream: str,
        data: str,
        event: str | None = None,
        visible_to: str | None = None,
        exclude: str | None = None,
        key: str | None = None,
    ) -> Statement:
        message = publishing.Outgoing(stream, data, event, visible_to, exclude, key)
        return self.run(lambda transaction: publishing.broadcast(self.server, transaction, message))

    def broadcast_many(
        self,
        stream: str,
        data: list[str],
        event: str | None = None,
        visible_to: str | None = None,
        exclude: str | None = None,
        keys: list[str | None] | None = None,
    ) -> Statement:
        messages = [
            publishing.Outgoing(stream, text, event, visible_to, exclude, None if keys is None else keys[n])
            for n, text in enumerate(data)
        ]
        return self.run(
            lambda transaction: publishing.broadcast_many(
                self.server, transaction, messages, with_keys=keys is not None
            )
        )

    def broadcast_on_commit(
        self,
        stream: str,
        data: str,
        event: str | None = None,
        visible_to: str | None = None,
        exclude: str | None = None,
        key: str | None = None,
    ) -> Statement:
        message = publishing.Outgoing(stream, data, event, visible_to, exclude, key)
        return self.run(lambda transaction: publishing.queue(self.server, transaction, [message]))

    def broadcast_ephemeral(
        self,
        stream: str,
        data: str,
        event: str | None = None,
        visible_to: str | None = None,
        exclude: str | None = None,
    ) -> Statement:
        message = publishing.Outgoing(stream, data, event, visible_to, exclude)
        return self.run(lambda transaction: publishing.ephemeral(self.server, transaction, message))

    def disconnect(self, owner: str) -> Statement:
        return self.run(lambda transaction: publishing.disconnect(self.server, transaction, owner))

    def notify(self, channel: str, payload: str) -> Statement:
        """NOTIFY on any channel, as any role can."""
        return self.run(lambda transaction: publishing.notify_by_hand(transaction, channel, payload))
