"""The report as a picture: an SVG with one row for each fault, from the median delay to the worst one, on a logarithmic axis."""

from __future__ import annotations

import math
from html import escape

from .conductor import Outcome
from .judge import WRONG
from .report import Line, by_fault, lines_of, total

_LEFT, _WIDTH, _ROW, _TOP = 230, 520, 20, 70
_FIRST, _LAST = -3, 2  # powers of ten, in seconds
_NAMES = {-3: "1 ms", -2: "10 ms", -1: "0.1 s", 0: "1 s", 1: "10 s", 2: "100 s"}


def svg(outcome: Outcome) -> str:
    """Return the picture."""
    lines = by_fault(lines_of(outcome))
    everything = total(lines)
    height = _TOP + _ROW * len(lines) + 30
    width = _LEFT + _WIDTH + 190
    wrong = sum(everything.wrong[kind] for kind in WRONG)
    title = (
        f"{everything.committed} messages, {everything.delivered} deliveries to {outcome.options.clients} clients:"
        f" {everything.wrong['lost']} lost, {everything.wrong['repeated']} repeated,"
        f" {everything.wrong['out of order']} out of order, {everything.wrong['forbidden']} forbidden"
    )
    body = [
        f'<text x="12" y="24" font-size="15" font-weight="bold">{escape(title)}</text>',
        f'<text x="12" y="44">Delay from COMMIT to receipt by fault: median (dot) to worst (end of the bar).'
        f" Seed {outcome.options.seed}.</text>",
        *(_grid(power, height) for power in range(_FIRST, _LAST + 1)),
        *(_row(line, _TOP + _ROW * number) for number, line in enumerate(lines)),
    ]
    if wrong:
        body.append(f'<text x="12" y="{height - 8}" fill="#b00">{wrong} findings; the report names them</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="12" fill="#222">'
        '<rect width="100%" height="100%" fill="#fff"/>' + "".join(body) + "</svg>\n"
    )


def _x(seconds: float) -> float:
    power = min(max(math.log10(max(seconds, 1e-9)), _FIRST), _LAST)
    return _LEFT + _WIDTH * (power - _FIRST) / (_LAST - _FIRST)


def _grid(power: int, height: int) -> str:
    x = _x(10.0**power)
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{height - 24}" stroke="#ddd"/>'
        f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle" fill="#666">{_NAMES[power]}</text>'
    )


def _row(line: Line, y: int) -> str:
    middle = y + _ROW / 2
    first, last = _x(line.median), _x(line.worst)
    colour = "#b00" if sum(line.wrong.values()) else "#2a6"
    return (
        f'<text x="{_LEFT - 10}" y="{middle + 4:.0f}" text-anchor="end">{escape(line.name)}</text>'
        f'<line x1="{first:.1f}" x2="{last:.1f}" y1="{middle}" y2="{middle}" stroke="{colour}" stroke-width="5"'
        ' stroke-opacity="0.45"/>'
        f'<circle cx="{first:.1f}" cy="{middle}" r="4" fill="{colour}"/>'
        f'<text x="{_LEFT + _WIDTH + 12}" y="{middle + 4:.0f}">{line.delivered} delivered,'
        f" {sum(line.wrong.values())} wrong</text>"
    )
