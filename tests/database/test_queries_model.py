"""The model of the database that simulations use answers as the real database does: the same histories run on both.

The model is in tests/simulation/database, and docs/simulation.md says what it covers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from database_parts import opened_sessions
from model_database_parts import RealSide, run
from model_faults_parts import FAULTS, Fault, forget, planted
from model_histories_parts import SCENARIOS, THEMES, Histories
from model_parts import Start, Taken, replay

HISTORIES = int(os.environ.get("MODEL_HISTORIES", "2"))
"""How many histories of each theme are compared."""
SEED = int(os.environ.get("MODEL_SEED", "1"))
STEPS = 40
TABLE = os.environ.get("MODEL_TABLE")
"""A file to which the table of the faults is written, with the number of histories in which each is found."""


@pytest.fixture
def real(database: str) -> Iterator[RealSide]:
    with opened_sessions(database) as opener:
        watcher = opener()
        number = watcher.call("_lock_number", "d")
        twin = next(f"twin {n}" for n in count() if watcher.call("_lock_number", f"twin {n}") == number)
        side = RealSide(opener, ["a", "b", "d", twin])
        try:
            yield side
        finally:
            side.end()


@pytest.mark.slow
@pytest.mark.pgbus_timeout(600)  # on a machine that does much else; otherwise half a minute
def test_the_model_answers_as_the_database_does_and_a_model_with_a_fault_does_not(
    real: RealSide, tmp_path: Path
) -> None:
    recorded: list[tuple[Start, list[Taken]]] = []
    for name, steps in SCENARIOS.items():
        recorded.append(run(real, lambda model, steps=steps: filter(model.is_possible, steps)))
        assert recorded[-1][1], name
    for seed in range(SEED, SEED + HISTORIES):
        for theme in THEMES:
            histories = Histories(seed, theme)
            try:
                recorded.append(run(real, lambda model, histories=histories: histories.steps(model, STEPS)))
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, theme {theme}: {error}") from error

    found = {fault.name: _finds(fault, recorded, tmp_path / str(n), n) for n, fault in enumerate(FAULTS)}
    if TABLE:
        Path(TABLE).write_text("".join(f"| {name} | {number} |\n" for name, number in found.items()))
    assert [name for name, number in found.items() if number == 0] == []


def _finds(fault: Fault, recorded: list[tuple[Start, list[Taken]]], directory: Path, number: int) -> int:
    """Return in how many histories a fault is found; only whether it is, unless the table is wanted."""
    model = planted(fault, directory, number)
    try:
        finds = (bool(replay(start, taken, model)) for start, taken in recorded)
        return sum(finds) if TABLE else int(any(finds))
    finally:
        forget(model)
