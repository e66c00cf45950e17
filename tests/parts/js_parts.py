"""The client package of ``js/``: a fresh build of it, and applications that have installed it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
JS = ROOT / "js"
STATIC = ROOT / "pgbus_gevent/web/static"


def missing() -> str:
    """Return why the package cannot be built here, or an empty text if it can."""
    if shutil.which("npm") is None:
        return "npm is not installed: apt-get install nodejs npm"
    if not (JS / "node_modules/typescript").exists():
        return "the tools of the package are not installed: npm ci --prefix js"
    return ""


def run(folder: Path, *command: str, status: int = 0) -> str:
    """Run a command, and return its output. A command of the package's tools is found by its name."""
    path = f"{JS / 'node_modules/.bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "NO_COLOR": "1", "npm_config_update_notifier": "false"}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


class Package:
    """The package, built and packed in a copy of its folder, so that nothing in the clone changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clone/js"
        shutil.copytree(JS, self.folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
        shutil.copy(ROOT / "README.md", folder / "clone")
        (self.folder / "node_modules").symlink_to(JS / "node_modules")
        # It is built first (prepack).
        self.packed: dict[str, Any] = json.loads(run(self.folder, "npm", "pack", "--json", "--loglevel=error"))[0]
        self.archive = self.folder / self.packed["filename"]
        self.static = folder / "clone/pgbus_gevent/web/static"

    @property
    def files(self) -> set[str]:
        """Return the names of the files in the archive."""
        return {str(file["path"]) for file in self.packed["files"]}

    def application(self, folder: Path, files: Mapping[str, str]) -> Path:
        """Make an application that has installed the package and, for its tools and libraries, what the package has."""
        modules = folder / "node_modules"
        modules.mkdir(parents=True)
        for each in (JS / "node_modules").iterdir():
            (modules / each.name).symlink_to(each)
        with tarfile.open(self.archive) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        (folder / "unpacked/package").rename(modules / "pgbus-gevent")
        for name, text in {"package.json": '{ "type": "module" }', **files}.items():
            (folder / name).write_text(text, encoding="utf-8")
        return folder


@pytest.fixture(scope="session")
def js_package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return Package(tmp_path_factory.mktemp("js"))
