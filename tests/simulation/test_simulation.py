"""Fresh seeds, every seed and every history that ever failed, and the planted faults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.children import Children, Result
from tests.simulation.command import SEEDS, _seeds, options
from tests.simulation.figures import Figures
from tests.simulation.history import History
from tests.simulation.planted.faults import FAULTS

HERE = Path(__file__).parent
FRESH = 60.0
"""Seconds for fresh seeds."""

PLANTED = sorted(HERE.glob("planted/histories/*.json"))

# Each starts processes, and computes for long.
pytestmark = [pytest.mark.program, pytest.mark.slow]


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children(1) as found:
        yield found


def text(result: Result) -> str:
    return (
        f"seed {result.seed}: {result.failure}; see it with: python -m tests.simulation --seed {result.seed} --seeds 1"
    )


def test_fresh_seeds_break_no_promise(children: Children) -> None:
    first = time.time_ns() // 1000 % 10**9
    print("the first seed is", first)
    chosen = options(["--seed", str(first), "--seconds", str(FRESH)])
    results = list(children.results(_seeds(chosen, time.monotonic())))
    figures = Figures()
    for result in results:
        figures.add(Figures(**result.figures))
    print(len(results), "seeds,", figures.text())
    assert [text(result) for result in results if result.failure is not None] == []
    assert figures.deliveries > 0


def old_seeds() -> list[int]:
    lines = SEEDS.read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("seed", old_seeds())
def test_a_seed_that_failed_once_breaks_no_promise(seed: int, children: Children) -> None:
    (result,) = children.results([{"seed": seed}])
    assert result.failure is None, text(result)


def test_a_seed_gives_the_same_simulation_in_each_process(children: Children) -> None:
    with Children(1) as others:
        (one,), (other,) = children.results([{"seed": 4}]), others.results([{"seed": 4}])
    assert (one.figures, one.steps) == (other.figures, other.steps)


@pytest.mark.parametrize("path", sorted(HERE.glob("histories/*.json")), ids=lambda path: path.stem)
def test_a_history_that_failed_once_breaks_no_promise(path: Path, children: Children) -> None:
    assert children.run(History.read(path)).failure is None


@pytest.mark.parametrize("path", PLANTED, ids=lambda path: path.stem)
def test_a_planted_fault_is_found(path: Path, children: Children) -> None:
    history = History.read(path)
    assert history.planted == path.stem
    found = children.run(history, path.stem).failure
    assert found is not None, (
        f"make another one: python -m tests.simulation --planted {path.stem} --write {path.parent}"
    )
    history.planted = ""
    assert children.run(history).failure is None


def test_there_are_histories_of_most_faults() -> None:
    assert {path.stem for path in PLANTED} <= {fault.name for fault in FAULTS}
    assert len(PLANTED) >= 10
