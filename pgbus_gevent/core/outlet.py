"""Where a steward passes on messages, besides the notifications of PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Outlet(Protocol):
    """Gets every wake that the steward hears, and every message that it finds without having heard it.

    A message may come twice, and messages that were found may come after newer ones of their stream. Errors that these methods
    raise end the steward's task, which is started again; a fault that is to be expected is the outlet's to handle.
    """

    def heard(self, payloads: list[str]) -> None:
        """Take the payloads of notifications, in the order of their arrival. Must not wait."""

    def found(self, ids: Sequence[int]) -> None:
        """Take the ids of messages, in rising order. May wait, but the steward sweeps on only afterwards."""

    def restarted(self) -> None:
        """Note that messages may have been missed up to now, because the steward is new or too many came at once."""
