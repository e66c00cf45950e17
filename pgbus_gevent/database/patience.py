"""How long an answer is waited for that tells, beside what was asked, that the database lives."""

from __future__ import annotations

LIFE = 3.0
"""Seconds for a statement that costs next to nothing: that it is late says something of the session, not of the statement."""

READ = 5.0
"""Seconds for statements that are short unless there is much to read, or a lock to wait for."""

CHANGE = 8.0
"""Seconds for those that change many rows."""

_MOST = 3600.0


class Patience:
    """Starts with ``first`` seconds, and doubles where the statement needed more and the database answered others meanwhile.

    So a session that has died is noticed soon, and a statement that takes long is not cut off again and again: in the end it gets
    all of the statement timeout.
    """

    def __init__(self, first: float) -> None:
        self.first = first
        self.seconds = first

    def answered(self) -> None:
        """The statement was answered."""
        self.seconds = self.first

    def expired(self) -> None:
        """It was not, though the database lives."""
        self.seconds = min(2 * self.seconds, _MOST)
