"""The command line."""

from __future__ import annotations

import argparse

from . import clock, world
from .oracle import Figures
from .plan import draw
from .planted import planted
from .planted.faults import FAULTS


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--deliveries", type=int, default=0)
    parser.add_argument("--planted", nargs="?", const="all")
    options = parser.parse_args()
    world.install()
    if options.planted:
        for fault in FAULTS:
            if options.planted in ("all", fault.name):
                found = []
                began = clock.real_monotonic()
                with planted(fault):
                    for seed in range(options.seed, options.seed + options.seeds):
                        failure = world.World(draw(seed)).run()
                        if failure:
                            found.append((seed, failure.kind))
                            if options.planted != "all":
                                print(seed, failure)
                print(
                    fault.name,
                    len(found),
                    "of",
                    options.seeds,
                    f"{clock.real_monotonic() - began:.0f} s",
                    found[:4],
                    flush=True,
                )
        return 0
    figures = Figures()
    began = clock.real_monotonic()
    seed = options.seed
    failed = 0
    while True:
        history = draw(seed)
        one = world.World(history)
        at = clock.real_monotonic()
        failure = one.run()
        took = clock.real_monotonic() - at
        figures.add(one.figures)
        print(
            seed,
            f"{took:.2f} s",
            one.figures.deliveries,
            one.figures.gaps,
            f"{one.figures.worst_idle:.2f}",
            clock.loop().steps,
            failure or "",
            history.troubles if failure else "",
            flush=True,
        )
        failed += failure is not None
        seed += 1
        if seed - options.seed >= options.seeds and figures.deliveries >= options.deliveries:
            break
    print(figures, f"{figures.deliveries / (clock.real_monotonic() - began):.0f}/s", failed, "failed")
    return 1 if failed else 0
