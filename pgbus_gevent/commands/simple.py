"""The commands that do one thing and end: broadcast, streams, sign, migrate, prune."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from datetime import datetime, timezone
from time import time

from ..bus import Bus
from ..core.names import Signer, check_name
from ..core.shown import json_line
from ..database import Database
from ..database.checks import Checks
from ..database.pruning import Pruning
from ..database.schema import migrations
from ..errors import InvalidArgument
from ..settings import casting
from ..settings.table import Settings
from .common import Command, database_settings, read_or_make_secret, say, schema_expected
from .output import table

_BROADCAST = """\
Publish one message to a stream, and print the id that it got (nothing for an ephemeral one).

Whoever is connected gets it at once; it is kept for those who come back later."""

_BROADCAST_EXAMPLES = """\
examples:
  pgbus-gevent broadcast orders '<p>paid</p>' --event order.paid
  pgbus-gevent broadcast orders 'only once' --key order-7-paid
  date | pgbus-gevent broadcast clock - --ephemeral
  pgbus-gevent broadcast numbers -- -5"""


def _add_broadcast(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stream", metavar="STREAM", help="the name of the stream")
    parser.add_argument(
        "data", metavar="DATA", help="the text of the message; - reads it from stdin, less the line end at its end"
    )
    parser.add_argument("--event", metavar="NAME", help="what kind of message it is: the type of the browser's event")
    parser.add_argument(
        "--key", help="an idempotency key: a second broadcast with it adds nothing, and prints the id of the first"
    )
    parser.add_argument(
        "--visible-to", metavar="FILTER", help="only for connections that the server's filter of this name lets see it"
    )
    parser.add_argument("--exclude", metavar="CONNECTION", help="the id of a connection that does not get it")
    parser.add_argument("--ephemeral", action="store_true", help="only for who is connected now; it is not stored")


def _broadcast(arguments: argparse.Namespace, settings: Settings) -> int:
    check_name(arguments.stream)  # before a database is looked for
    data = _stdin() if arguments.data == "-" else arguments.data
    with database_settings(settings) as settings, Bus(settings=settings) as bus, schema_expected():
        id = bus.stream(arguments.stream).broadcast(
            data,
            event=arguments.event,
            visible_to=arguments.visible_to,
            exclude=arguments.exclude,
            key=arguments.key,
            ephemeral=arguments.ephemeral,
        )
    if id is not None:
        print(id)
    return 0


def _stdin() -> str:
    if sys.stdin is None:
        raise InvalidArgument("there is no data: stdin is closed")
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"stdin is not text in UTF-8: byte {error.start} does not belong there") from None
    # What ends the last line of every file and of every `echo` is not meant.
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")


BROADCAST = Command(
    "broadcast",
    "publish a message, print its id",
    _BROADCAST,
    _BROADCAST_EXAMPLES,
    ("database_url", "data_dir", "migrate"),
    _add_broadcast,
    _broadcast,
)


_STREAMS = """\
List the streams that have messages: how many are kept, the id of the last one, and when it was published (UTC)."""

_STREAMS_EXAMPLES = """\
examples:
  pgbus-gevent streams
  pgbus-gevent streams --json | jq -r .stream"""


def _add_streams(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line, with stream, messages, last_id and last_at"
    )


def _streams(arguments: argparse.Namespace, settings: Settings) -> int:
    with (
        database_settings(settings) as settings,
        schema_expected(),
        closing(Database(settings, read_only=True)) as database,
    ):
        found = database.queries.streams()
    if arguments.json:
        for name, count, last_id, at in found:
            entry = {"stream": name, "messages": count, "last_id": last_id, "last_at": _utc(at)}
            print(json_line(entry))
    else:
        rows = [(name, f"{count:,}", str(last_id), _utc(at)) for name, count, last_id, at in found]
        print("\n".join(table(("STREAM", "MESSAGES", "LAST ID", "LAST AT"), rows, right=(1, 2))))
    return 0


def _utc(at: datetime) -> str:
    return at.astimezone(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


STREAMS = Command(
    "streams",
    "list the streams that have messages",
    _STREAMS,
    _STREAMS_EXAMPLES,
    ("database_url", "data_dir"),
    _add_streams,
    _streams,
)


_SIGN = """\
Print the signed name of a stream: who has it may watch the stream, at PREFIX/streams/NAME.

It is signed with the server's secret: that of --secret or PGBUS_SECRET, or else the one that `serve` keeps in the data
directory for its embedded database. It needs no database."""

_SIGN_EXAMPLES = """\
examples:
  pgbus-gevent sign orders --expires 1h
  curl -N "http://127.0.0.1:8080/pgbus/streams/$(pgbus-gevent sign orders)\""""

_EXPIRES = casting.duration(1, 3650 * 86400)


