"""The commands of whoever runs it: connections, disconnect."""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import Any

from ..bus import Bus
from ..core.shown import json_line
from ..database import Database
from ..database.fleet import Worker
from ..settings.table import Settings
from .common import Command, database_settings, schema_expected
from .output import table

_DISCONNECT = """\
End every connection of an owner, on every worker of every host, within a second.

The owner is what the application's authorize hook calls whose connection it is. Take the right back first: whoever is
disconnected comes back, and the hook is asked anew."""

_DISCONNECT_EXAMPLES = """\
examples:
  pgbus-gevent disconnect user-7"""


def _add_disconnect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("owner", metavar="OWNER", help="whose connections")


def _disconnect(arguments: argparse.Namespace, settings: Settings) -> int:
    with database_settings(settings) as settings, Bus(settings=settings) as bus, schema_expected():
        bus.disconnect(arguments.owner)
    return 0


DISCONNECT = Command(
    "disconnect",
    "end every connection of an owner",
    _DISCONNECT,
    _DISCONNECT_EXAMPLES,
    ("database_url", "data_dir", "migrate"),
    _add_disconnect,
    _disconnect,
)


_CONNECTIONS = """\
List the workers that serve, of all hosts, and how many connections each has; as each told within the last seconds."""

_CONNECTIONS_EXAMPLES = """\
examples:
  pgbus-gevent connections
  pgbus-gevent connections --json | jq -s 'map(.connections) | add'"""

_COUNTS = ("connections", "streams", "messages")


def _add_connections(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a line, with host, pid, connections, streams, messages, state, up and told (seconds)",
    )


def _connections(arguments: argparse.Namespace, settings: Settings) -> int:
    with (
        database_settings(settings) as settings,
        schema_expected(),
        closing(Database(settings, read_only=True)) as database,
    ):
        workers = database.fleet.workers()
    if arguments.json:
        for worker in workers:
            print(json_line(_entry(worker)))
        return 0
    rows = [_row(_entry(worker)) for worker in workers]
    if len(rows) > 1:
        total = sum(_entry(worker)["connections"] for worker in workers)
        rows.append(("all", "", f"{total:,}", "", "", "", ""))
    head = ("HOST", "PID", "CONNECTIONS", "STREAMS", "MESSAGES", "STATE", "TOLD")
    print("\n".join(table(head, rows, right=(1, 2, 3, 4))))
    return 0


def _entry(worker: Worker) -> dict[str, Any]:
    return {
        "host": worker.host,
        "pid": worker.pid,
        **{name: int(worker.facts.get(name) or 0) for name in _COUNTS},
        "state": worker.facts.get("unready") or "serving",
        "up": round(worker.age),
        "told": round(worker.silent, 1),
    }


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    counts = [f"{entry[name]:,}" for name in _COUNTS]
    return (entry["host"], str(entry["pid"]), *counts, entry["state"], f"{entry['told']} s ago")


CONNECTIONS = Command(
    "connections",
    "list the workers and their numbers of connections",
    _CONNECTIONS,
    _CONNECTIONS_EXAMPLES,
    ("database_url", "data_dir"),
    _add_connections,
    _connections,
)
