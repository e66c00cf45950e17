"""Shared parts of the tests of the testing kit: a directory with the tests of a user, and pytest run on it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATCHED = '[pytest]\naddopts = "-p" "pgbus_gevent.testing.patch"\n'


class Outcome:
    """The result of a run of pytest."""

    def __init__(self, status: int, output: str) -> None:
        self.status = status
        self.output = output

    def __repr__(self) -> str:
        return f"<status {self.status}>\n{self.output}"

    def __contains__(self, text: str) -> bool:
        return text in self.output


class Project:
    """A directory with tests, in an environment where the package is installed."""

    def __init__(self, directory: Path, database_url: str) -> None:
        self.directory = directory / "project"
        self.directory.mkdir()
        self._site = directory / "site"
        if not entry_points(group="pytest11", name="pgbus_gevent"):
            # The metadata that an installation with setup.py's entry point creates.
            installed = self._site / "pgbus_gevent-0.dist-info"
            installed.mkdir(parents=True)
            (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: pgbus-gevent\nVersion: 0\n")
            (installed / "entry_points.txt").write_text("[pytest11]\npgbus_gevent = pgbus_gevent.testing.plugin\n")
        self.environ = {
            name: value
            for name, value in os.environ.items()
            # Without the folder for runs within tests, each of these would take the rights of others from that of the whole run.
            if not name.startswith(("PGBUS_", "PYTEST_", "COV")) or name == "PYTEST_DEBUG_TEMPROOT"
        }
        self.environ |= {"PYTHONPATH": f"{self._site}:{ROOT}", "PGBUS_TEST_DATABASE_URL": database_url}

    def write(self, **files: str) -> Project:
        """Write files, each named by its keyword: ``test_shop`` is test_shop.py, ``pytest_ini`` is pytest.ini."""
        for name, text in files.items():
            stem, ini, _ = name.partition("_ini")
            (self.directory / (f"{stem}.ini" if ini else f"{name}.py")).write_text(text)
        return self

    def pytest(self, *arguments: str, program: tuple[str, ...] = ("-m", "pytest"), timeout: float = 150.0) -> Outcome:
        """Run pytest. Its output includes stderr."""
        command = [sys.executable, *program, "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return Outcome(done.returncode, done.stdout)
