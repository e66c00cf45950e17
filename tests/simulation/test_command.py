"""What the command line refuses, and what it prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.simulation import command
from tests.simulation.children import Result


class FakeChildren:
    """Stands for the processes. ``answers`` are what they find; after them, somebody presses Ctrl-C."""

    answers: list[Result] = []  # noqa: RUF012  # the test sets it

    def __init__(self, jobs: int) -> None:
        pass

    def __enter__(self) -> FakeChildren:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def results(self, commands: object) -> Iterator[Result]:
        yield from self.answers
        raise KeyboardInterrupt

    def run(self, history: object) -> Result:
        return self.answers[0]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> type[FakeChildren]:
    monkeypatch.setattr(command, "Children", FakeChildren)
    return FakeChildren


def result(failure: tuple[str, str, float] | None = None, **figures: Any) -> Result:
    return Result({}, 7, failure, figures, 1, 0.1)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--seeds", "0"], "--seeds must be more than 0"),
        (["--deliveries", "-1"], "--deliveries must be more than 0"),
        (["--seconds", "nan"], "--seconds must be more than 0"),
        (["--jobs", "0"], "--jobs must be more than 0"),
        (["--planted", "none"], "there is no fault 'none'"),
        (["--write", "no/such/folder/file"], "no/such/folder/file cannot be written"),
        (["--planted", "--write", "no/such/folder"], "no/such/folder is no folder"),
    ],
)
def test_what_would_run_nothing_is_refused(words: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2
    assert error in capsys.readouterr().err


def test_ctrl_c_prints_the_figures_so_far(children: type[FakeChildren], capsys: pytest.CaptureFixture[str]) -> None:
    children.answers = [result(deliveries=41), result(deliveries=1)]
    assert command.main(["--seed", "7"]) == 130
    printed = capsys.readouterr()
    assert printed.out.startswith("2 seeds from 7, ")
    assert "\n42 deliveries and " in printed.out
    assert printed.err == "interrupted\n"


def test_a_replay_says_when_which_promise_was_broken_and_that_a_fault_is_planted(
    children: type[FakeChildren], capsys: pytest.CaptureFixture[str]
) -> None:
    children.answers = [result(("lost", "lost: c3 did not get 9", 2.5))]
    path = Path(__file__).parent / "planted/histories/admission_doubled.json"
    assert command.main(["--replay", str(path)]) == 1
    printed = capsys.readouterr().out
    assert printed == "planted in the product: admission_doubled\nafter 2.500 s, lost: c3 did not get 9\n"


@pytest.mark.parametrize("text", [None, "no JSON", "[1]", '{"seed": 1}'])
def test_a_file_without_a_history_is_named(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.json"
    if text is not None:
        path.write_text(text)
    assert command.main(["--replay", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"{path} has no history that can be read: ")