def _add_sign(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stream", metavar="STREAM", help="the name of the stream")
    parser.add_argument(
        "--expires", metavar="DURATION", help="how long it is good for, as in 90s, 15m, 1h or 7d; default: for ever"
    )


def _sign(arguments: argparse.Namespace, settings: Settings) -> int:
    try:
        lifetime = None if arguments.expires is None else _EXPIRES.cast(arguments.expires)
    except ValueError:
        raise InvalidArgument(f"--expires={arguments.expires!r} is not allowed: {_EXPIRES.allowed}") from None
    secrets = settings.secret or (read_or_make_secret(settings.data_dir, create=False),)
    print(Signer(secrets).sign(arguments.stream, None if lifetime is None else time() + lifetime))
    return 0


SIGN = Command(
    "sign",
    "print the signed name that lets a browser watch a stream",
    _SIGN,
    _SIGN_EXAMPLES,
    ("secret", "data_dir"),
    _add_sign,
    _sign,
)


_MIGRATE = """\
Make the schema pgbus in the database, or bring it up to this release, and say what was done.

`serve` does the same at its start. Run it by itself where the server's role may not make tables (and start that with
--no-migrate), or to choose the time."""

_MIGRATE_EXAMPLES = """\
examples:
  pgbus-gevent migrate --database-url postgresql://owner@db.example/shop"""


def _add_migrate(parser: argparse.ArgumentParser) -> None:
    pass


def _migrate(arguments: argparse.Namespace, settings: Settings) -> int:
    with database_settings(settings) as settings, closing(Database(settings)) as database:
        applied = database.migrate()
        version, told = Checks(database.pool).schema_version(), database.check_ids()
    known = migrations()
    for migration in known:
        if migration.version in applied:
            print(f"applied migration {migration.version} ({migration.name})")
    newest = known[-1].version
    if version is not None and version > newest:
        print(f"schema pgbus is at version {version}, a newer release's, which still serves this one ({newest})")
    else:
        print(f"schema pgbus is {'now' if applied else 'already'} at version {newest}")
    if told:
        print(told)
    return 0


MIGRATE = Command(
    "migrate",
    "make or upgrade the schema in the database",
    _MIGRATE,
    _MIGRATE_EXAMPLES,
    ("database_url", "data_dir"),
    _add_migrate,
    _migrate,
)


_PRUNE = """\
Remove the messages that need not be kept any more, by --retention and the rules of retention_patterns, and print from which
streams how many were removed.

`serve` does the same all the time. Run it where no server may remove anything (prune_interval=0), or to choose the time."""

_PRUNE_EXAMPLES = """\
examples:
  pgbus-gevent prune --retention 7d
  pgbus-gevent prune --config pgbus.toml --json"""

_PRUNE_STREAMS, _PRUNE_MESSAGES, _PRUNE_HORIZONS = 200, 1000, 10_000


def _add_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a line, with stream, removed and up_to, the highest id of those",
    )


def _prune(arguments: argparse.Namespace, settings: Settings) -> int:
    with database_settings(settings) as settings, schema_expected(), closing(Database(settings)) as database:
        for theirs, teller in database.pruning.ask():
            say(
                f"the server {teller} has {theirs}, or had until it ended a while ago, and not {database.pruning.retention}:"
                " for each stream the longer one applies"
            )
        found = _prune_all(database.pruning, settings.forget_after)
    if arguments.json:
        for name, (removed, up_to) in found:
            print(json_line({"stream": name, "removed": removed, "up_to": up_to}))
    elif found:
        rows = [(name, f"{removed:,}", str(up_to)) for name, (removed, up_to) in found]
        print("\n".join(table(("STREAM", "REMOVED", "UP TO"), rows, right=(1, 2))))
    return 0


def _prune_all(pruning: Pruning, forget_after: float) -> list[tuple[str, tuple[int, int]]]:
    """By stream, how many were removed and up to which id. In batches, so that no server waits for us for long."""
    found: dict[str, tuple[int, int]] = {}
    below = None
    while names := pruning.below(below, _PRUNE_STREAMS):
        below = names[-1]
        full = True
        while full:
            batch = pruning.prune(names, _PRUNE_MESSAGES)
            full = sum(pruned.removed for pruned in batch) >= _PRUNE_MESSAGES
            for name, removed, up_to in batch:
                found[name] = (found.get(name, (0, 0))[0] + removed, up_to)
    while pruning.prune_ephemerals(_PRUNE_MESSAGES) >= _PRUNE_MESSAGES:
        pass
    below = pruning.forget(None, forget_after, _PRUNE_HORIZONS)
    while below is not None:
        below = pruning.forget(below, forget_after, _PRUNE_HORIZONS)
    return sorted(found.items())


PRUNE = Command(
    "prune",
    "remove the messages that need not be kept",
    _PRUNE,
    _PRUNE_EXAMPLES,
    ("database_url", "data_dir", "retention"),
    _add_prune,
    _prune,
)
