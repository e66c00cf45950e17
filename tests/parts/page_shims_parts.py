"""The environment of shell commands in the documentation: the programs of our environment, without installations.

A page says `python3 -m venv .venv` and `.venv/bin/pip install …`. Tests install nothing. But these commands fail here too if
a package or an extra that they name does not exist, or is not installed in the environment of the tests.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

_PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then exit 0; fi
if [ "$1 $2" = "-m pip" ]; then shift 2; exec "{pip}" "$@"; fi
exec "{python}" "$@"
"""
_PIP = """#!/bin/sh
exec "{python}" "{module}" "$@"
"""
_APT = """#!/bin/sh
# apt-get install: the packages are installed already, or do not exist.
for word in "$@"; do
  case "$word" in -*|install|update) ;; *) dpkg -s "$word" >/dev/null || exit 100 ;; esac
done
"""


def make_environment(folder: Path, **more: str) -> dict[str, str]:
    """Return the variables for commands in a page's folder, which gets a `.venv/bin` of its own."""
    programs = folder / ".venv/bin"
    if not programs.exists():
        programs.mkdir(parents=True)
        there = Path(sys.executable).parent
        values = {"python": sys.executable, "pip": programs / "pip", "module": ROOT / "tests/parts/pip_parts.py"}
        ours = {"python": _PYTHON, "python3": _PYTHON, "pip": _PIP, "apt-get": _APT}
        for name, text in ours.items():
            (programs / name).write_text(text.format(**values) if name != "apt-get" else text)
            (programs / name).chmod(0o755)
        (folder / ".curlrc").write_text(
            "no-progress-meter\n"
        )  # as in a terminal, where curl shows none beside the answer
        (programs / "activate").write_text("")  # the programs are found already
        for path in there.iterdir():
            if path.name not in ours and not path.name.startswith(("python", "pip", "activate")):
                (programs / path.name).symlink_to(path)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    kept = {
        "PATH": path,
        "PYTHONUNBUFFERED": "1",
        "PGBUS_GRACE": "1",
        "CURL_HOME": str(folder),
        "XDG_DATA_HOME": str(folder / "data"),
    }
    if not os.environ.get("PGBUS_TEST_INSTALLED"):
        kept["PYTHONPATH"] = str(ROOT)
    return {**os.environ, **kept, **more}
