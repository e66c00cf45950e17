"""The commands ``connections`` and ``disconnect``."""

from __future__ import annotations

import argparse
from typing import Any

from ..bus import Bus
from ..core.shown import json_line
from ..database.fleet import Worker
from ..settings.table import Settings
from .output import table
from .program import Command, add_json, database_settings, read_only_database, schema_expected

_DISCONNECT = """\
Close every connection of an owner, on all workers of all machines, within a second.

The owner is the name that the application's authorize hook gave to the connection. Revoke the user's rights first, because
the clients reconnect, and the hook then decides again."""

_DISCONNECT_EXAMPLES = """\
examples:
  pgbus-gevent disconnect user-7"""


def _add_disconnect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("owner", metavar="OWNER", help="the owner of the connections")


def _disconnect(arguments: argparse.Namespace, settings: Settings) -> int:
    with database_settings(settings) as settings, Bus(settings=settings) as bus, schema_expected():
        bus.disconnect(arguments.owner)
    return 0


DISCONNECT = Command(
    "disconnect",
    "close every connection of an owner",
    _DISCONNECT,
    _DISCONNECT_EXAMPLES,
    ("database_url", "data_dir", "migrate"),
    _add_disconnect,
    _disconnect,
)


_CONNECTIONS = """\
List the workers of all machines, with the number of connections that each reported within the last seconds."""

_CONNECTIONS_EXAMPLES = """\
examples:
  pgbus-gevent connections
  pgbus-gevent connections --json | jq -s 'map(.connections) | add'"""

_COUNTS = ("connections", "streams", "messages")


def _add_connections(parser: argparse.ArgumentParser) -> None:
    add_json(parser, "host, pid, connections, streams, messages, state, up and told (seconds)")


def _connections(arguments: argparse.Namespace, settings: Settings) -> int:
    with read_only_database(settings) as database:
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
    "list the workers, with the number of connections of each",
    _CONNECTIONS,
    _CONNECTIONS_EXAMPLES,
    ("database_url", "data_dir"),
    _add_connections,
    _connections,
)
