"""The exit status says whether anything was wrong, and the report is written where it was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pgbus_gevent.testing.chaos import __main__ as program
from pgbus_gevent.testing.chaos.conductor import Outcome, Window
from pgbus_gevent.testing.chaos.judge import WRONG, Finding
from pgbus_gevent.testing.chaos.processes import ChaosFailed


class Found:
    """Stands for the conductor, whose runs need minutes. ``findings`` is what the run finds, or why it fails."""

    findings: list[Finding] | BaseException = []  # noqa: RUF012  # the test sets it

    def __init__(self, options: object, say: object) -> None:
        self._options = options

    def run(self) -> Outcome:
        if isinstance(self.findings, BaseException):
            raise self.findings
        return Outcome(self._options, [Window("calm", 0.0)], findings=self.findings)  # type: ignore[arg-type]


@pytest.fixture
def conductor(monkeypatch: pytest.MonkeyPatch) -> type[Found]:
    monkeypatch.setattr(program, "Conductor", Found)
    return Found


def test_a_run_without_findings_is_a_success(conductor: type[Found]) -> None:
    conductor.findings = []
    assert program.main(["--seed", "1"]) == 0


@pytest.mark.parametrize("kind", WRONG)
def test_each_finding_fails_the_run(kind: str, conductor: type[Found], capsys: pytest.CaptureFixture[str]) -> None:
    conductor.findings = [Finding(kind, "chaos:plain-0", 3, 20, 2, 0.0)]
    assert program.main(["--seed", "1"]) == 1
    assert f"wrong: {kind}: message 2 of chaos:plain-0, id 20, client 3" in capsys.readouterr().out


def test_a_run_that_cannot_be_judged_has_a_status_of_its_own(
    conductor: type[Found], capsys: pytest.CaptureFixture[str]
) -> None:
    conductor.findings = ChaosFailed("the clients do not end")
    assert program.main(["--seed", "8"]) == 2
    assert capsys.readouterr().err == "the run failed (seed 8): the clients do not end\n"


def test_the_reports_are_written_to_files(conductor: type[Found], tmp_path: Path) -> None:
    conductor.findings = []
    places = {flag: tmp_path / flag for flag in ("json", "plot", "markdown")}
    assert program.main([word for flag, place in places.items() for word in (f"--{flag}", str(place))]) == 0
    assert json.loads(places["json"].read_text())["findings"] == []
    assert places["plot"].read_text().startswith("<svg ")
    assert places["markdown"].read_text().startswith("| fault | what is broken |")


def test_a_run_that_is_interrupted_says_that_nothing_was_judged(
    conductor: type[Found], capsys: pytest.CaptureFixture[str]
) -> None:
    conductor.findings = KeyboardInterrupt()
    assert program.main(["--seed", "8"]) == 130
    assert capsys.readouterr().err == "interrupted (seed 8): nothing was judged\n"


def test_a_report_that_cannot_be_written_after_the_run_has_the_status_of_a_run_that_failed(
    conductor: type[Found], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conductor.findings = []
    path = tmp_path / "report.json"
    path.symlink_to("/dev/full")
    assert program.main(["--seed", "8", "--json", str(path)]) == 2
    printed = capsys.readouterr()
    assert "nothing was wrong" in printed.out
    assert printed.err.startswith("the report cannot be written: ")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--seconds 0", "--seconds must be 1 or more"),
        ("--seconds inf", "--seconds must be 1 or more"),
        ("--clients 0", "--clients must be 1 or more"),
        ("--outage nan", "--outage must be 0 or more"),
        ("--calm -1", "--calm must be 0 or more"),
        ("--clients 1000000000", "1000000000 clients need 2000000300 open files, and the limit is "),
        ("--browsers 9 --clients 8", "--browsers must not be more than --clients"),
        ("--publishers http,gossip", "there are no publishers 'gossip'; there are autocommit, long, "),
        ("--postgres-bin /", "there is no program postgres in /"),
        ("--json /", "/ cannot be written"),
        ("--plot no/such/folder/plot.svg", "no/such/folder/plot.svg cannot be written"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_at_the_start(
    words: str, error: str, conductor: type[Found], capsys: pytest.CaptureFixture[str]
) -> None:
    conductor.findings = []
    with pytest.raises(SystemExit) as ended:
        program.main(words.split())
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


def test_every_fault_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == list(program.FAULTS)
