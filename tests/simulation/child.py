"""A process that runs simulations: it reads a command a line, as JSON, and answers each with a line.

A command has a ``seed`` or a ``history``, and may name a fault that is planted. It needs a process of its own, because it replaces
time.
"""

from __future__ import annotations

import gc
import json
import logging
import sys
import traceback
from contextlib import nullcontext
from typing import Any

from gevent import GreenletExit

from tests.simulation import clock

clock.install()

from tests.simulation import plan, world  # noqa: E402 - after the clock
from tests.simulation.history import History  # noqa: E402
from tests.simulation.planted import planted  # noqa: E402
from tests.simulation.planted.faults import FAULTS  # noqa: E402


def run(command: dict[str, Any]) -> dict[str, Any]:
    """Run one simulation, and return what came of it."""
    history = History(**command["history"]) if "history" in command else plan.draw(command["seed"])
    name = command.get("planted") or history.planted
    began, given_up = clock.real_monotonic(), None
    with next((planted(fault) for fault in FAULTS if fault.name == name), nullcontext()):
        one = world.World(history)
        try:
            failure = one.run()
        except (Exception, GreenletExit) as error:
            # The model or the simulator does not know this history. That says nothing about the product, and is counted.
            print(f"seed {history.seed} was given up:", traceback.format_exc(), file=sys.stderr)
            failure, given_up = None, f"{type(error).__name__}: {error}"
    gc.collect()  # at a moment that does not depend on chance
    return {
        "seed": history.seed,
        "failure": None if failure is None else [failure.kind, str(failure), round(one.failed_at, 4)],
        "given_up": given_up,
        "figures": vars(one.figures),
        "steps": clock.loop().steps,
        "took": clock.real_monotonic() - began,
    }


def main() -> None:
    """Answer commands until there are no more."""
    world.install()
    gc.disable()
    # What workers log about troubles is of no interest here.
    logging.getLogger("pgbus_gevent").addHandler(logging.NullHandler())
    answers, sys.stdout = sys.stdout, sys.stderr  # nobody else may write between the answers
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
