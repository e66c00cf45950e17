"""The predictions for large fleets, as tables and plots for docs/scaling.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from .check import compared
from .fleet import Constants, Costs, Delays, Plan, costs, simulate, storm

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/scaling.md"
IMAGES = ROOT / "docs/images"

CLIENTS_OF_A_WORKER = 5000
"""A host has as many workers as keep each of them at or below this number, and at least one."""

CORES_OF_THE_DATABASE = 16
CLIENTS_OF_A_ROOM = 50
EACH_GETS = 0.1
"""Messages per second that a client gets."""

BUSY = 0.7
"""The share of a core, or of a network, above which queues grow. A fleet that needs more is too small."""

TEN_GIGABIT = 10e9 / 8
MOST_SESSIONS = 1000
MEMORY_OF_A_HOST = 64 * 2**30
ZONES = 3

SIZES = ((10**5, 10), (10**5, 100), (10**6, 100), (10**6, 1000), (10**7, 1000), (10**7, 10_000))
"""Connections and hosts."""


class Load(NamedTuple):
    """A load of the tables: its name, and the streams and messages per second for a number of connections."""

    name: str
    about: str
    clients_of_a_stream: float | None
    each_gets: float


ROOMS = Load(
    "rooms",
    f"rooms of {CLIENTS_OF_A_ROOM} clients; each client gets a message every ten seconds",
    CLIENTS_OF_A_ROOM,
    EACH_GETS,
)
ONE = Load("one for all", "one stream that every client follows; a message every ten seconds", None, EACH_GETS)


@dataclass(frozen=True)
class Row:
    """A size, and what the model says about it."""

    connections: int
    hosts: int
    plan: Plan
    costs: Costs
    delays: Delays
    host_lost: tuple[float, float]
    zone_lost: tuple[float, float]
    bottleneck: str

    @property
    def engine(self) -> str:
        return f"Redis, {self.plan.shards}" if self.plan.redis else "PostgreSQL"


def plan_of(load: Load, connections: int, hosts: int, *, redis: bool) -> Plan:
    """Return the plan of a size. With Redis, there are as many shards as keep each of them below :data:`BUSY`."""
    streams = 1 if load.clients_of_a_stream is None else round(connections / load.clients_of_a_stream)
    plan = Plan(
        connections=connections,
        workers=hosts * max(1, math.ceil(connections / hosts / CLIENTS_OF_A_WORKER)),
        streams=streams,
        rate=streams * load.each_gets,
        redis=redis,
        database_cores=CORES_OF_THE_DATABASE,
    )
    needed = costs(plan, Constants()).shard / BUSY
    return replace(plan, shards=max(1, math.ceil(needed))) if redis and streams > 1 else plan


def usages(plan: Plan, found: Costs, hosts: int) -> dict[str, float]:
    """Return how much of each resource is used, as a share of all that there is."""
    return {
        "CPU of PostgreSQL": found.database / plan.database_cores,
        "CPU of a worker": found.worker,
        "CPU of a Redis node": found.shard,
        "sessions of PostgreSQL": found.sessions / MOST_SESSIONS,
        "network of a host": found.bytes_per_worker * plan.workers / hosts / TEN_GIGABIT,
        "memory of a host": found.memory_per_worker * plan.workers / hosts / MEMORY_OF_A_HOST,
    }


def row(load: Load, connections: int, hosts: int, *, redis: bool) -> Row:
    """Compute one row."""
    constants = Constants()
    plan = plan_of(load, connections, hosts, redis=redis)
    found = costs(plan, constants)
    used = usages(plan, found, hosts)
    name = max(used, key=lambda one: used[one])
    overloaded = any(used[one] > 1 for one in used if one.startswith("CPU"))
    delays = Delays(math.inf, math.inf) if overloaded else simulate(plan, constants, seconds=max(10.0, 30 / plan.rate))
    host, zone = (storm(plan, constants, lost) for lost in (plan.workers // hosts, plan.workers // ZONES))
    return Row(
        connections, hosts, plan, found, delays, (host.p99, host.statements), (zone.p99, zone.statements),
        f"{name} ({used[name]:.0%})",
    )  # fmt: skip


def rows(load: Load) -> list[Row]:
    """Return all rows of a load: each size with both engines."""
    return [row(load, connections, hosts, redis=redis) for connections, hosts in SIZES for redis in (False, True)]


_TITLES = (
    "connections", "hosts", "workers", "engine", "messages/s", "statements/s", "wakes/s", "cores of PostgreSQL", "busiest worker",
    "Mbit/s per host", "GB per host", "p50", "p99", "back after a host", "after a zone", "first bottleneck",
)  # fmt: skip


def table(found: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| " + " | ".join(_TITLES) + " |", "|" + " --- |" * len(_TITLES)]
    for one in found:
        cells = (
            f"{one.connections:,}", f"{one.hosts:,}", f"{one.plan.workers:,}", one.engine,
            _number(one.plan.rate), _number(one.costs.statements),
            _number(one.costs.wakes), _number(one.costs.database), f"{one.costs.worker:.0%}",
            _number(one.costs.bytes_per_worker * one.plan.workers / one.hosts * 8 / 1e6),
            _number(one.costs.memory_per_worker * one.plan.workers / one.hosts / 1e9),
            _time(one.delays.p50), _time(one.delays.p99), _back(one.host_lost), _back(one.zone_lost), one.bottleneck,
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _back(lost: tuple[float, float]) -> str:
    return f"{_time(lost[0])}, {_number(math.ceil(lost[1]))} reads"


def _time(seconds: float) -> str:
    if math.isinf(seconds):
        return "overload"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


RATES = (1.0, 10.0, 100.0, 1000.0)
"""Messages per second of the table of limits."""


def _fleet_of(workers: int, rate: float, *, redis: bool) -> Plan:
    return Plan(
        connections=1000 * workers, workers=workers, streams=20 * workers, rate=rate, redis=redis,
        database_cores=CORES_OF_THE_DATABASE,
    )  # fmt: skip


def limits() -> str:
    """Return, as a table in Markdown, how many workers a database serves before its CPU is busy, at several rates."""
    c = Constants()
    lines = [
        "| messages/s | PostgreSQL alone: workers | p99 there | with Redis: workers | p99 there |",
        "|" + " --- |" * 5,
    ]
    for rate in RATES:
        cells = [f"{rate:,.0f}"]
        for redis in (False, True):
            low, high = 1, 10**6
            while low < high:
                middle = (low + high + 1) // 2
                busy = costs(_fleet_of(middle, rate, redis=redis), c).database > BUSY * CORES_OF_THE_DATABASE
                low, high = (low, middle - 1) if busy else (middle, high)
            plan = _fleet_of(low, rate, redis=redis)
            cells += [f"{float(f'{low:.2g}'):,.0f}", _time(simulate(plan, c, seconds=max(10.0, 30 / rate)).p99)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def points() -> str:
    """Return the comparison with the points as a table in Markdown."""
    lines = ["| point | measured | model | error |", "| --- | --- | --- | --- |"]
    for name, measured, predicted, unit in compared():
        lines.append(f"| {name} | {measured:.3g} {unit} | {predicted:.3g} {unit} | {predicted / measured - 1:+.0%} |")
    return "\n".join(lines)


def constants() -> str:
    """Return the constants as a table in Markdown."""
    lines = ["| constant | value | from |", "| --- | --- | --- |"]
    for name, (value, unit, source) in Constants().sources.items():
        lines.append(f"| `{name}` | {value:.3g} {unit} | {source} |")
    return "\n".join(lines)


def predict() -> str:
    """Return both tables."""
    return "\n\n".join(f"{load.name}: {load.about}\n\n{table(rows(load))}" for load in (ROOMS, ONE))


# docs/scaling.md


def write() -> None:
    """Put the tables between the marks of docs/scaling.md, and draw the plots."""
    text = PAGE.read_text(encoding="utf-8")
    parts = {"points": points(), "constants": constants(), "limits": limits()} | {
        load.name.replace(" ", "-"): table(rows(load)) for load in (ROOMS, ONE)
    }
    for name, content in parts.items():
        start, end = f"<!-- model: {name} -->\n", f"<!-- /model: {name} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        if not rest or not after:
            raise SystemExit(f"{PAGE} has no place for {name}")
        text = f"{before}{start}\n{content}\n\n{end}{after}"
    PAGE.write_text(text, encoding="utf-8")
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / "scaling-database.svg").write_text(_database_plot(), encoding="utf-8")
    (IMAGES / "scaling-delay.svg").write_text(_delay_plot(), encoding="utf-8")


_WORKERS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)


def _lines(value: str) -> dict[str, list[tuple[float, float]]]:
    c, found = Constants(), {}
    for redis in (False, True):
        line = []
        for workers in _WORKERS:
            plan = _fleet_of(workers, 100.0, redis=redis)
            if value == "database":
                line.append((float(workers), costs(plan, c).database))
            else:
                line.append((float(workers), simulate(plan, c, seconds=20.0).p99 * 1000))
        found["Redis" if redis else "PostgreSQL alone"] = line
    return found


def _database_plot() -> str:
    return plot("Cores of PostgreSQL at 100 messages/s (model)", "workers", "cores", _lines("database"))


def _delay_plot() -> str:
    return plot("Delay p99 at 100 messages/s, 1,000 clients per worker (model)", "workers", "ms", _lines("delay"))


def plot(title: str, across: str, up: str, lines: dict[str, list[tuple[float, float]]]) -> str:
    """Return an SVG with logarithmic axes. Each line has its own dashes, so that colours are not needed to tell them apart."""
    width, height, left, bottom, top, right = 640, 360, 64, 48, 36, 20
    xs = [math.log10(x) for line in lines.values() for x, _ in line]
    ys = [math.log10(max(y, 1e-6)) for line in lines.values() for _, y in line]
    low_x, high_x = min(xs), max(xs)
    low_y, high_y = math.floor(min(ys)), math.ceil(max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        across_share = (math.log10(x) - low_x) / (high_x - low_x)
        up_share = (math.log10(max(y, 1e-6)) - low_y) / max(1, high_y - low_y)
        return left + across_share * (width - left - right), height - bottom - up_share * (height - bottom - top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{width / 2}" y="20" text-anchor="middle" font-size="14">{title}</text>',
        f'<text x="{width / 2}" y="{height - 10}" text-anchor="middle">{across}</text>',
        f'<text x="14" y="{height / 2}" text-anchor="middle" transform="rotate(-90 14 {height / 2})">{up}</text>',
    ]
    for power in range(low_y, high_y + 1):
        x, y = at(10**low_x, 10**power)
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{10**power:g}</text>')
    for power in range(math.ceil(low_x), math.floor(high_x) + 1):
        x, y = at(10**power, 10**low_y)
        parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{10**power:,.0f}</text>')
    for n, (name, line) in enumerate(lines.items()):
        colour, dashes = (("#1f5fa8", "none"), ("#b3401f", "6 4"))[n % 2]
        places = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in line)
        parts.append(
            f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'
        )
        x, y = at(*line[-1])
        parts.append(f'<text x="{x - 4:.1f}" y="{y - 8:.1f}" text-anchor="end" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
