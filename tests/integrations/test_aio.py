"""``pgbus_gevent.aio``: its cases run in one program that is not patched for gevent, as asyncio's programs are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pgbus_gevent.testing.databases import TestDatabases

CASES = Path(__file__).with_name("aio_cases.py")


@pytest.mark.program
def test_without_the_extra_the_import_names_it() -> None:
    code = "import sys; sys.modules['psycopg_pool'] = None; import pgbus_gevent.aio"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "pip install 'pgbus-gevent[aio]'" in done.stderr.splitlines()[-1]


@pytest.mark.program
def test_each_case_holds_in_a_program_of_asyncio(pgbus_databases: TestDatabases) -> None:
    url = pgbus_databases.make()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PGBUS_")}
    command = [sys.executable, "-W", "error::ResourceWarning", str(CASES), url]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    failures = {found["name"]: found["failure"] for found in map(json.loads, done.stdout.splitlines())}
    assert len(failures) > 25 and {name: failure for name, failure in failures.items() if failure} == {}
    pgbus_databases.drop(url)
