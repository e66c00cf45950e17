"""The client package of ``js/``: a fresh build of it, and applications that have installed it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from page_parts import block_of

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
    """The package, built and packed in a copy of the clone, so that nothing in the clone itself changes."""

    def __init__(self, folder: Path) -> None:
        clone = folder / "clone"
        self.folder = clone / "js"
        self.static = clone / "pgbus_gevent/web/static"
        shutil.copytree(JS, self.folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
        (self.folder / "node_modules").symlink_to(JS / "node_modules")
        self.commands = block_of("docs/browser.md", "pack").replace("/path/to/the/clone", str(clone)).splitlines()
        """How to install it: the tools, the archive, the package. Packing it builds it too."""
        run(folder, *self.commands[1].split())
        (self.archive,) = folder.glob("*.tgz")
        with tarfile.open(self.archive) as archive:
            self.files = {name.removeprefix("package/") for name in archive.getnames()}

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
