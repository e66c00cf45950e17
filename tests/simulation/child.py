"""A process that runs simulations: it reads a command a line, as JSON, and answers each with a line.

A command has a ``seed`` or a ``history``, and may name a fault that is planted. It needs a process of its own, because it replaces
time.
"""

from __future__ import annotations

import gc
import json
import logging
import signal
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
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
    began, one, failure, given_up = clock.real_monotonic(), None, None, None
    seed = command["history"]["seed"] if "history" in command else command["seed"]
    try:
        history = History(**command["history"]) if "history" in command else plan.draw(seed)
        with _fault(command.get("planted") or history.planted):
            one = world.World(history)
            failure = one.run()
    except (Exception, GreenletExit) as error:
        # The model or the simulator does not know this history, or a planted fault does not fit, perhaps because a file was changed
        # meanwhile. That says nothing about the product, and is counted.
        print(f"seed {seed} was given up:", traceback.format_exc(), file=sys.stderr)
        given_up = f"{type(error).__name__}: {error}"
    gc.collect()  # at a moment that does not depend on chance
    return {
        "seed": seed,
        "failure": None if failure is None or one is None else [failure.kind, str(failure), round(one.failed_at, 4)],
        "given_up": given_up,
        "figures": {} if one is None else vars(one.figures),
        "steps": clock.loop().steps,
        "took": clock.real_monotonic() - began,
    }


def _fault(name: str) -> AbstractContextManager[None]:
    """Plant a fault, or nothing if the name is empty. Raises :class:`KeyError` if there is no such fault."""
    return planted({fault.name: fault for fault in FAULTS}[name]) if name else nullcontext()


def main() -> None:
    """Answer commands until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends this process
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
