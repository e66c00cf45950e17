"""A history: everything that was decided before a simulation, as data that can be written, read and shortened."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class History:
    """``operations`` are lists of a time in seconds, the name of an operation, and its arguments. ``seed`` decides the rest."""

    seed: int
    workers: int
    settings: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    operations: list[list[Any]] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    planted: str = ""

    def write(self, path: Path) -> None:
        """Write it as JSON, an operation a line."""
        facts = asdict(self)
        lines = ",\n  ".join(json.dumps(operation) for operation in facts.pop("operations"))
        head = json.dumps(facts, indent=1)[:-2]
        path.write_text(f'{head},\n "operations": [\n  {lines}\n ]\n}}\n', encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> History:
        """Read one."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
