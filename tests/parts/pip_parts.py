"""Stands for pip in the commands of the documentation: checks that what they install is installed. See page_shims_parts."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
NOT_HERE = {"uwsgi"}
"""What CI installs apart, because it needs a compiler."""


def missing(words: list[str]) -> list[str]:
    """Return what is wrong with the arguments of `pip install`."""
    found: list[str] = []
    waiting = iter(words)
    for word in waiting:
        if word in {"-r", "--requirement"}:
            if not (ROOT / next(waiting)).exists():
                found.append(f"there is no file {word}")
        elif not word.startswith("-"):
            found += _missing(word)
    return found


def _missing(word: str) -> list[str]:
    match = re.fullmatch(r"(\.|/[^\[]*)(\[[\w,-]+\])?", word)
    if match is not None:  # a folder, or a wheel: it must be ours
        place = Path(match[1])
        if place.suffix == ".whl":
            assert place.name.startswith("pgbus_gevent-") and place.exists(), word
        elif match[1] != "." and place.resolve() != ROOT.resolve():
            return [f"{word} is not the clone"]
        word = f"pgbus-gevent{match[2] or ''}"
    return _missing_package(Requirement(word), set())


def _missing_package(wanted: Requirement, seen: set[str]) -> list[str]:
    if str(wanted) in seen or wanted.name in NOT_HERE:
        return []
    seen.add(str(wanted))
    try:
        there = distribution(wanted.name)
    except PackageNotFoundError:
        return [f"{wanted.name} is not installed"]
    found = [] if wanted.specifier.contains(there.version, prereleases=True) else [f"{wanted} is not {there.version}"]
    extras = {extra.lower() for extra in there.metadata.get_all("Provides-Extra") or []}
    found += [f"{wanted.name} has no extra {extra}" for extra in wanted.extras if extra.lower() not in extras]
    for text in there.requires or []:
        needed = Requirement(text)
        if needed.marker and any(needed.marker.evaluate({"extra": extra}) for extra in wanted.extras):
            found += _missing_package(needed, seen)
    return found


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command != "install":
        sys.exit(f"pip {command} is not known here")
    if problems := missing(words):
        sys.exit("\n".join(problems))
