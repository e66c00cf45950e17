"""The model of a fleet predicts what was measured, and docs/scaling.md shows what it computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.pgbus_timeout(200)  # it computes for 10 s on a machine that does nothing else

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=180)


def test_the_model_predicts_all_points() -> None:
    done = run("-c", "from benchmarks.model.check import check\nraise SystemExit(0 if check() else 1)")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_point_that_is_off_is_reported(tmp_path: Path) -> None:
    code = """
import json, sys
from pathlib import Path
from benchmarks.model import check
found = json.loads(check.POINTS.read_text())
found = {name: one for name, one in found.items() if name in ("machine", "CPU to open 2,500 clients")}
check.POINTS = Path(sys.argv[1])
check.POINTS.write_text(json.dumps(found))
assert check.check()
found["CPU to open 2,500 clients"]["value"] *= 2
check.POINTS.write_text(json.dumps(found))
raise SystemExit(0 if check.check() else 3)
"""
    done = run("-c", code, str(tmp_path / "points.json"))
    assert done.returncode == 3, done.stderr


def test_the_page_shows_what_the_model_computes() -> None:
    """Made by: python -m benchmarks.model write"""
    code = """
from benchmarks.model import tables
parts = [tables.points(), tables.constants(), tables.limits()]
parts += [tables.table(tables.rows(load)) for load in (tables.ROOMS, tables.ONE)]
page = tables.PAGE.read_text(encoding="utf-8")
raise SystemExit(0 if all(part in page for part in parts) else "run: python -m benchmarks.model write")
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_model_knows_what_grows_with_what() -> None:
    code = """
from dataclasses import replace
from benchmarks.model.fleet import Constants, Plan, costs, simulate, storm
c = Constants()
plan = Plan(connections=100_000, workers=20, streams=2000, rate=100.0)
more = replace(plan, workers=200)
assert costs(more, c).wakes > costs(plan, c).wakes
assert costs(more, c).memory_per_worker < costs(plan, c).memory_per_worker
with_redis = [costs(replace(one, redis=True), c).wakes for one in (plan, more)]
assert with_redis[1] <= with_redis[0], "PostgreSQL wakes only the relays"
busy = replace(plan, connections=1000, streams=1, workers=1)
idle = simulate(replace(busy, rate=1.0), c)
assert idle.p50 <= idle.p99 < simulate(replace(busy, rate=0.9 / (1000 * c.delivery_cpu + c.message_cpu)), c).p99
assert storm(plan, c, 1).p99 < storm(plan, c, 10).p99
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
