"""Fresh seeds, every seed and every history that ever failed, and the planted faults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.fresh_seeds import fresh_seed
from tests.simulation.children import Children, Result
from tests.simulation.command import SEEDS, _seeds, options, too_many
from tests.simulation.figures import Figures
from tests.simulation.history import History
from tests.simulation.planted.faults import FAULTS

HERE = Path(__file__).parent
FRESH = 60.0
"""Seconds for fresh seeds, in each of two tests, which can run at the same time."""

PLANTED = sorted(HERE.glob("planted/histories/*.json"))

# Each starts processes, and computes for long.
pytestmark = [pytest.mark.program, pytest.mark.slow]


@pytest.fixture
def children() -> Iterator[Children]:
    with Children(1) as found:
        yield found


def text(result: Result) -> str:
    return (
        f"seed {result.seed}: {result.failure}; see it with: python -m tests.simulation --seed {result.seed} --seeds 1"
    )


@pytest.mark.parametrize("half", [0, 1])
def test_fresh_seeds_break_no_promise(children: Children, half: int, capsys: pytest.CaptureFixture[str]) -> None:
    first = fresh_seed(HERE) + half * 10**10
    chosen = options(["--seed", str(first), "--seconds", str(FRESH)])
    results = list(children.results(_seeds(chosen, time.monotonic())))
    figures = Figures()
    for result in results:
        figures.add(Figures(**result.figures))
        if result.given_up is not None:
            figures.given_up += 1
            print("seed", result.seed, "was given up:", result.given_up)
    with capsys.disabled():
        print(f"\n{len(results)} fresh seeds of the simulator from {first}: {figures.text()}")
    assert [text(result) for result in results if result.failure is not None] == []
    assert figures.deliveries > 0
    assert not too_many(figures.given_up, len(results))


def old_seeds() -> list[int]:
    lines = SEEDS.read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


def test_seeds_that_failed_once_break_no_promise(children: Children) -> None:
    results = list(children.results({"seed": seed} for seed in old_seeds()))
    assert results
    assert [text(result) for result in results if result.failure is not None] == []


def test_a_seed_gives_the_same_simulation_in_each_process(children: Children) -> None:
    with Children(1) as others:
        (one,), (other,) = children.results([{"seed": 4}]), others.results([{"seed": 4}])
    assert (one.figures, one.steps) == (other.figures, other.steps)


def test_histories_that_failed_once_break_no_promise(children: Children) -> None:
    found = {path.stem: children.run(History.read(path)) for path in HERE.glob("histories/*.json")}
    assert {name: each.failure or each.given_up for name, each in found.items() if each.failure or each.given_up} == {}


def test_planted_faults_are_found(children: Children) -> None:
    """If the product has changed, make another history: python -m tests.simulation --planted NAME --write FOLDER."""
    missed, wrong = [], []
    for path in PLANTED:
        history = History.read(path)
        if children.run(history, path.stem).failure is None:
            missed.append(path.stem)
        history.planted = ""
        sound = children.run(history)
        if sound.failure is not None or sound.given_up is not None:
            wrong.append(path.stem)
    assert (missed, wrong) == ([], [])


def test_each_planted_fault_has_a_history() -> None:
    assert {path.stem for path in PLANTED} == {fault.name for fault in FAULTS}
    assert len(PLANTED) >= 10
