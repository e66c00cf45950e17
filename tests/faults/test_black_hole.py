"""The network path to the database goes silent for both sides. Measures, with the real constants, when each part notices."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg2.extensions as ext
import pytest

PROGRAM = Path(__file__).with_name("black_hole.py")
WITHIN = 10.0
SLACK = 8.0
"""Seconds, on a busy machine, on which a process may stand still for some seconds."""


def can_make_namespaces() -> bool:
    tools = all(shutil.which(name) for name in ("unshare", "nsenter", "ip"))
    return tools and subprocess.run(["unshare", "--net", "true"], stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.skipif(not can_make_namespaces(), reason="no network namespaces can be made here")
@pytest.mark.pgbus_timeout(170)
def test_a_path_that_goes_silent_is_noticed_within_ten_seconds_on_every_session(pgbus_database: str) -> None:
    if not ext.parse_dsn(pgbus_database).get("host", "").startswith("/"):
        pytest.skip("the database is not on a unix socket, which every namespace reaches")
    command = ["unshare", "--net", sys.executable, str(PROGRAM), pgbus_database]
    environ = {**os.environ, "PYTHONPATH": str(PROGRAM.parent.parent)}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, timeout=160)
    assert done.returncode == 0
    figures = json.loads(done.stdout)
    print(f"\nseconds: {figures}")
    assert set(figures) == {
        "readyz", "bus", "plain bus", "pool", "listen", "pulse", "delivered again", "ready again",
    }  # fmt: skip
    late = {name: seconds for name, seconds in figures.items() if seconds > WITHIN + SLACK}
    assert not late, figures
