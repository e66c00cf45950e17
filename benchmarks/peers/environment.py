"""The peers' own packages, beside these modules: a virtual environment and ``node_modules``, both pinned and not in git."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
PACKAGES = (HERE / "package.json", HERE / "package-lock.json")
DEBIAN = {
    "nginx": "nginx-light",
    "ngx_nchan_module.so": "libnginx-mod-nchan",
    "pushpin": "pushpin",
    "redis-server": "redis-server",
}
"""The programs of peers and of their stores, and the packages of Debian that have them."""

_MODULES = ("/usr/lib/nginx/modules", "/usr/share/nginx/modules", "/usr/lib64/nginx/modules")


class Environment:
    """Where the peers' packages are. :meth:`install` makes what is missing; :meth:`missing` says what cannot be used."""

    def __init__(self, directory: Path = HERE) -> None:
        self.directory = directory
        self.python = directory / ".venv/bin/python"
        self.node_modules = directory / "node_modules"

    def install(self, needs: Iterable[str]) -> None:
        """Install the packages from PyPI and npm, unless the installed ones are those of the pinned lists.

        Raises :class:`subprocess.CalledProcessError` if pip or npm fails.
        """
        needs = set(needs)
        if "python" in needs and self._changed("python", [REQUIREMENTS]):
            print("installing the peers' packages from PyPI, which takes a minute", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, "-m", "venv", self.directory / ".venv"], check=True)
            subprocess.run([self.python, "-m", "pip", "install", "-q", "-r", REQUIREMENTS], check=True)
            self._keep("python", [REQUIREMENTS])
        if "npm" in needs and shutil.which("npm") and self._changed("npm", PACKAGES):
            print("installing the peers' packages from npm", file=sys.stderr, flush=True)
            subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=self.directory, check=True)
            self._keep("npm", PACKAGES)

    def missing(self, needs: Iterable[str]) -> str | None:
        """Return what has to be installed by hand for these needs, or None."""
        absent = [need for need in needs if not self._has(need)]
        packages = sorted(DEBIAN.get(need, need) for need in absent)
        return f"apt-get install {' '.join(packages)}" if packages else None

    def _has(self, need: str) -> bool:
        if need == "python":
            return self.python.exists()
        if need == "npm":
            return self.node_modules.exists() and shutil.which("node") is not None
        return program(need) is not None

    def _changed(self, name: str, paths: Sequence[Path]) -> bool:
        mark = self._mark(name)
        return not mark.exists() or mark.read_text() != digest(paths)

    def _keep(self, name: str, paths: Sequence[Path]) -> None:
        self._mark(name).write_text(digest(paths))

    def _mark(self, name: str) -> Path:
        """Return the file that says which lists are installed. It goes with what it speaks of."""
        return (self.directory / ".venv" if name == "python" else self.node_modules) / "installed.sha256"


def digest(paths: Iterable[Path]) -> str:
    """Return a digest of files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def program(name: str) -> str | None:
    """Return the path of a program or of a module of nginx, or None."""
    if name.endswith(".so"):
        return next((str(path) for path in (Path(place, name) for place in _MODULES) if path.exists()), None)
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
