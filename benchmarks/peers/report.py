"""What a run found, as text, and as the generated parts of docs/peers.md."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .adapters import PEERS
from .adapters.base import Peer
from .chart import chart
from .environment import DEBIAN, Environment
from .faults import FAULTS

Found = Mapping[str, Any]


def collect(seed: int, seconds: float, clients: int, peers: Sequence[Peer], environment: Environment) -> dict[str, Any]:
    """Return the frame of a result: when, where, with what."""
    return {
        "date": datetime.date.today().isoformat(),
        "seed": seed,
        "seconds": seconds,
        "clients": clients,
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "load": round(os.getloadavg()[2], 1),
        "versions": versions(peers, environment),
        "missing": {},
        "runs": {},
    }


def versions(peers: Sequence[Peer], environment: Environment) -> dict[str, str]:
    """Return the versions of the packages of Debian, and of PostgreSQL; those of PyPI and npm are pinned."""
    wanted = sorted({DEBIAN[need] for peer in peers for need in peer.needs if need in DEBIAN})
    found = {"postgresql": output("psql-version")}
    for package in wanted:
        found[package] = output("dpkg-query", "-W", "-f", "${Version}", package)
    found["node"] = output("node", "--version")
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
    """Return the table of percentages in Markdown."""
    lines = [
        "| " + " | ".join(["", *(fault.title for fault in FAULTS.values())]) + " |",
        "| " + " | ".join(["---", *("---:" for _ in FAULTS)]) + " |",
    ]
    for peer, runs in found["runs"].items():
        best = {name for name in FAULTS if is_best(found, peer, name)}
        cells = [f"**{percent(runs.get(name))}**" if name in best else percent(runs.get(name)) for name in FAULTS]
        lines.append("| " + " | ".join([f"`{peer}`", *cells]) + " |")
    return "\n".join(lines)


def is_best(found: Found, peer: str, fault: str) -> bool:
    """Whether no peer has more under a fault."""
    values = {name: runs.get(fault, {}).get("percent", -1.0) for name, runs in found["runs"].items()}
    return values[peer] >= 0 and values[peer] == max(values.values())


def counts(found: Found) -> str:
    """Return the pairs that were not right, one row for each run that had some."""
    lines = [
        "| peer | fault | pairs | lost | of these told | repeated | out of order | never committed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
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
            cells = [f"{verdict[key]:,}" for key in keys]
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
    return (
        f"`{command}` on {found['date']}: {found['machine']}; {known}. Each run had a load of {found['seconds']:g} s with "
        f"{found['clients']} clients. The load average of the machine (15 minutes) was {found['load']} at the start."
    )


PARTS = {
    "frame": frame,
    "percentages": percentages,
    "counts": counts,
    "speeds": speeds,
    "uses": uses,
    "faults": lambda found: faults(),
}
"""The generated parts of the page by name."""


def page(text: str, found: Found) -> str:
    """Return the page with its generated parts made anew. They stand between comments that name them."""
    for name, make in PARTS.items():
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)",
            lambda match, make=make: match[1] + make(found) + match[2],  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    return text


def write(root: Path, found: Found) -> None:
    """Write the figures, the chart and the generated parts of the page."""
    (root / "docs/peers.json").write_text(json.dumps(found, indent=1) + "\n")
    (root / "docs/images/peers.svg").write_text(chart(found))
    path = root / "docs/peers.md"
    path.write_text(page(path.read_text(), found))
