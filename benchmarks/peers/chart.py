"""The chart: a field for each peer and fault, with the percentage, and a colour for how much is missing.

Two columns of the runs without a fault follow, the median delay and the CPU time of the server. Their best fields are marked.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from .faults import FAULTS

LEFT, TOP, WIDTH, HEIGHT = 170, 84, 98, 34
STEPS = ((100.0, "#1a7f4e", "#fff"), (99.0, "#7cc18f", "#000"), (90.0, "#f2e08c", "#000"), (50.0, "#f0a860", "#000"))
WORST = ("#c9503c", "#fff")
NONE = ("#e4e6e8", "#555")
COSTS = {"median": ("median delay in ms", "{:.1f}"), "cpu": ("CPU time in s", "{:.2f}")}
"""What else is shown of the runs without a fault: titles and formats. Less is better."""


def chart(found: Mapping[str, Any]) -> str:
    """Return the chart as SVG."""
    from .report import percent

    runs = found["runs"]
    width = LEFT + WIDTH * (len(FAULTS) + len(COSTS)) + 24
    height = TOP + HEIGHT * len(runs) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" '
        'font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        label(
            12,
            24,
            "Messages that arrive exactly once and in order, in percent",
            "start",
            'font-size="16" font-weight="600"',
        ),
    ]
    for n, fault in enumerate(FAULTS.values()):
        for line, words in enumerate(in_two(fault.title)):
            parts.append(label(LEFT + WIDTH * n + WIDTH / 2, TOP - 26 + 16 * line, words, "middle"))
    for row, (peer, outcomes) in enumerate(runs.items()):
        y = TOP + HEIGHT * row
        parts.append(label(LEFT - 10, y + 22, peer, "end", 'font-weight="600"' if row == 0 else ""))
        for n, name in enumerate(FAULTS):
            fill, ink = colours(outcomes.get(name))
            x = LEFT + WIDTH * n
            parts.append(
                f'<rect x="{x + 1}" y="{y + 1}" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="3" fill="{fill}"/>'
            )
            parts.append(label(x + WIDTH / 2, y + 22, percent(outcomes.get(name)), "middle", f'fill="{ink}"'))
    parts += costs(runs)
    note = "–: the store is in the server's own process and restarts with it. "
    parts.append(label(12, height - 14, note + f"Seed {found['seed']}, {found['date']}.", "start", 'fill="#555"'))
    return "\n".join([*parts, "</svg>", ""])


def costs(runs: Mapping[str, Any]) -> list[str]:
    """Return the columns of delay and CPU."""
    parts = []
    for n, (name, (title, form)) in enumerate(COSTS.items(), len(FAULTS)):
        x = LEFT + WIDTH * n + 12
        values = [outcomes.get("none", {}).get(name) for outcomes in runs.values()]
        least = min((value for value in values if value is not None), default=None)
        for line, words in enumerate(in_two(title)):
            parts.append(label(x + WIDTH / 2, TOP - 26 + 16 * line, words, "middle"))
        for row, value in enumerate(values):
            y = TOP + HEIGHT * row
            fill, ink = STEPS[0][1:] if value is not None and value == least else NONE
            parts.append(
                f'<rect x="{x + 1}" y="{y + 1}" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="3" fill="{fill}"/>'
            )
            text = "–" if value is None else form.format(value)
            parts.append(label(x + WIDTH / 2, y + 22, text, "middle", f'fill="{ink}"'))
    return parts


def label(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    """Return a line of text."""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" {more}>{html.escape(text)}</text>'.replace(" >", ">")


def in_two(title: str) -> list[str]:
    """Return a title in one or two lines."""
    words = title.split()
    middle = (len(words) + 1) // 2
    return [" ".join(words[:middle]), " ".join(words[middle:])]


def colours(outcome: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return the colours of a field and of its text."""
    if outcome is None:
        return NONE
    value = outcome.get("percent", 0.0)
    return next(((fill, ink) for least, fill, ink in STEPS if value >= least), WORST)
