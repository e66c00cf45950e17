"""Whole runs, as a program: faults with a fresh seed, a product that is broken on purpose, and the conductor's sudden end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import chaos_planted_parts
import pytest
from support import until

from pgbus_gevent.testing.chaos.conductor import fresh_seed
from pgbus_gevent.testing.chaos.guard import members

COMMAND = [sys.executable, "-m", "pgbus_gevent.testing.chaos"]
DEEDS = ("lost", "repeated", "out of order", "forbidden")


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
def test_fresh_faults_lose_repeat_and_disorder_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = fresh_seed()
    arguments = ["--seconds", "80", "--clients", "100", "--outage", "3", "--calm", "2", "--seed", str(seed)]
    arguments += ["--wake", "redis"] if shutil.which("redis-server") else []
    arguments += ["--browsers", "1"] if shutil.which("chromium") else []
    done = subprocess.run(
        [*COMMAND, *arguments, "--json", str(place / "report.json")], capture_output=True, text=True, timeout=800
    )
    with capsys.disabled():
        print(f"\nchaos with seed {seed}\n{done.stdout}{done.stderr}")
    assert done.returncode == 0, (
        f"{done.stdout}{done.stderr}"
    )  # what was printed is lost where tests run in several processes
    report = json.loads((place / "report.json").read_text())
    assert report["findings"] == []
    assert set(report["planted"]) == set(DEEDS)
    assert report["total"]["delivered"] > 1000
    assert len(report["windows"]) > 3
    assert all(sum(counts.values()) for counts in report["publishers"].values())
    assert list(place.glob("pgbus-chaos-*")) == []


@pytest.mark.slow
@pytest.mark.program
@pytest.mark.pgbus_timeout(500)
@pytest.mark.skipif("PGBUS_TEST_DATABASE_URL" in os.environ, reason="it has a server of its own, and runs once in CI")
def test_a_run_finds_what_a_broken_server_and_a_broken_line_do(place: Path) -> None:
    notes = place / "deeds"
    parts = Path(chaos_planted_parts.__file__).parent
    path = os.pathsep.join([str(parts), os.environ.get("PYTHONPATH", "")])
    words = "run --seconds 6 --clients 60 --outage 1 --calm 1 --faults clients-slow,pooler-killed --json"
    done = subprocess.run(
        [sys.executable, "-m", "chaos_planted_parts", *words.split(), str(place / "report.json")],
        env={**os.environ, "CHAOS_DEEDS": str(notes), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    did: dict[tuple[str, str], set[int]] = defaultdict(set)
    for line in notes.read_text().splitlines():
        what, where, id = line.split(",")
        did[what, where].add(int(id))
    found: dict[str, set[int]] = defaultdict(set)
    for finding in json.loads((place / "report.json").read_text())["findings"]:
        found[finding["kind"]].add(finding["id"])
    for (what, where), ids in did.items():
        assert ids & found[what], f"not one of the messages that the {where} made {what} was found"
    assert {what for what, _ in did} == set(DEEDS)
    anything = set().union(*did.values())
    assert {what: found[what] - anything for what in DEEDS} == {what: set() for what in DEEDS}, "nothing else was found"


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
