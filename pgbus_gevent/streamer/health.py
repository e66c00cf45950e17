"""Whether a worker runs, and whether it takes clients in."""

from __future__ import annotations

from .pulse import Pulse
from .task import Task


class Health:
    """Derived from the worker's tasks, from the pulse of its database, and from whether it is ending (``draining``)."""

    def __init__(self, pulse: Pulse) -> None:
        self.pulse = pulse
        self.tasks: dict[str, Task] = {}
        self.draining = False

    @property
    def alive(self) -> bool:
        """Whether every part runs."""
        return all(task.running for task in self.tasks.values())

    @property
    def refusing(self) -> str | None:
        """Why every new client is refused, or None: ``restart`` or ``unavailable``.

        A short absence of the database is no reason: clients that come wait for it.
        """
        if self.draining:
            return "restart"
        return "unavailable" if not self.alive or self.pulse.away else None

    @property
    def trouble(self) -> str:
        """What is wrong with the database or its schema; empty if nothing is."""
        return self.pulse.trouble
