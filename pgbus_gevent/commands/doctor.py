"""The command ``doctor``: runs the checks, and prints what they find."""

from __future__ import annotations

import argparse

from ..core.shown import json_line, visible
from ..settings.table import Settings
from .finding import FAIL
from .findings import findings
from .program import FAILED, Command, add_json, database_settings

_DOCTOR = """\
Check what the streams depend on: the database, its schema and the rights on it, LISTEN, the steward, clocks, limits, causes of a
slow database, and if --wake names one, Redis: its login, its rights, and whether a relay's beacons come. Each check prints a
line, and if there is a problem, another one that says what to do.

The exit status is 1 if a check fails; warnings do not count. This command changes nothing."""

_EXAMPLES = """\
examples:
  pgbus-gevent doctor
  pgbus-gevent doctor --database-url postgresql://app@db/shop --json | jq 'select(.level != "ok")'"""


def _add(parser: argparse.ArgumentParser) -> None:
    add_json(parser, "check, level, text and todo")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    failed = False
    with database_settings(settings) as settings:
        for found in findings(settings):
            failed = failed or found.level == FAIL
            if arguments.json:
                print(json_line(found._asdict()), flush=True)
                continue
            print(f"{found.level:5}{found.check:15}{visible(found.text)}", flush=True)
            if found.todo:
                print(f"{'':20}→ {visible(found.todo)}", flush=True)
    return FAILED if failed else 0


DOCTOR = Command(
    "doctor",
    "check what the streams depend on, and say what to do",
    _DOCTOR,
    _EXAMPLES,
    ("database_url", "listen_url", "replica_url", "wake", "data_dir", "workers", "max_connections"),
    _add,
    _run,
)
