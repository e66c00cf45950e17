"""Says whether a worker runs, and whether it takes clients in."""

from __future__ import annotations

from .pulse import Pulse
from .task import Task


class Health:
    """The health of a worker, derived from its tasks, from the pulse of its database, and from ``draining``."""

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse
        self.tasks: dict[str, Task] = {}
        self.draining = False

    @property
    def alive(self) -> bool:
        """Whether every task runs."""
        return all(task.running for task in self.tasks.values())

    @property
    def refusing(self) -> str | None:
        """Why every new client is refused: ``restart``, ``unavailable``, or None.

        A short absence of the database is not a reason. Clients that come then wait for it.
        """
        if self.draining:
            return "restart"
        return "unavailable" if not self.alive or self.pulse.away else None

    @property
    def trouble(self) -> str:
        """A text about what is wrong with the database or its schema; empty if nothing is wrong."""
        return self.pulse.trouble
