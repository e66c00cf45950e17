"""A history that cannot be run is given up, and ends no other; neither does the death of the process that runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.children import Children, Result
from tests.simulation.command import main, too_many
from tests.simulation.history import History

SOUND = {"seed": 4}

pytestmark = [pytest.mark.program, pytest.mark.slow]


@pytest.fixture
def children() -> Iterator[Children]:
    with Children(1) as found:
        yield found


def history(*operations: list[object]) -> History:
    base = History.read(next((Path(__file__).parent / "histories").glob("*.json")))
    base.operations = list(operations)
    return base


def is_sound(result: Result) -> bool:
    return result.failure is None and result.given_up is None and result.figures["deliveries"] > 0


def test_what_the_simulator_does_not_know_is_given_up(children: Children) -> None:
    for command in ({"history": vars(history([1.0, "no such thing"]))}, {"seed": 3, "planted": "no such fault"}):
        (result,) = children.results([command])
        assert result.failure is None and result.given_up is not None and "no such" in result.given_up
    (result,) = children.results([SOUND])
    assert is_sound(result)


def test_a_process_that_takes_too_long_is_ended_and_replaced() -> None:
    with Children(1, patience=0.05) as children:
        (result,) = children.results([SOUND])
        assert result.given_up is not None and "status -9" in result.given_up
    with Children(1) as children:
        (first,) = children.results([SOUND])
        for child in children.processes:
            child.kill()
        (second,), (third,) = children.results([SOUND]), children.results([SOUND])
    assert is_sound(first) and is_sound(third)
    assert second.given_up is not None and "status -9" in second.given_up


def test_the_command_fails_for_a_history_that_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history([1.0, "no such thing"]).write(tmp_path / "one.json")
    assert main(["--replay", str(tmp_path / "one.json")]) == 1
    assert "no such thing" in capsys.readouterr().out


def test_one_in_a_hundred_may_be_given_up() -> None:
    assert [too_many(*numbers) for numbers in ((1, 5), (2, 5), (2, 200), (3, 200))] == [False, True, False, True]
