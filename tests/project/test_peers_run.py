"""benchmarks/peers as a whole, with our own server only, since the others are not installed for the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.program
@pytest.mark.slow
def test_a_run_with_lines_that_are_cut_is_judged_and_everything_arrives() -> None:
    command = [sys.executable, "-m", "benchmarks.peers", "--peers", "pgbus_gevent", "--faults", "cuts", "--json"]
    done = subprocess.run(
        [*command, "--seconds", "3", "--clients", "8"], cwd=ROOT, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout[done.stdout.index("{") :])["runs"]["pgbus_gevent"].values()
    assert run["verdict"]["pairs"] == run["verdict"]["right"] > 0, run
    assert run["connects"] > 8  # lines were cut, and the clients came back
