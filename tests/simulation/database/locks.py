"""Advisory locks: all are exclusive, and last until the end of the transaction or of the subtransaction that took them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .statements import Statement
    from .transactions import Transaction

Key = tuple[str, int]

STREAM = "stream"
"""The class of the locks of appends; the number is that of the stream."""
BELL = "bell"
"""The two bells of the doorbell, 0 and 1."""
PRUNING: Key = ("pruning", 0)
ELECTION: Key = ("election", 0)
NOTIFYING: Key = ("notifying", 0)
"""PostgreSQL's own lock of the notification queue: from before the commit's WAL record until the transaction has ended."""

REQUEUE = 5.0
"""Seconds after which a wait for a stream begins anew, behind the others: see ``pgbus._wait_for``."""


class Locks:
    """Who holds which lock, and who waits for it, in the order in which it will be granted."""

    def __init__(self) -> None:
        self._holders: dict[Key, Transaction] = {}
        self._queues: dict[Key, list[Statement]] = {}

    def take(self, key: Key, transaction: Transaction) -> bool:
        """Take a lock, unless another transaction holds it."""
        holder = self._holders.setdefault(key, transaction)
        if holder is not transaction:
            return False
        if key not in transaction.locks:
            transaction.locks.append(key)
            transaction.on_undo(lambda: transaction.locks.remove(key))
        return True

    def wait(self, key: Key, statement: Statement) -> None:
        self._queues.setdefault(key, []).append(statement)

    def leave(self, key: Key, statement: Statement) -> None:
        """Wait no longer."""
        queue = self._queues.get(key, [])
        if statement in queue:
            queue.remove(statement)

    def holder(self, key: Key) -> Transaction | None:
        return self._holders.get(key)

    def queue(self, key: Key, now: float) -> list[Statement]:
        """Return who waits, in the order of the grants."""
        return sorted(self._queues.get(key, []), key=lambda statement: statement.queued_at(now))

    def give_back(self, transaction: Transaction, now: float) -> list[Statement]:
        """Give back the locks that the transaction does not have any more. Returns the statements that got one, in order."""
        woken: list[Statement] = []
        for key in [key for key, holder in self._holders.items() if holder is transaction]:
            if key in transaction.locks:
                continue
            del self._holders[key]
            queue = self.queue(key, now)
            if queue:
                self.leave(key, queue[0])
                self.take(key, queue[0].transaction)
                woken.append(queue[0])
            if not self._queues.get(key):
                self._queues.pop(key, None)
        return woken
