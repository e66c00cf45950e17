"""Faults side by side: ``python -m benchmarks.peers --seed 14 --write`` runs each peer under each fault, one after the other.

The peers' packages from PyPI and npm are installed beside this module; a peer whose Debian packages are missing is left out, and
named. ``--write`` also writes the tables and the chart of docs/peers.md; ``--from FILE`` writes them from an earlier run.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psycopg

from pgbus_gevent.database.embedded import EmbeddedPostgres

from .adapters import PEERS
from .environment import Environment
from .faults import FAULTS
from .report import collect, in_order, table, write
from .scenario import Size, applies, open_postgres, run
from .site import Failed

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs/peers.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and write. Returns the exit status: 1 if a run failed, 2 if nothing could be run."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, so that all servers are ended
    try:
        return compare(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def compare(options: argparse.Namespace) -> int:
    """Run what was chosen, or read it from a file, and show it. Returns the exit status."""
    if options.source is not None:
        try:
            found = json.loads(options.source.read_text())
        except (OSError, ValueError) as error:
            print(f"{options.source} has no result that can be read: {error}", file=sys.stderr)
            return 2
    else:
        environment = Environment()
        chosen = [PEERS[name] for name in options.peers]
        try:
            environment.install(need for peer in chosen for need in peer.needs)
        except subprocess.CalledProcessError as error:
            print(f"the peers' packages cannot be installed: {error}", file=sys.stderr)
            return 2
        found = kept(options) or collect(options.seed, options.seconds, options.clients, chosen)
        with open_postgres() as postgres:
            runs(options, environment, found, postgres)
    found = in_order(found)
    print(table(found))
    if options.write:
        write(ROOT, found)
    elif options.json:
        print(json.dumps(found, indent=1))
    return int(any("failed" in run for runs in found["runs"].values() for run in runs.values()))


def kept(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the figures so far of docs/peers.json, if these runs are to be added to them, and have the same size and seed."""
    if not options.add:
        return None
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    for name in ("seed", "seconds", "clients"):
        if found[name] != getattr(options, name):
            raise SystemExit(f"docs/peers.json was made with --{name} {found[name]}; use the same, or leave out --add")
    return {**found, "added": True}


def runs(
    options: argparse.Namespace, environment: Environment, found: dict[str, Any], postgres: EmbeddedPostgres
) -> None:
    """Run what was chosen. With ``--write``, what is there so far is kept in docs/peers.json."""
    size = Size(options.seconds, options.clients)
    for name in options.peers:
        peer = PEERS[name]
        missing = environment.missing(peer.needs)
        if missing:
            print(f"{name}: left out; {missing}", file=sys.stderr)
            found["missing"][name] = missing
            continue
        for fault in (FAULTS[each] for each in options.faults):
            if not applies(peer, fault):
                continue
            began = time.monotonic()
            try:
                outcome = run(peer, fault, size, options.seed, environment, postgres).as_json()
            except (Failed, httpx.HTTPError, psycopg.Error) as failure:
                outcome = {"failed": f"{type(failure).__name__}: {failure}"}
            found["runs"].setdefault(name, {})[fault.name] = outcome
            told = outcome.get("failed") or in_words(outcome)
            print(f"{name}, {fault.name}: {told} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
            if options.write:
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def in_words(outcome: dict[str, Any]) -> str:
    """Return the result of a run in one line."""
    verdict = outcome["verdict"]
    wrong = ", ".join(f"{verdict[name]:,} {name}" for name in ("lost", "repeated", "disordered", "unknown"))
    return f"{outcome['percent']:.2f} % of {verdict['pairs']:,} pairs were right; {wrong}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Run peers under faults.")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is random")
    peers, faults = list(PEERS), list(FAULTS)
    parser.add_argument("--peers", nargs="+", choices=peers, default=peers, metavar="NAME", help=", ".join(peers))
    parser.add_argument("--faults", nargs="+", choices=faults, default=faults, metavar="NAME", help=", ".join(faults))
    parser.add_argument("--seconds", type=float, default=8.0, help="the load of each run")
    parser.add_argument("--clients", type=int, default=40, help="over four streams")
    parser.add_argument("--json", action="store_true", help="print the result as JSON too")
    parser.add_argument(
        "--write", action="store_true", help="write docs/peers.md, docs/peers.json and docs/images/peers.svg"
    )
    parser.add_argument("--add", action="store_true", help="keep what docs/peers.json has of other peers and faults")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="take the result of an earlier run")
    options = parser.parse_args(arguments)
    if not (0 < options.seconds < math.inf and options.clients > 0):
        parser.error("--seconds and --clients must be more than 0")
    return options


if __name__ == "__main__":
    sys.exit(main())
