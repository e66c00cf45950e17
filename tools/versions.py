"""What the tests on several versions of Python install and run: the oldest or the newest releases that setup.py allows.

``python tools/versions.py newest`` prints the requirements of setup.py, of which pip takes the newest releases, and ``oldest`` its
lower bounds as versions. ``tests`` prints arguments for pytest.
"""

from __future__ import annotations

import platform
import runpy
import sys
import types
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
"""The versions of Python that setup.py names."""

ELSEWHERE = (
    "tests/bench",  # measures nothing here
    "tests/simulation",
    "tests/spin",
    "tests/fuzz",
    "tests/project",
    "tests/docs",
    "tests/deploy",  # runs the proxies as Debian 12 packages them
    "tests/testing/chaos",  # brings its own server
    "tests/faults/test_chaos.py",  # brings its own server
)
"""Tests that depend on neither the system, the database, the version of Python nor the requirements of users."""


def options() -> dict[str, Any]:
    """Return what setup.py passes to setuptools."""
    found: dict[str, Any] = {}
    stub = types.ModuleType("setuptools")
    vars(stub).update(setup=lambda **options: found.update(options), find_packages=lambda **_: [])
    before = sys.modules.get("setuptools")
    sys.modules["setuptools"] = stub
    try:
        runpy.run_path(str(ROOT / "setup.py"))
    finally:
        if before is None:
            del sys.modules["setuptools"]
        else:
            sys.modules["setuptools"] = before
    return found


def declared() -> dict[str, list[str]]:
    """Return the requirements in setup.py by extra. Those without an extra are under ""."""
    found = options()
    return {"": found["install_requires"], **found["extras_require"]}


def merged(python: str | None = None) -> dict[str, Requirement]:
    """Return the requirements of the package and of all extras by name, as they apply to a version of Python, such as "3.12".

    Without one, it is the version that runs this. The bounds of all lines about one distribution apply.
    """
    found: dict[str, Requirement] = {}
    for line in (line for lines in declared().values() for line in lines):
        one = Requirement(line)
        if one.marker is not None and not one.marker.evaluate({"python_version": python} if python else None):
            continue
        one.marker = None
        one.name = canonicalize_name(one.name)
        known = found.setdefault(one.name, one)
        known.specifier &= one.specifier
        known.extras |= one.extras
    return found


def lowest(one: Requirement) -> Version | None:
    """Return the highest of the lower bounds of a requirement with both bounds, or None for a tool, which has no upper one."""
    if not any(each.operator == "<" for each in one.specifier):
        return None
    return max(Version(each.version) for each in one.specifier if each.operator == ">=")


def pins() -> dict[str, str]:
    """Return the versions in requirements.txt by name."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def oldest(python: str | None = None) -> list[str]:
    """Return a requirement for each lower bound, which only the lowest version satisfies.

    Tools have the version in requirements.txt. That file is for 3.11 and later; on 3.10 they have their bounds.
    """
    known = pins() if Version(python or platform.python_version()) >= Version("3.11") else {}
    found = []
    for name, one in sorted(merged(python).items()):
        version = lowest(one) or known.get(name)
        if version:
            one.specifier = SpecifierSet(f"=={version}")
        if name != "uwsgi":
            found.append(str(one))
    return found


def newest(python: str | None = None) -> list[str]:
    """Return all requirements with their bounds. uWSGI is left out here too: it needs a compiler, and its tests are skipped."""
    return [str(one) for name, one in sorted(merged(python).items()) if name != "uwsgi"]


def tests() -> list[str]:
    """Return the arguments with which pytest runs what can depend on the system and on the versions of requirements."""
    return ["-m", "not browser", *(f"--ignore={folder}" for folder in ELSEWHERE)]


if __name__ == "__main__":
    print("\n".join({"oldest": oldest, "newest": newest, "tests": tests}[sys.argv[1]]()))
