"""``python -m pgbus_gevent.testing.chaos``: chaos on real parts, with a judge."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from . import plot, report
from .conductor import Conductor, Options, fresh_seed
from .processes import ChaosFailed
from .register import FAULTS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pgbus_gevent.testing.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="for how long faults are begun (120)")
    parser.add_argument("--clients", type=int, default=200, help="the number of clients (200)")
    parser.add_argument("--seed", type=int, help="the seed of the draws; by default a fresh one, which is printed")
    parser.add_argument("--outage", type=float, default=4.0, help="how many seconds an outage lasts (4)")
    parser.add_argument("--calm", type=float, default=4.0, help="the mean time between two faults, in seconds (4)")
    parser.add_argument("--faults", default="", help="only these faults, separated by commas; --list names them")
    parser.add_argument("--list", action="store_true", help="name the faults and what they do, and end")
    parser.add_argument("--publishers", default="", help="only these kinds of publishers, separated by commas")
    parser.add_argument("--wake", choices=["postgres", "redis"], default="postgres", help="what wakes the workers")
    parser.add_argument("--browsers", type=int, default=0, help="how many of the clients are pages in Chromium (0)")
    parser.add_argument("--postgres-bin", type=Path, help="the directory of PostgreSQL's programs (the wheel's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON, too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the report as a table of Markdown, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the report as SVG, too")
    parser.add_argument("--keep", action="store_true", help="keep the logs and the data")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run, print the report, and return the exit status: 1 if anything was wrong, 2 if the run itself failed."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.list:
        print("\n".join(f"{fault.name:28} {fault.description}" for fault in FAULTS.values()))
        return 0
    names = [name for name in given.faults.split(",") if name]
    for name in names:
        if name not in FAULTS:
            parser.error(f"there is no fault {name!r}; --list names them")
    options = Options(
        seconds=given.seconds,
        clients=given.clients,
        seed=fresh_seed() if given.seed is None else given.seed,
        outage=given.outage,
        calm=given.calm,
        faults=names,
        kinds=given.publishers,
        redis=given.wake == "redis",
        browsers=given.browsers,
        binaries=given.postgres_bin,
        keep=given.keep,
    )
    try:
        outcome = Conductor(options, lambda line: print(line, flush=True)).run()
    except ChaosFailed as error:
        print(f"the run failed (seed {options.seed}): {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(report.text(outcome))
    if given.json:
        given.json.write_text(json.dumps(report.as_json(outcome), indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(report.markdown(outcome) + "\n")
    if given.plot:
        given.plot.write_text(plot.svg(outcome))
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # an orderly end, as with Ctrl-C
    sys.exit(main())
