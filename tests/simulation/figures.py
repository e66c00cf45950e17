"""What is counted over simulations."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Figures:
    """The counts. They are those of one simulation, or of many."""

    deliveries: int = 0
    ephemerals: int = 0
    gaps: int = 0
    unproven: int = 0
    worst_idle: float = 0.0
    given_up: int = 0
    broken: dict[str, int] = field(default_factory=dict)

    def broke(self, kind: str, times: int = 1) -> None:
        """Count a promise that was broken."""
        self.broken[kind] = self.broken.get(kind, 0) + times

    def add(self, other: Figures) -> None:
        """Add those of another simulation."""
        self.deliveries += other.deliveries
        self.ephemerals += other.ephemerals
        self.gaps += other.gaps
        self.unproven += other.unproven
        self.worst_idle = max(self.worst_idle, other.worst_idle)
        self.given_up += other.given_up
        for kind, times in other.broken.items():
            self.broke(kind, times)

    def text(self) -> str:
        """Return them as text."""
        kinds = ("lost", "repeated", "order", "forbidden", "gap", "idle", "ephemeral", "worker")
        broken = ", ".join(f"{self.broken.get(kind, 0)} {NAMES[kind]}" for kind in kinds)
        return (
            f"{self.deliveries:,} deliveries and {self.ephemerals:,} ephemeral ones: {broken};"
            f" {self.gaps:,} gaps told, worst idle time {self.worst_idle:.1f} s, {self.given_up} seeds given up"
        )


NAMES = {
    "lost": "lost", "repeated": "repeated", "order": "out of order", "forbidden": "forbidden", "gap": "wrong or missing gaps",
    "idle": "left behind", "ephemeral": "ephemeral ones lost or out of order", "worker": "failures of workers",
}  # fmt: skip
"""The kinds of broken promises."""
