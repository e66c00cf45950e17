"""The ordering rules as models in Promela. Spin tries every interleaving of each, and finds every fault that is planted in it.

A model is ``NAME.pml``. ``#ifdef FAULT_X`` in it plants a fault. To see how Spin reaches a fault:
``spin -a -DFAULT_X NAME.pml && gcc -O2 -DSAFETY -o pan pan.c && ./pan && spin -t -p -g -DFAULT_X NAME.pml``
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODELS = sorted(Path(__file__).parent.glob("*.pml"))
FAULTS = [
    pytest.param(model, fault, id=f"{model.stem}-{fault}")
    for model in MODELS
    for fault in sorted(set(re.findall(r"\bFAULT_\w+", model.read_text(encoding="utf-8"))))
]
DEPTH = 100_000
MEGABYTES = 1500

pytestmark = pytest.mark.skipif(
    not (shutil.which("spin") and shutil.which("gcc")), reason="needs spin and gcc: apt-get install spin gcc libc6-dev"
)


def search(model: Path, folder: Path, fault: str | None = None) -> str:
    """Search all states of a model, or until the first error, and return pan's report."""
    for command in (
        ["spin", "-a", *([f"-D{fault}"] if fault else []), str(model)],
        ["gcc", "-O1", "-w", "-DSAFETY", f"-DMEMLIM={MEGABYTES}", "-o", "pan", "pan.c"],
        ["./pan", f"-m{DEPTH}"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def unreached(report: str) -> list[str]:
    """Return the statements of a model that no interleaving reached, without the ends of processes that never end."""
    return [
        line.strip()
        for line in re.findall(r"^\t\S+:\d+, state \d+, .*$", report, re.MULTILINE)
        if '"-end-"' not in line
    ]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.stem)
def test_a_model_holds_in_every_interleaving(model: Path, tmp_path: Path) -> None:
    report = search(model, tmp_path)
    assert re.search(r"errors: 0$", report, re.MULTILINE), report
    for incomplete in ("max search depth too small", "Search not completed", "MEMLIM"):
        assert incomplete not in report, report
    # A statement that is never reached would be checked in vain.
    assert unreached(report) == []


@pytest.mark.parametrize(("model", "fault"), FAULTS)
def test_a_planted_fault_is_found(model: Path, fault: str, tmp_path: Path) -> None:
    report = search(model, tmp_path, fault)
    assert re.search(r"errors: 1$", report, re.MULTILINE), report
    assert re.search(r"^pan:1: (assertion violated|invalid end state)", report, re.MULTILINE), report


def test_each_model_has_planted_faults() -> None:
    planted = [fault.values[0] for fault in FAULTS]
    assert [model.stem for model in MODELS if planted.count(model) < 3] == []


def test_a_statement_that_is_not_reached_is_seen() -> None:
    report = (
        'unreached in proctype P\n\tmodel.pml:7, state 3, "x = 1"\n\tmodel.pml:9, state 4, "-end-"\n\t(2 of 4 states)\n'
    )
    assert unreached(report) == ['model.pml:7, state 3, "x = 1"']
