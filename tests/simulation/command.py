"""The command line. The simulations run in other processes (:mod:`tests.simulation.child`)."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from .children import Children, Result
from .figures import Figures
from .history import History
from .planted.faults import FAULTS
from .shrink import Shrinker

FOLDER = Path(__file__).parent
SEEDS = FOLDER / "seeds.txt"
HISTORIES = FOLDER / "histories"
_PROGRESS = 10.0  # seconds
MOST_GIVEN_UP = 0.01
"""The largest share of the seeds that may be given up. More would hide what they had found."""


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description="Run whole workers under a virtual clock; see docs/simulation.md.",
    )
    parser.add_argument("--seed", type=int, default=1, help="the first seed (1)")
    parser.add_argument("--seeds", type=int, help="how many seeds to run (20, if nothing else says when to stop)")
    parser.add_argument("--deliveries", type=int, help="run until so many messages have been delivered")
    parser.add_argument("--seconds", type=float, help="run for so long")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes run them (1)")
    parser.add_argument(
        "--planted",
        nargs="?",
        const="all",
        metavar="NAME",
        help="plant each fault, or one, and count in how many of 40 seeds (or --seeds) it is found",
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run the history in a file")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="write the shortest history that fails into a file; with --planted, a file for each fault into a folder",
    )
    parser.add_argument("--no-shrink", action="store_true", help="do not look for the shortest history that fails")
    chosen = parser.parse_args(arguments)
    _check(parser, chosen)
    return chosen


def _check(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """Refuse what would run nothing and look like a success, or lose its result at the end."""
    for name in ("seeds", "deliveries", "seconds", "jobs"):
        number = getattr(chosen, name)
        if number is not None and not 0 < number < math.inf:
            parser.error(f"--{name} must be more than 0")
    if chosen.planted not in (None, "all") and chosen.planted not in (fault.name for fault in FAULTS):
        parser.error(f"there is no fault {chosen.planted!r}; there are {', '.join(fault.name for fault in FAULTS)}")
    if chosen.planted and chosen.write and not chosen.write.is_dir():
        parser.error(f"{chosen.write} is no folder; with --planted, a file is written for each fault")
    if chosen.write and not chosen.planted and (chosen.write.is_dir() or not chosen.write.absolute().parent.is_dir()):
        parser.error(f"{chosen.write} cannot be written")


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status: 1 if a promise was broken."""
    chosen = options(arguments)
    try:
        with Children(chosen.jobs) as children:
            if chosen.replay:
                return replay(children, chosen.replay)
            if chosen.planted:
                return plant(children, chosen)
            return simulate(children, chosen)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def replay(children: Children, path: Path) -> int:
    """Run the history in a file. Returns 1 if a promise was broken, and 2 if there is no history."""
    try:
        history = History.read(path)
    except (OSError, ValueError, TypeError) as error:
        print(f"{path} has no history that can be read: {error}", file=sys.stderr)
        return 2
    result = children.run(history)
    if history.planted:
        print(f"planted in the product: {history.planted}")
    if result.failure is not None:
        _, text, when = result.failure
        print(f"after {when:.3f} s, {text}")
    elif result.given_up is not None:
        print(f"given up: {result.given_up}")
    else:
        print("no promise was broken")
    return int(result.failure is not None or result.given_up is not None)


def simulate(children: Children, chosen: argparse.Namespace) -> int:
    """Run seeds, and print the figures. Returns 1 if a promise was broken, or if too many seeds were given up.

    Ctrl-C ends it early, with the figures so far.
    """
    figures, began, told = Figures(), time.monotonic(), time.monotonic()
    failed: Result | None = None
    run, interrupted = 0, False
    try:
        for result in children.results(_seeds(chosen, began)):
            run += 1
            figures.add(Figures(**result.figures))
            if result.failure is not None:
                failed = failed or result
                print(f"seed {result.seed}: {result.failure[1]}", flush=True)
            if result.given_up is not None:
                figures.given_up += 1
                print(f"seed {result.seed} was given up: {result.given_up}", flush=True)
            if time.monotonic() - told >= _PROGRESS:
                told = time.monotonic()
                print(
                    f"{told - began:.0f} s, {run} seeds, {figures.deliveries:,} deliveries", file=sys.stderr, flush=True
                )
            enough = chosen.deliveries is not None and figures.deliveries >= chosen.deliveries
            if failed is not None or enough:
                break
    except KeyboardInterrupt:
        interrupted = True  # what has been found so far counts
    seconds = time.monotonic() - began
    seeds = "1 seed" if run == 1 else f"{run} seeds"
    print(f"{seeds} from {chosen.seed}, {seconds:.0f} s, {figures.deliveries / seconds:,.0f} deliveries a second")
    print(figures.text())
    if interrupted:
        raise KeyboardInterrupt
    if failed is None:
        return int(too_many(figures.given_up, run))
    if not chosen.no_shrink:
        show(shorten(children, failed.seed), chosen.write)
    return 1


def too_many(given_up: int, run: int) -> bool:
    """Whether more seeds were given up than may be: one, and of many one in a hundred."""
    return given_up > max(1.0, MOST_GIVEN_UP * run)


def _seeds(chosen: argparse.Namespace, began: float) -> Iterator[dict[str, Any]]:
    few = chosen.seeds if chosen.seeds or chosen.deliveries or chosen.seconds else 20
    for n in count():
        if (few and n >= few) or (chosen.seconds and time.monotonic() - began >= chosen.seconds):
            return
        yield {"seed": chosen.seed + n}


def shorten(children: Children, seed: int, fault: str = "") -> History:
    """Return the shortest history that fails as the seed does."""
    from .plan import draw

    history = draw(seed)
    kind = None

    def fails(candidate: History) -> float | None:
        nonlocal kind
        failure = children.run(candidate, fault).failure
        if failure is None or failure[0] != (kind or failure[0]):
            return None
        kind = failure[0]
        return failure[2]

    shortest = Shrinker(fails).shrink(history)
    shortest.planted = fault
    return shortest


def show(history: History, path: Path | None) -> None:
    """Print a history, and write it."""
    print(f"the operations of the shortest history: {len(history.operations)}")
    print(json.dumps({key: value for key, value in asdict(history).items() if key != "operations"}))
    for operation in history.operations:
        print(json.dumps(operation))
    if path is not None:
        history.write(path)


def plant(children: Children, chosen: argparse.Namespace) -> int:
    """Plant each fault, run seeds, and print in how many it was found."""
    seeds = chosen.seeds or 40
    missed = 0
    print(f"| fault | found in {seeds} seeds | first seed | broken promises |\n| --- | --- | --- | --- |")
    for fault in FAULTS:
        if chosen.planted not in ("all", fault.name):
            continue
        commands = ({"seed": chosen.seed + n, "planted": fault.name} for n in range(seeds))
        results = list(children.results(commands))
        found = {each.seed: each.failure[0] for each in results if each.failure is not None}
        for each in results:
            if each.given_up is not None:
                print(f"seed {each.seed} was given up: {each.given_up}", file=sys.stderr, flush=True)
        kinds = ", ".join(sorted(set(found.values())))
        print(f"| `{fault.name}` | {len(found)} | {min(found, default='—')} | {kinds} |", flush=True)
        missed += not found
        if chosen.write and found:
            show(shorten(children, min(found), fault.name), chosen.write / f"{fault.name}.json")
    return int(missed > 0)
