"""``python -m benchmarks.endurance soak|stalled|silent|names|descriptors``: prints a report as JSON.

The status is 1 if a bound was broken.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    # Before other imports, because modules that were imported unpatched keep unpatched functions.
    monkey.patch_all()

import argparse
import json
import math
import signal
import sys
from typing import Any

from . import descriptors, names, silent, stalled
from .soak import soak
from .target import raise_own_limit


def main() -> None:
    """Run the attack that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.endurance", description=__doc__)
    attacks = parser.add_subparsers(dest="attack", required=True)
    churn = attacks.add_parser("soak", help="clients and publishers come and go; nothing may stay")
    churn.add_argument("--minutes", type=float, default=60.0)
    churn.add_argument("--rounds", type=int, default=5)
    churn.add_argument("--workers", type=int, default=1)
    churn.add_argument("--edge", action="store_true", help="the clients come to an edge")
    churn.add_argument("--redis", action="store_true")
    churn.add_argument("--seed", type=int, default=1)
    mute = attacks.add_parser("silent", help="connections without a request")
    mute.add_argument("--connections", type=int, default=8000)
    mute.add_argument("--limit", type=int, default=2000, help="the server's limit of descriptors")
    mute.add_argument("--seconds", type=float, default=30.0)
    full = attacks.add_parser("descriptors", help="no descriptor is left")
    full.add_argument("--limit", type=int, default=300)
    full.add_argument("--seconds", type=float, default=10.0)
    slow = attacks.add_parser("stalled", help="clients that stop reading")
    slow.add_argument("--clients", type=int, default=10_000)
    slow.add_argument("--size", type=int, default=65536, help="bytes of a message")
    slow.add_argument("--messages", type=int, default=40)
    slow.add_argument("--rate", type=float, default=2.0, help="messages per second")
    slow.add_argument("--deadline", type=float, default=20.0, help="write_deadline, in seconds")
    slow.add_argument("--distinct", action="store_true", help="each client has a cursor of its own")
    slow.add_argument("--send-buffer", default="64KB")
    flood = attacks.add_parser("names", help="floods of names")
    flood.add_argument("--count", type=int, default=100_000)
    flood.add_argument("--watched", type=int, default=2000)
    flood.add_argument("--edge", action="store_true")
    options = vars(parser.parse_args())
    numbers = {name: value for name, value in options.items() if type(value) in (int, float) and name != "seed"}
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            parser.error(f"--{name} must be more than 0")
    most, needed = raise_own_limit(), max(numbers.get("clients", 0), numbers.get("connections", 0))
    if most <= needed:
        parser.error(f"this needs a limit of more than {needed} open files, and it is {most} (ulimit -n)")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, so that all servers are ended
    try:
        report, broken = ATTACKS[options.pop("attack")](**options)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    print(json.dumps(report, indent=1))
    sys.exit(1 if broken else 0)


def _soak(**options: Any) -> tuple[dict[str, Any], bool]:
    report = soak(**options)
    return report, bool(report["grown"] or report["leaks_memory"] or report["workers_lost"] or report["tracebacks"])


def _judged(attack: Any) -> Any:
    """Run an attack of a module, and let the module judge its report."""
    name = attack.__name__.rpartition(".")[2]

    def run(**options: Any) -> tuple[dict[str, Any], bool]:
        report = getattr(attack, name)(**options)
        return report, attack.is_broken(report)

    return run


ATTACKS = {
    "soak": _soak,
    "silent": _judged(silent),
    "descriptors": _judged(descriptors),
    "stalled": _judged(stalled),
    "names": _judged(names),
}

if __name__ == "__main__":
    main()
