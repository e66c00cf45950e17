"""The benchmark: each scenario runs and reports its metrics. Speed is not tested."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cli_parts import ROOT, Cli

from pgbus_gevent.bench import stamps
from pgbus_gevent.bench.command import SCENARIOS
from pgbus_gevent.bench.goals import GOALS, Goal, judge
from pgbus_gevent.bench.lab import OURS, adapters
from pgbus_gevent.bench.load import percentiles
from pgbus_gevent.bench.program import BenchFailed, Program
from pgbus_gevent.bench.report import TITLES, Result, number, table

TINY = ("--repeat", "1", "--clients", "6", "--messages", "5", "--seconds", "0.3")
SOMETIMES = {
    "kb_per_slow",
    "lost",
    "call_p50",
    "call_p99",
    "p50",
    "p99",
    "all_after_ms",
    "rows",
    "dead_rows",
    "horizons_kb",
    "prune_ms",
    "redis_cpu_percent",
}
"""Metrics that some rows of a scenario lack."""


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def bench(cli: Cli, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cli.ok("bench", *arguments, "--json"))
    return found


# scenarios


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "fleet"])
def test_a_scenario_gives_rows_with_all_its_columns(name: str, cli: Cli, pgbus_database: str) -> None:
    told = bench(cli, name, *TINY, "--peers", "loop", "--database-url", pgbus_database)
    rows = told["results"]
    assert {row["server"] for row in rows} == ({OURS, "loop"} if SCENARIOS[name].peers else {OURS})
    assert told["goals"] == []
    for row in rows:
        assert (row["scenario"], row["runs"]) == (name, 1)
        assert set(SCENARIOS[name].columns) - set(row) <= SOMETIMES
        assert row.get("lost", 0) == 0


@pytest.mark.slow
def test_a_fleet_is_measured_in_each_way_and_at_each_rate(cli: Cli) -> None:
    cli.patience = 120.0  # for two or three fleets, on a server of PostgreSQL of their own
    with TemporaryDirectory(prefix="pgbus-", dir="/tmp") as directory:
        Path(directory).chmod(0o711)
        ended = cli.run("bench", "fleet", *TINY, "--fleets", "2", "--data-dir", directory, "--json")
        assert os.listdir(directory) == []
    assert ended.status == 0, ended.err
    rows = {row["variant"]: row for row in json.loads(ended.out)["results"]}
    ways = ["no steward", "steward", *(["redis"] if "redis is left out" not in ended.err else [])]
    assert list(rows) == [f"{way}, 2, {rate}" for way in ways for rate in ("idle", "10/s", "100/s")]
    for row in rows.values():
        assert set(SCENARIOS["fleet"].columns) - set(row) <= SOMETIMES
        assert (row["workers"], row["processes"], row.get("lost", 0)) == (2, 2, 0)
        assert {"p50", "call_p99"} & row.keys() == ({"p50", "call_p99"} if row["rate"] else set())


def test_the_fresh_database_is_removed(cli: Cli) -> None:
    with TemporaryDirectory(prefix="pgbus-", dir="/tmp") as directory:
        Path(directory).chmod(0o711)  # if root runs the tests, the database server runs as another user
        out = cli.ok("bench", "fanout", *TINY, "--peers", "--data-dir", directory)
        assert "deliveries/s" in out
        assert os.listdir(directory) == []


def test_a_peer_that_is_not_installed_is_left_out_with_a_line(cli: Cli, tmp_path: Path, pgbus_database: str) -> None:
    (tmp_path / "absent.py").write_text("""print('{"missing": "apt-get install absent"}')""")
    status, out, err = cli.run(
        *("bench", "fanout", *TINY, "--json", "--peers-dir", str(tmp_path), "--database-url", pgbus_database)
    )
    assert status == 0
    assert [row["server"] for row in json.loads(out)["results"]] == [OURS]
    assert err == "pgbus-gevent: absent is left out: apt-get install absent\n"


def test_wrong_names_are_refused(cli: Cli) -> None:
    assert "there is no scenario 'fan'" in cli.fails(2, "bench", "fan")
    assert "there is no adapter nobody.py" in cli.fails(2, "bench", "fanout", "--peers", "nobody")
    assert "--clients" in cli.fails(2, "bench", "--clients", "0")


def test_the_adapters_are_there() -> None:
    assert adapters(ROOT / "benchmarks" / "peers" / "speed") == ["loop", "loop-c", "nchan", "pg-sse"]


# its parts


def test_a_message_has_the_size_that_was_asked_for_and_one_mark() -> None:
    frame = stamps.frame(stamps.data(215, stamps.now()))
    assert len(frame) == 215
    assert frame.count(stamps.MARK) == 1


def test_percentiles_are_in_milliseconds() -> None:
    assert percentiles(list(range(0, 100_000, 1000))) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 99.0}
    assert percentiles([]) == {}


@pytest.mark.program
def test_a_program_that_fails_is_reported() -> None:
    with closing(Program.module("publisher")) as program, pytest.raises(BenchFailed, match="failed: KeyError"):
        program.call(20.0, do="nothing")


@pytest.mark.program
def test_a_program_that_ends_is_reported() -> None:
    with closing(Program("gone", [sys.executable, "-c", ""])) as program, pytest.raises(BenchFailed, match="has ended"):
        program.call(20.0, do="nothing")


@pytest.mark.program
def test_a_program_that_does_not_answer_is_reported() -> None:
    mute = Program("mute", [sys.executable, "-c", "import sys; sys.stdin.read()"])
    with closing(mute), pytest.raises(BenchFailed, match=r"no answer within 0\.2 s"):
        mute.call(0.2, do="nothing")


def test_rows_are_the_medians_of_their_runs() -> None:
    result = Result("fanout", OURS, "", [{"per_second": 1, "lost": 0}, {"per_second": 9, "lost": 0}, {"per_second": 2}])
    assert result.metrics == {"per_second": 2}


def test_a_table_is_aligned() -> None:
    rows = [Result("s", "a", "", [{"p50": 1.234, "clients": 10}]), Result("s", "longer", "v", [{"p50": 12_345.6}])]
    assert table(rows, ("p50", "clients")).splitlines() == [
        "          p50 ms  clients",
        "a           1.23       10",
        "longer v  12,346        -",
    ]


@pytest.mark.parametrize(
    "value, text", [(None, "-"), (0, "0"), (40, "40"), (0.5, "0.50"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_numbers_have_three_digits_that_count(value: float | None, text: str) -> None:
    assert number(value) == text


def test_goals_are_judged_by_the_median_ratio_of_the_runs() -> None:
    rows = [
        Result("fanout", OURS, "", [{"per_second": 300}, {"per_second": 20}, {"per_second": 8}]),
        Result("fanout", "nchan", "", [{"per_second": 100}, {"per_second": 10}, {"per_second": 8}]),
    ]
    goals = [
        Goal("fanout", "per_second", other=("nchan", ""), at_least=1.5),
        Goal("fanout", "per_second", other=("nchan", ""), at_least=2.5),
        Goal("fanout", "per_second", other=("absent", ""), at_least=1.5),
        Goal("fanout", "per_second", at_most=20),
    ]
    assert [(outcome.value, outcome.holds) for outcome in judge(rows, goals)] == [(2, True), (2, False), (20, True)]


def test_goals_speak_of_metrics_that_there_are() -> None:
    for goal in GOALS:
        assert goal.metric in SCENARIOS[goal.scenario].columns
        assert (goal.at_most is None) != (goal.at_least is None)


def test_the_columns_are_explained_beside_the_results() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    columns = {column for scenario in SCENARIOS.values() for column in scenario.columns}
    assert set(TITLES) <= columns
    assert [column for column in sorted(columns) if f"`{column}`" not in text] == []
