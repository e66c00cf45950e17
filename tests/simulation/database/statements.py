"""Statements: each is a generator that yields where it may have to wait. None of them waits by itself."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from pgbus_gevent.errors import PgbusError

from .locks import REQUEUE, STREAM, Key

if TYPE_CHECKING:
    from .session import Session
    from .transactions import Transaction

Work = Generator["Key | str", None, Any]
"""Yields the key of a lock to wait for it, or a text, the name of a point at which the server may pause the statement."""

DRAWN = "drawn"
"""An id has been drawn; the row has not been written, so the transaction may not have a number yet."""
TRIGGERED = "triggered"
"""The commit has run its triggers, and holds the locks and bells that they took. Its WAL record is not written yet."""
LOGGED = "logged"
"""The commit is in the WAL, and nobody sees it yet: it waits for the disk, or for a standby."""

DEADLOCK = "40P01"
LOCK_TIMEOUT = "55P03"
CANCELLED = "57014"
SERIALIZATION = "40001"


class Blocked(Exception):
    """The result of a statement was asked for, and the statement still waits."""


class Statement:
    """A statement that runs, waits or has ended. ``done`` says that it has ended; :meth:`result` then returns its value.

    While it waits for a lock, ``waits_for`` is its key. While it is paused, ``paused_at`` is the name of the point.
    """

    def __init__(self, session: Session, transaction: Transaction, work: Work, now: float) -> None:
        self.session = session
        self.transaction = transaction
        self.done = False
        self.error: Exception | None = None
        self.waits_for: Key | None = None
        self.paused_at: str | None = None
        self.waits_since = now
        self.ends_transaction = False
        self.on_end: Callable[[], object] = lambda: None
        """Called when the statement has ended, for a caller that waits."""
        self._work = work
        self._value: Any = None

    def result(self) -> Any:
        """Return the value, or raise the error. Raises :class:`Blocked` if the statement has not ended."""
        if not self.done:
            raise Blocked(self.waits_for or self.paused_at)
        if self.error is not None:
            raise self.error
        return self._value

    def queued_at(self, now: float) -> float:
        """Return since when it waits at its place in the queue."""
        if self.waits_for is not None and self.waits_for[0] == STREAM:
            return self.waits_since + REQUEUE * max(0, (now - self.waits_since) // REQUEUE)
        return self.waits_since

    def advance(self, error: Exception | None = None) -> Key | str | None:
        """Run to the next point at which it yields, and return what it yielded; None if it has ended."""
        self.waits_for = self.paused_at = None
        try:
            return self._work.throw(error) if error is not None else next(self._work)
        except StopIteration as end:
            self._end(end.value, None)
        except PgbusError as raised:
            self._end(None, raised)
        return None

    def _end(self, value: Any, error: Exception | None) -> None:
        self.done, self._value, self.error = True, value, error

    def lose(self, error: Exception) -> None:
        """End because the session is lost. What the statement did is undone by the server."""
        self._work.close()
        self.waits_for = self.paused_at = None
        self._end(None, error)
