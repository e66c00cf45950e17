"""How long to wait for statements that also serve as a sign that the database lives."""

from __future__ import annotations

LIFE = 3.0
"""Seconds for a statement that costs almost nothing. If it is late, the session is at fault, not the statement."""

READ = 5.0
"""Seconds for a statement that is short unless it reads many rows or waits for a lock."""

CHANGE = 8.0
"""Seconds for a statement that changes many rows."""

_MOST = 3600.0


class Patience:
    """A timeout that starts at ``first`` seconds and doubles each time it was too short although the database answered others.

    So a dead session is noticed soon, and a slow statement is not cut off forever: in the end it gets the whole statement
    timeout.
    """

    def __init__(self, first: float, *, waits: bool = False) -> None:
        self.first = first
        self.seconds = first
        self.waits = waits
        """Whether nobody notices if the statement comes a little later, so that it need not open a session if one is busy."""

    def answered(self) -> None:
        """Go back to the first timeout, because the statement was answered."""
        self.seconds = self.first

    def expired(self) -> None:
        """Double the timeout, because the statement was not answered although the database lives."""
        self.seconds = min(2 * self.seconds, _MOST)
