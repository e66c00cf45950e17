"""The results as tables with aligned columns. The numbers in a row are the medians of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from .scenarios import Metrics

TITLES = {
    "clients": "clients",
    "open_s": "open s",
    "open_cpu_s": "open CPU s",
    "kb_per_client": "kB each",
    "cpu_percent": "CPU %",
    "load_cpu_percent": "clients' CPU %",
    "deliveries": "deliveries",
    "lost": "lost",
    "per_second": "deliveries/s",
    "cpu_per_million": "CPU s/M",
    "cpu_all_per_million": "with database",
    "load_cpu_per_million": "clients' CPU s/M",
    "publish_p50": "publish p50 ms",
    "first_p50": "first p50 ms",
    "answers_per_second": "answers/s",
    "p50": "p50 ms",
    "p90": "p90 ms",
    "p99": "p99 ms",
    "max": "max ms",
}
"""The titles of the columns, by metric. A metric that is not listed is its own title, with spaces."""


@dataclass
class Result:
    """A row: the runs of a scenario with one server, in one variant."""

    scenario: str
    server: str
    variant: str
    runs: list[Metrics] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " ".join(filter(None, [self.server, self.variant]))

    @property
    def metrics(self) -> Metrics:
        """The medians. A metric that is missing in any run is left out."""
        names = [name for name in self.runs[0] if all(run.get(name) is not None for run in self.runs)]
        return {name: median(run[name] for run in self.runs) for name in names}

    def as_json(self) -> dict[str, Any]:
        rounded = {name: float(f"{value:.4g}") for name, value in self.metrics.items()}
        return {
            "scenario": self.scenario, "server": self.server, "variant": self.variant, "runs": len(self.runs), **rounded,
        }  # fmt: skip


def table(results: Iterable[Result], columns: Sequence[str]) -> str:
    """Return the rows of one scenario below a line of titles."""
    lines = [["", *(TITLES.get(name, name.replace("_", " ")) for name in columns)]]
    for result in results:
        metrics = result.metrics
        lines.append([result.name, *(number(metrics.get(name)) for name in columns)])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for first, *cells in lines
    )


def number(value: float | None) -> str:
    """Format a value with three significant digits and separated thousands."""
    if value is None:
        return "-"
    if isinstance(value, int) or value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
