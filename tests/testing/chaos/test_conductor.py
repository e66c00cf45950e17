"""Whole runs, as a program: a minute of faults with a fresh seed, and the sudden end of the conductor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import until

from pgbus_gevent.testing.chaos.conductor import fresh_seed
from pgbus_gevent.testing.chaos.guard import members

COMMAND = [sys.executable, "-m", "pgbus_gevent.testing.chaos"]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that PostgreSQL's user can enter, in which the run makes its own."""
    with tempfile.TemporaryDirectory(prefix="chaos-test-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.setenv("TMPDIR", name)
        yield folder


@pytest.mark.slow
@pytest.mark.program
@pytest.mark.pgbus_timeout(900)
@pytest.mark.skipif("PGBUS_TEST_DATABASE_URL" in os.environ, reason="it has a server of its own, and runs once in CI")
def test_two_minutes_of_faults_lose_repeat_and_disorder_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = fresh_seed()
    arguments = ["--seconds", "75", "--clients", "100", "--outage", "3", "--calm", "2", "--seed", str(seed)]
    done = subprocess.run(
        [*COMMAND, *arguments, "--json", str(place / "report.json")], capture_output=True, text=True, timeout=800
    )
    with capsys.disabled():
        print(f"\nchaos with seed {seed}\n{done.stdout}{done.stderr}")
    assert done.returncode == 0
    report = json.loads((place / "report.json").read_text())
    assert report["findings"] == []
    assert report["total"]["delivered"] > 1000
    assert len(report["windows"]) > 3
    assert all(sum(counts.values()) for counts in report["publishers"].values())
    assert list(place.glob("pgbus-chaos-*")) == []


@pytest.mark.slow
@pytest.mark.program
@pytest.mark.pgbus_timeout(400)
def test_nothing_is_left_of_a_run_whose_conductor_is_killed(place: Path) -> None:
    conductor = subprocess.Popen([*COMMAND, "--clients", "5"], stdout=subprocess.PIPE, text=True)
    assert conductor.stdout is not None
    try:
        for line in conductor.stdout:
            if "clients are connected" in line:
                break
        (folder,) = place.glob("pgbus-chaos-*")
        assert len(members(folder)) > 10
    finally:
        conductor.send_signal(signal.SIGKILL)
        conductor.wait()
        conductor.stdout.close()
    until(lambda: not folder.exists(), "the folder is removed", 60)
    assert members(folder) == []
    assert str(folder) not in Path("/proc/mounts").read_text()


def test_a_fault_that_does_not_exist_is_refused() -> None:
    done = subprocess.run([*COMMAND, "--faults", "earthquake"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "there is no fault 'earthquake'" in done.stderr
