"""The commands of whoever runs it: disconnect."""

from __future__ import annotations

import argparse

from .bus import Bus
from .cli_common import Command, database_settings, schema_expected
from .config import Settings

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
