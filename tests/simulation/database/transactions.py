"""Transactions: what they see, what they hold, and how they are undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .deferred import Trigger
    from .locks import Key
    from .publishing import Outgoing
    from .session import Session

READ_COMMITTED = "read committed"
ONE_SNAPSHOT = ("repeatable read", "serializable")
"""The isolation levels in which all statements of a transaction have the snapshot of the first one."""


class Version:
    """A version of a row: the transaction that wrote it, and the one that removed or replaced it, if any has."""

    __slots__ = ("born", "died")

    def __init__(self, born: Transaction) -> None:
        self.born = born
        self.died: Transaction | None = None


class Snapshot(NamedTuple):
    """What a statement sees: the commits up to the number ``csn``, and what its own transaction has done.

    ``xmin`` is the lowest number of a transaction that had not ended then.
    """

    csn: int
    own: Transaction | None
    xmin: int = 0

    def sees(self, row: Version) -> bool:
        return self._includes(row.born) and (row.died is None or not self._includes(row.died))

    def _includes(self, transaction: Transaction) -> bool:
        return transaction is self.own or (transaction.csn is not None and transaction.csn <= self.csn)


@dataclass(eq=False)
class Savepoint:
    """Where a subtransaction began: the length of the undo list, and copies of what is set for one transaction."""

    name: str
    undo: int
    settings: dict[str, str]
    notes: int


@dataclass(eq=False)
class Transaction:
    """One transaction. ``csn`` is its number in the order of the commits, None before; ``logged`` is the position of its commit
    in the WAL. ``xid`` is the number that PostgreSQL gives to a transaction at its first write."""

    session: Session | None
    isolation: str = READ_COMMITTED
    xid: int | None = None
    csn: int | None = None
    logged: int | None = None
    snapshot: Snapshot | None = None
    settings: dict[str, str] = field(default_factory=dict)
    notifications: list[tuple[str, str]] = field(default_factory=list)
    triggers: list[Trigger] = field(default_factory=list)
    outbox: list[Outgoing] = field(default_factory=list)
    immediate: bool = False  # SET CONSTRAINTS ALL IMMEDIATE
    locks: list[Key] = field(default_factory=list)
    savepoints: list[Savepoint] = field(default_factory=list)
    failed: bool = False
    _undo: list[Callable[[], None]] = field(default_factory=list)

    @property
    def has_one_snapshot(self) -> bool:
        return self.isolation in ONE_SNAPSHOT

    def on_undo(self, undo: Callable[[], None]) -> None:
        """Call ``undo`` if the transaction, or the subtransaction that is open now, is rolled back."""
        self._undo.append(undo)

    def setting(self, name: str) -> str:
        return self.settings.get(name, "")

    def savepoint(self, name: str) -> None:
        self.savepoints.append(Savepoint(name, len(self._undo), dict(self.settings), len(self.notifications)))

    def rollback_to(self, name: str) -> None:
        """Undo what was done since the savepoint, which stays. The locks that were taken since are given back."""
        place = self._place(name)
        savepoint = self.savepoints[place]
        self._undo_to(savepoint.undo)
        del self.notifications[savepoint.notes :]
        self.settings = dict(savepoint.settings)
        del self.savepoints[place + 1 :]
        self.failed = False

    def release(self, name: str) -> None:
        del self.savepoints[self._place(name) :]

    def undo_all(self) -> None:
        self._undo_to(0)
        self.notifications.clear()

    def undo_innermost(self) -> None:
        """Undo what was done since the last savepoint, after an error."""
        savepoint = self.savepoints[-1]
        self._undo_to(savepoint.undo)
        del self.notifications[savepoint.notes :]
        self.settings = dict(savepoint.settings)

    def has(self, name: str) -> bool:
        """Whether there is a savepoint of this name."""
        return any(savepoint.name == name for savepoint in self.savepoints)

    def _undo_to(self, length: int) -> None:
        while len(self._undo) > length:
            self._undo.pop()()

    def _place(self, name: str) -> int:
        return max(place for place, savepoint in enumerate(self.savepoints) if savepoint.name == name)


GENESIS = Transaction(None, csn=0, logged=0)
"""The transaction that wrote the rows of a restored backup."""
