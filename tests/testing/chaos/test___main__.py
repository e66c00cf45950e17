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

    findings: list[Finding] | ChaosFailed = []  # noqa: RUF012  # the test sets it

    def __init__(self, options: object, say: object) -> None:
        self._options = options

    def run(self) -> Outcome:
        if isinstance(self.findings, ChaosFailed):
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


def test_every_fault_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == list(program.FAULTS)
