"""Runs commands of a Django project, each in a fork of a process that has Django already: ``python manage_forks.py MANAGE_PY``.

Otherwise each command would take a second to import Django. A line on stdin is a JSON list of arguments, and the answer is a
line on stdout, with the status and what the command printed.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from tempfile import TemporaryFile

import django


def run(manage: str, arguments: list[str]) -> tuple[int, str, str]:
    """Run a command to its end, and return its status and what it printed on stdout and stderr."""
    with TemporaryFile() as out, TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = [manage, *arguments]
            runpy.run_path(manage, run_name="__main__")
            sys.exit()
        _, status = os.waitpid(pid, 0)
        texts = [file.seek(0) or file.read().decode() for file in (out, err)]
    return os.waitstatus_to_exitcode(status), texts[0], texts[1]


def main(manage: str) -> None:
    sys.path.insert(0, str(Path(manage).parent))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
    django.setup()
    while line := sys.stdin.readline():
        print(json.dumps(run(manage, json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
