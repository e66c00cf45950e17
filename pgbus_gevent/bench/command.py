"""The command ``bench``: runs each scenario with every server that supports it, and prints the results."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

from ..commands.program import Command, say
from ..errors import InvalidArgument
from ..settings.table import Settings
from . import machine
from .audiences import AUDIENCES
from .deliveries import MANY, MIXED, REPLAY, SLOW
from .fleet import FLEET
from .goals import Outcome, judge
from .lab import OURS, PEERS, Missing, Run, Scale, adapters, database
from .polls import POLLS
from .presence import PRESENCE
from .publishing import PUBLISH
from .report import Result, table
from .requests import REQUESTS
from .retention import RETENTION
from .scenarios import FANOUT, IDLE, PACED, Scenario

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        IDLE,
        FANOUT,
        PACED,
        MANY,
        REPLAY,
        SLOW,
        MIXED,
        AUDIENCES,
        PUBLISH,
        REQUESTS,
        POLLS,
        PRESENCE,
        RETENTION,
        FLEET,
    )
}

_ABOUT = """\
Measure the speed and the cost of the delivery, and compare it with a bare loop and with other servers.

Server, clients and publishers are separate processes on this machine and use only the loopback interface. The database is new
and is removed at the end. It is made below --data-dir, so its disk counts, or else in the directory for temporary files.
Clients and server share the cores, so compare only rows of one run, and compare CPU seconds rather than rates:
CPU s/M are the CPU seconds of the server for a million deliveries.

scenarios:
{scenarios}"""

_EXAMPLES = """\
examples:
  pgbus-gevent bench
  pgbus-gevent bench fanout paced --peers loop nchan
  pgbus-gevent bench idle --clients 2000 --repeat 1 --json"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help="the scenarios to run; default: all but retention and fleet"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--clients", type=_positive, metavar="N", help="the number of clients in each scenario")
    parser.add_argument("--messages", type=_positive, metavar="N", help="the number of messages in a burst")
    parser.add_argument(
        "--fleets", type=_positive, nargs="+", metavar="N", help="the numbers of workers in the scenario fleet"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="the duration of scenarios that publish at a rate")
    parser.add_argument(
        "--repeat", type=_positive, default=3, metavar="N", help="runs of each scenario; medians are shown; default: 3"
    )
    parser.add_argument(
        "--peers", nargs="*", metavar="NAME", help="the other servers to run too; default: all that are installed"
    )
    parser.add_argument(
        "--peers-dir",
        type=Path,
        default=PEERS,
        metavar="DIR",
        help="the directory of their adapters; default: %(default)s",
    )
    parser.add_argument(
        "--database-url",
        metavar="URL",
        help="use this database, with the streams bench:* and the schema pgbus_bench; default: a new database",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_positive.__name__ = "number"  # argparse uses this name in its error message


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    chosen = [_scenario(name) for name in arguments.scenarios] or [each for each in SCENARIOS.values() if each.usual]
    bench = _Bench(arguments, chosen)
    with database(arguments.database_url, arguments.data_dir) as (url, postmaster):
        bench.run(url, postmaster)
    return 0


def _scenario(name: str) -> Scenario:
    if name not in SCENARIOS:
        raise InvalidArgument(f"there is no scenario {name!r}; the scenarios are {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


class _Bench:
    """One call of the command: runs the scenarios and collects the results."""

    def __init__(self, arguments: argparse.Namespace, scenarios: Sequence[Scenario]) -> None:
        self._scenarios = scenarios
        self._repeat = arguments.repeat
        self._json = arguments.json
        self._peers_dir = arguments.peers_dir
        fleets = tuple(arguments.fleets) if arguments.fleets else None
        self._scale = Scale(arguments.clients, arguments.messages, arguments.seconds, fleets)
        self._data_dir = arguments.data_dir
        self._peers = self._choose(arguments.peers)

    def _choose(self, wanted: list[str] | None) -> list[str]:
        there = adapters(self._peers_dir)
        for name in wanted or ():
            if name not in there:
                raise InvalidArgument(
                    f"there is no adapter {name}.py in {self._peers_dir}; it has {', '.join(there) or 'none'}"
                )
        return there if wanted is None else wanted

    def run(self, url: str, postmaster: int | None) -> None:
        """Run all scenarios. Prints each table as soon as it is complete, or one JSON object at the end."""
        began = datetime.now(timezone.utc).isoformat(timespec="seconds")
        facts = {"date": began, **machine.describe()}
        if not self._json:
            print("{date}, {cpu}, {cores} cores, Linux {kernel}, Python {python}, load {load:.1f}".format(**facts))
        rows = []
        for scenario in self._scenarios:
            results = self._results(scenario, url, postmaster)
            rows += results
            if not self._json:
                print(f"\n{scenario.name}: {scenario.about}\n{table(results, scenario.columns)}", flush=True)
                for outcome in self._outcomes(results):
                    print(outcome.as_text(), flush=True)
        if self._json:
            found = {
                "results": [row.as_json() for row in rows],
                "goals": [outcome.as_json() for outcome in self._outcomes(rows)],
            }
            print(json.dumps({**facts, **found}, indent=1))

    def _outcomes(self, results: Sequence[Result]) -> list[Outcome]:
        """Judge the goals, which apply only to scenarios at their default size."""
        return list(judge(results)) if self._scale == Scale() else []

    def _results(self, scenario: Scenario, url: str, postmaster: int | None) -> list[Result]:
        found: dict[tuple[str, str], Result] = {}
        servers = [OURS, *(self._peers if scenario.peers else ())]
        # The servers take turns, so that other load on the machine affects all of them.
        for n in range(self._repeat):
            for name in list(servers):
                if sys.stderr.isatty():
                    say(f"{scenario.name}, run {n + 1} of {self._repeat}, {name}")
                try:
                    with ExitStack() as stack:
                        run = Run(url, postmaster, name, self._scale, stack, self._peers_dir, self._data_dir)
                        for variant, metrics in scenario.run(run).items():
                            key = (name, variant)
                            found.setdefault(key, Result(scenario.name, *key)).runs.append(metrics)
                except Missing as missing:
                    say(f"{name} is left out: {missing}")
                    servers.remove(name)
                    self._peers.remove(name)
        return sorted(found.values(), key=lambda result: servers.index(result.server))


def _listed() -> Iterator[str]:
    for scenario in SCENARIOS.values():
        yield f"  {scenario.name:9} {scenario.about}"


BENCH = Command(
    "bench",
    "measure the delivery, and compare it with other servers",
    _ABOUT.format(scenarios="\n".join(_listed())),
    _EXAMPLES,
    ("data_dir",),
    _add_arguments,
    _run,
)
