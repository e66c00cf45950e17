"""The goals of the delivery, as ratios between rows of one run or as bounds. They are printed below each scenario's table.

They apply to scenarios at their default size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

from .lab import OURS
from .report import Result, number

Row = tuple[str, str]
"""Server and variant."""

ME: Row = (OURS, "")


class Goal(NamedTuple):
    """A bound for ``metric`` of ``row``: ``at_most`` or ``at_least``, absolute, or as a multiple of the metric of ``other``."""

    scenario: str
    metric: str
    row: Row = ME
    other: Row | None = None
    other_metric: str | None = None
    at_most: float | None = None
    at_least: float | None = None


_SMALL = "small, beside the large one"
_FAR, _NEAR = (OURS, "beyond the ring"), (OURS, "within the ring")
_CROWD = (OURS, "broadcast, 64")

GOALS = (
    Goal("idle", "kb_per_client", at_most=1.5),
    Goal("idle", "open_s", at_most=3.0),
    Goal("idle", "cpu_percent", at_most=1.0),
    Goal("fanout", "per_second", other=("nchan", ""), at_least=1.5),
    Goal("fanout", "per_second", other=("pg-sse", ""), at_least=10.0),
    Goal("fanout", "cpu_per_million", other=("loop", ""), at_most=1.0),
    Goal("paced", "p50", other=("nchan", ""), at_most=1.3),
    Goal("paced", "p99", other=("nchan", ""), at_most=1.5),
    Goal("paced", "cpu_all_per_million", other=("nchan", ""), at_most=1.2),
    Goal("paced", "first_p50", at_most=2.0),
    Goal("many", "p50", at_most=5.0),
    Goal("many", "p99", at_most=50.0),
    Goal("replay", "queries", _NEAR, at_most=10),
    Goal("replay", "queries", _FAR, _FAR, "pages", at_most=1.0),
    *(
        Goal("replay", metric, row, at_most=bound)
        for row in (_NEAR, _FAR)
        for metric, bound in (("caught_up_s", 5.0), ("live_p99", 100.0))
    ),
    Goal("slow", "p99", (OURS, "5 % never read"), (OURS, "none slow"), at_most=1.5),
    Goal("slow", "kb_per_slow", (OURS, "5 % never read"), at_most=256),
    Goal("mixed", "p99", (OURS, _SMALL), (OURS, "small, alone"), at_most=3.0),
    Goal("publish", "appends_per_second", _CROWD, (OURS, "plain inserts, 64"), at_least=0.5),
    Goal("publish", "appends_per_second", _CROWD, (OURS, "a NOTIFY each, 64"), at_least=4.0),
    Goal("publish", "appends_per_second", (OURS, "broadcast, 64, 100 listening"), _CROWD, at_least=0.8),
    Goal("publish", "appends_per_second", (OURS, "batches, 4"), at_least=100_000),
    Goal("publish", "lost", (OURS, "broadcast, 64, delivered"), at_most=0),
    Goal("publish", "all_after_ms", (OURS, "broadcast, 64, delivered"), at_most=1000),
    Goal("requests", "p50", (OURS, "healthz"), at_most=5.0),
    Goal("requests", "p50", (OURS, "broadcast"), at_most=20.0),
    Goal("polls", "kb_per_client", (OURS, "poll"), (OURS, "stream"), at_most=1.0),
    Goal("fleet", "statements_per_second", (OURS, "steward, 100, 10/s"), at_most=200),
    Goal("fleet", "database_cpu_percent", (OURS, "steward, 100, 10/s"), at_most=10),
    # The number of workers to the power of 0.1: from 1 to 100 workers, a factor of 1.58.
    *(
        Goal("fleet", metric, (OURS, f"redis, 100, {rate}"), (OURS, f"redis, 1, {rate}"), at_most=1.58)
        for metric in ("statements_per_second", "database_cpu_percent")
        for rate in ("10/s", "100/s")
    ),
    Goal("fleet", "p50", (OURS, "redis, 100, 100/s"), (OURS, "no steward, 1, 100/s"), at_most=2.0),
    Goal("retention", "published_per_second", (OURS, "last third"), at_least=990),
    *(
        Goal("retention", metric, (OURS, "last third"), (OURS, "first third"), at_most=1.5)
        for metric in ("table_mb", "index_mb", "horizons_kb", "page_ms", "last_id_ms", "prune_ms")
    ),
)


class Outcome(NamedTuple):
    """A goal and its result: the median, over the runs, of the value, or of the ratio of two rows of one run."""

    goal: Goal
    value: float

    @property
    def holds(self) -> bool:
        goal = self.goal
        if goal.at_most is not None:
            return self.value <= goal.at_most
        return goal.at_least is None or self.value >= goal.at_least

    def as_text(self) -> str:
        goal = self.goal
        row = f" of {' '.join(filter(None, goal.row))}" if goal.row != ME else ""
        than = ""
        if goal.other is not None:
            named = goal.other_metric or ("" if goal.other != goal.row else goal.metric)
            than = f" × that of {' '.join(filter(None, goal.other))}" if not named else f" × {named}"
        bound = f"at most {number(goal.at_most)}" if goal.at_most is not None else f"at least {number(goal.at_least)}"
        verdict = "holds " if self.holds else "MISSES"
        return f"  {verdict} {goal.metric}{row}: {number(self.value)}{than} ({bound})"

    def as_json(self) -> dict[str, Any]:
        found = {name: value for name, value in self.goal._asdict().items() if value is not None}
        return {**found, "value": float(f"{self.value:.4g}"), "holds": self.holds}


def judge(results: Sequence[Result], goals: Iterable[Goal] = GOALS) -> Iterator[Outcome]:
    """Yield the outcomes of the goals for which there are results."""
    rows = {(result.scenario, result.server, result.variant): result for result in results}
    for goal in goals:
        ours = rows.get((goal.scenario, *goal.row))
        theirs = rows.get((goal.scenario, *goal.other)) if goal.other else None
        if ours is None or (goal.other and theirs is None):
            continue
        values = _values(ours, goal.metric)
        if theirs is not None:
            others = _values(theirs, goal.other_metric or goal.metric)
            values = [value / other for value, other in zip(values, others, strict=False) if other]
        if values:
            yield Outcome(goal, median(values))


def _values(result: Result, metric: str) -> list[float]:
    return [run[metric] for run in result.runs if run.get(metric) is not None]
