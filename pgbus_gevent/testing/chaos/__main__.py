"""``python -m pgbus_gevent.testing.chaos``: chaos on real parts, with a judge."""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import signal
import sys
from pathlib import Path

from . import plot, report
from .conductor import Conductor, Options, fresh_seed
from .processes import ChaosFailed
from .publishing import KINDS
from .register import FAULTS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pgbus_gevent.testing.chaos",
        description="Break real parts, and judge what real clients were sent; see docs/reliability.md.",
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="for how long faults are begun (120)")
    parser.add_argument("--clients", type=int, default=200, help="the number of clients (200)")
    parser.add_argument("--seed", type=int, help="the seed of the draws; by default a fresh one, which is printed")
    parser.add_argument("--outage", type=float, default=4.0, help="how many seconds an outage lasts (4)")
    parser.add_argument("--calm", type=float, default=4.0, help="the mean time between two faults, in seconds (4)")
    parser.add_argument("--faults", default="", help="only these faults, separated by commas; --list names them")
    parser.add_argument("--list", action="store_true", help="name the faults and what they do, and end")
    kinds = ", ".join(kind.name for kind in KINDS)
    parser.add_argument(
        "--publishers", default="", help=f"only these kinds of publishers, separated by commas: {kinds}"
    )
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
    _check(parser, given)
    options = Options(
        seconds=given.seconds,
        clients=given.clients,
        seed=fresh_seed() if given.seed is None else given.seed,
        outage=given.outage,
        calm=given.calm,
        faults=_names(given.faults),
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
        print(f"interrupted (seed {options.seed}): nothing was judged", file=sys.stderr)
        return 130
    print(report.text(outcome))
    try:
        if given.json:
            given.json.write_text(json.dumps(report.as_json(outcome), indent=1) + "\n")
        if given.markdown:
            given.markdown.write_text(report.markdown(outcome) + "\n")
        if given.plot:
            given.plot.write_text(plot.svg(outcome))
    except OSError as error:
        print(f"the report cannot be written: {error}", file=sys.stderr)
        return 2
    return 1 if outcome.findings else 0


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Refuse what would run for minutes and then fail, or prove nothing."""
    for name, least in (("seconds", 1), ("clients", 1), ("outage", 0), ("calm", 0), ("browsers", 0)):
        if not least <= getattr(given, name) < math.inf:
            parser.error(f"--{name} must be {least} or more")
    if given.browsers > given.clients:
        parser.error("--browsers must not be more than --clients")
    for name in _names(given.faults):
        if name not in FAULTS:
            parser.error(f"there is no fault {name!r}; --list names them")
    kinds = [kind.name for kind in KINDS]
    for name in _names(given.publishers):
        if name not in kinds:
            parser.error(f"there are no publishers {name!r}; there are {', '.join(kinds)}")
    if given.postgres_bin and not (given.postgres_bin / "postgres").is_file():
        parser.error(f"there is no program postgres in {given.postgres_bin}")
    for path in (given.json, given.markdown, given.plot):
        # Not Path.exists, which raises an error for a folder that may not be entered.
        if path and (
            os.path.isdir(path) or not os.access(path if os.path.exists(path) else path.absolute().parent, os.W_OK)
        ):
            parser.error(f"{path} cannot be written")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * given.clients + 300  # a line has two for each connection
    if hard != resource.RLIM_INFINITY and hard < needed:
        parser.error(f"{given.clients} clients need {needed} open files, and the limit is {hard} (ulimit -n)")


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))  # an orderly end, as with Ctrl-C
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the parts inherit it
    sys.exit(main())
