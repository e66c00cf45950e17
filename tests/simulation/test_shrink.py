"""The shortest history that fails is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.simulation.history import History
from tests.simulation.shrink import Shrinker


def history(count: int) -> History:
    return History(1, 1, operations=[[float(n), "publish", ["a", "b"], n] for n in range(count)])


def test_only_what_the_failure_needs_remains() -> None:
    def fails(candidate: History) -> float | None:
        there = {operation[3] for operation in candidate.operations}
        return 20.0 if {3, 17} <= there else None

    shortest = Shrinker(fails).shrink(history(40))
    assert [operation[3] for operation in shortest.operations] == [3, 17]
    assert [operation[2] for operation in shortest.operations] == [["a"], ["a"]]


def test_a_history_that_does_not_fail_again_is_left_as_it_is() -> None:
    before = history(10)
    assert Shrinker(lambda candidate: None).shrink(before) == before


def test_it_gives_up_in_time() -> None:
    runs = []

    def fails(candidate: History) -> float | None:
        runs.append(candidate)
        return 50.0 if len(candidate.operations) > 30 else None

    Shrinker(fails, most=25).shrink(history(40))
    assert len(runs) <= 26


def test_a_file_holds_all_of_a_history(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    before = replace(history(3), troubles=["cut"], settings={"readers": 2}, planted="a")
    before.write(path)
    assert History.read(path) == before
