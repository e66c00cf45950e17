"""What a run found: for each fault, and in all. As text and as JSON."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .conductor import Outcome
from .judge import WRONG
from .register import FAULTS


@dataclass
class Line:
    """The figures of one window, or of all. Delays are seconds from the statement that commits to the receipt."""

    name: str
    began: float = 0.0
    broken: float = 0.0
    committed: int = 0
    delivered: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    delays: list[float] = field(default_factory=list)
    recovered: float = 0.0
    told: Counter[str] = field(default_factory=Counter)

    def add(self, other: Line) -> None:
        """Add the figures of another window."""
        self.committed += other.committed
        self.delivered += other.delivered
        self.wrong += other.wrong
        self.delays += other.delays
        self.recovered = max(self.recovered, other.recovered)
        self.told += other.told

    def as_json(self) -> dict[str, Any]:
        """Return what is written to the file."""
        return {
            "fault": self.name,
            "began": round(self.began, 1),
            "broken_seconds": round(self.broken, 1),
            "committed": self.committed,
            "delivered": self.delivered,
            **{name.replace(" ", "_"): self.wrong[name] for name in WRONG},
            "median_seconds": round(self.median, 4),
            "worst_seconds": round(self.worst, 3),
            "recovered_seconds": round(self.recovered, 1),
            "told": dict(self.told.most_common()),
        }

    @property
    def median(self) -> float:
        """The median delay."""
        return statistics.median(self.delays) if self.delays else 0.0

    @property
    def worst(self) -> float:
        """The longest delay."""
        return max(self.delays, default=0.0)


def lines_of(outcome: Outcome) -> list[Line]:
    """Return the figures of each window, in their order. What is wrong counts for the window in which it was published."""
    starts = [window.began for window in outcome.windows]
    zero = starts[0]
    lines = [Line(window.name, window.began - zero, window.ended - window.began) for window in outcome.windows]
    lines[0].broken = 0.0

    def at(time: float) -> int:
        return max(0, bisect_right(starts, time) - 1)

    for sent in outcome.committed.values():
        lines[at(sent)].committed += 1
    for history in outcome.histories:
        seen: set[int] = set()
        for message, written, received in zip(history.messages, history.sent, history.received, strict=True):
            if message in seen:
                continue  # after a gap with reason "ahead", everything comes again
            seen.add(message)
            sent = outcome.committed.get(message) or written
            index = at(sent)
            lines[index].delivered += 1
            if index + 1 < len(starts) and sent > outcome.windows[index].healed and received > starts[index + 1]:
                index += 1  # sent in the calm, and held up by the next fault
            line, window = lines[index], outcome.windows[index]
            line.delays.append(received - sent)
            if window.ended and sent <= window.ended:
                line.recovered = max(line.recovered, received - window.ended)
        for mark in history.marks:
            if what := _told(mark.what, mark.data):
                # A gap with reason "ahead" belongs to the loss, even if the next fault delays it.
                time = _loss_before(mark.time, outcome.losses) if what == "gap ahead" else mark.time
                lines[at(time)].told[what] += 1
    for finding in outcome.findings:
        lines[at(finding.time or outcome.committed.get(finding.message, 0.0))].wrong[finding.kind] += 1
    return lines


def _loss_before(time: float, losses: Sequence[float]) -> float:
    return max((loss for loss in losses if loss <= time), default=time)


def _told(what: str, data: dict[str, Any]) -> str:
    if what == "gap":
        return f"gap {data['reason']}"
    if what == "told":
        return f"{data['event']} {data['reason']}".strip()
    if what == "status":
        return f"status {data['status']}"
    return str(data["how"]) if what == "cut" else ""


def by_fault(lines: list[Line]) -> list[Line]:
    """Return one line for each fault, over all times it was brought about, and the worst first."""
    found: dict[str, Line] = {}
    for line in lines:
        into = found.setdefault(line.name, Line(line.name))
        into.broken = max(into.broken, line.broken)
        into.add(line)
    return sorted(found.values(), key=lambda line: (line.name != "calm", line.name))


def total(lines: list[Line]) -> Line:
    """Return the sum of all lines."""
    everything = Line("all")
    for line in lines:
        everything.add(line)
    return everything


_APART = ("lost", "repeated", "out of order", "forbidden")
"""What is wrong with deliveries has columns of its own. The other kinds of findings share one."""

_HEAD = (
    f"{'fault':28} {'committed':>9} {'delivered':>9} {'lost':>5} {'repeated':>8} {'disorder':>8} {'forbidden':>9}"
    f" {'median':>8} {'worst':>7} {'recovered':>9}  what clients were told"
)


def text(outcome: Outcome) -> str:
    """Return the report as text."""
    lines = by_fault(lines_of(outcome))
    everything = total(lines)
    rows = [_HEAD, *(_row(line) for line in [*lines, everything])]
    if outcome.planted:
        deeds = ", ".join(f"{count} {kind}" for kind, count in outcome.planted.items())
        missed = sum(finding.kind == "unnoticed" for finding in outcome.findings)
        rows.append(f"planted in faulty clients, which do not count above: {deeds}; not found by the judge: {missed}")
    for name, reason in outcome.skipped.items():
        rows.append(f"{name} was skipped: {reason}")
    for finding in outcome.findings[:20]:
        rows.append(
            f"wrong: {finding.kind}: message {finding.message} of {finding.stream}, id {finding.id}, client {finding.client}"
        )
    if len(outcome.findings) > 20:
        rows.append(f"and {len(outcome.findings) - 20} more")
    rows.append(_verdict(outcome, everything))
    return "\n".join(rows)


def _verdict(outcome: Outcome, everything: Line) -> str:
    counts = f"{len(outcome.windows) - 1} faults, {everything.committed} messages, {everything.delivered} deliveries"
    wrong = f"{len(outcome.findings)} times something was wrong" if outcome.findings else "nothing was wrong"
    return f"seed {outcome.options.seed}: {counts}; {wrong}"


def _row(line: Line) -> str:
    told = ", ".join(f"{what} {count}" for what, count in line.told.most_common(6))
    wrong = line.wrong
    return (
        f"{line.name:28} {line.committed:9} {line.delivered:9} {wrong['lost']:5} {wrong['repeated']:8}"
        f" {wrong['out of order']:8} {wrong['forbidden']:9} {line.median * 1000:6.0f}ms {line.worst:6.1f}s"
        f" {line.recovered:8.1f}s  {told}"
    )


def markdown(outcome: Outcome) -> str:
    """Return the report as a table of Markdown, for a page."""
    lines = by_fault(lines_of(outcome))
    names = ["fault", "what is broken", "times", "committed", "delivered", *_APART, "otherwise wrong"]
    names += ["median", "worst", "recovered", "clients were told"]
    rows = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    rows += [_markdown_row(line, outcome) for line in [*lines, total(lines)]]
    return "\n".join(rows)


def _markdown_row(line: Line, outcome: Outcome) -> str:
    name, what = f"`{line.name}`", ""
    times = str(sum(window.name == line.name for window in outcome.windows))
    if line.name in FAULTS:
        what = FAULTS[line.name].description.rstrip(".")
    else:
        name = {"calm": "(nothing)", "all": "all"}[line.name]
        times = "" if line.name == "calm" else str(len(outcome.windows) - 1)
    told = ", ".join(f"{count} {what}" for what, count in line.told.most_common(5))
    wrong = [line.wrong[kind] for kind in _APART]
    figures = [line.committed, line.delivered, *wrong, sum(line.wrong.values()) - sum(wrong)]
    delays = [f"{line.median * 1000:.0f} ms", f"{line.worst:.1f} s", f"{line.recovered:.1f} s"]
    return f"| {' | '.join([name, what, times, *map(str, figures), *delays, told])} |"


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return the report as a value for JSON."""
    lines = lines_of(outcome)
    options = outcome.options
    return {
        "seed": options.seed,
        "seconds": options.seconds,
        "clients": options.clients,
        "outage_seconds": options.outage,
        "windows": [line.as_json() for line in lines],
        "faults": [line.as_json() for line in by_fault(lines)],
        "total": total(lines).as_json(),
        "publishers": outcome.publishers,
        "planted": outcome.planted,
        "skipped": outcome.skipped,
        "findings": [finding._asdict() for finding in outcome.findings],
    }
