"""``pgbus_gevent.aio``: its cases run in one program that is not patched for gevent, as asyncio's programs are not."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgbus_gevent.testing.databases import TestDatabases

CASES = Path(__file__).with_name("aio_cases.py")
NAMES = [
    node.name
    for node in ast.parse(CASES.read_text(encoding="utf-8")).body
    if isinstance(node, ast.AsyncFunctionDef) and node.decorator_list
]


@pytest.fixture(scope="module")
def failures(pgbus_databases: TestDatabases) -> Iterator[dict[str, str]]:
    """The failure of each case, or an empty text."""
    url = pgbus_databases.make()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PGBUS_")}
    command = [sys.executable, "-W", "error::ResourceWarning", str(CASES), url]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    yield {found["name"]: found["failure"] for found in map(json.loads, done.stdout.splitlines())}
    pgbus_databases.drop(url)


@pytest.mark.program
def test_without_the_extra_the_import_names_it() -> None:
    code = "import sys; sys.modules['psycopg_pool'] = None; import pgbus_gevent.aio"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "pip install 'pgbus-gevent[aio]'" in done.stderr.splitlines()[-1]


@pytest.mark.program
@pytest.mark.parametrize("name", [*NAMES, "nothing_of_gevent_was_imported"])
def test_in_a_program_of_asyncio(name: str, failures: dict[str, str]) -> None:
    assert failures[name] == ""
