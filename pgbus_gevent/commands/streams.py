"""The commands ``broadcast``, ``streams`` and ``sign``."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timezone
from time import time

from ..bus import Bus
from ..core.names import Signer, check_name
from ..core.shown import json_line
from ..errors import InvalidArgument
from ..settings import casting
from ..settings.table import Settings
from .output import table
from .program import Command, add_json, database_settings, read_only_database, schema_expected
from .secret import read_or_make_secret

_BROADCAST = """\
Publish one message to a stream, and print its id (nothing for an ephemeral message).

Connected clients get it at once. It is stored for clients that come back later."""

_BROADCAST_EXAMPLES = """\
examples:
  pgbus-gevent broadcast orders '<p>paid</p>' --event order.paid
  pgbus-gevent broadcast orders 'only once' --key order-7-paid
  date | pgbus-gevent broadcast clock - --ephemeral
  pgbus-gevent broadcast numbers -- -5"""


def _add_broadcast(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stream", metavar="STREAM", help="the name of the stream")
    parser.add_argument(
        "data", metavar="DATA", help="the text of the message; - reads it from stdin, without the last line end"
    )
    parser.add_argument(
        "--event", metavar="NAME", help="the event name of the message, which is the type of the browser's event"
    )
    parser.add_argument(
        "--key", help="an idempotency key: a second broadcast with it adds nothing, and prints the id of the first"
    )
    parser.add_argument(
        "--visible-to",
        metavar="LABEL",
        help="send it only to connections that the server's filter of this label permits",
    )
    parser.add_argument("--exclude", metavar="CONNECTION", help="the id of a connection that does not get the message")
    parser.add_argument(
        "--ephemeral",
        action="store_true",
        help="send it only to the clients that are connected now, and do not store it",
    )


def _broadcast(arguments: argparse.Namespace, settings: Settings) -> int:
    check_name(arguments.stream)  # a wrong name is reported even without a database
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
        raise InvalidArgument("cannot read the data, because stdin is closed")
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"stdin is not text in UTF-8: byte {error.start} is not allowed there") from None
    # Files and `echo` end with a line end that is not part of the message.
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")


BROADCAST = Command(
    "broadcast",
    "publish a message, and print its id",
    _BROADCAST,
    _BROADCAST_EXAMPLES,
    ("database_url", "data_dir", "migrate"),
    _add_broadcast,
    _broadcast,
)


_STREAMS = """\
List the streams that have messages: the number of stored messages, and the id and the time (UTC) of the last one.

At most 10,000 messages of a stream are counted. If it has more, the number has a plus sign, and `more` is true in JSON."""

_STREAMS_EXAMPLES = """\
examples:
  pgbus-gevent streams
  pgbus-gevent streams --json | jq -r .stream"""


def _add_streams(parser: argparse.ArgumentParser) -> None:
    add_json(parser, "stream, messages, more, last_id and last_at")


def _streams(arguments: argparse.Namespace, settings: Settings) -> int:
    with read_only_database(settings) as database:
        found = database.fleet.streams()
    if arguments.json:
        for each in found:
            print(json_line({**each._asdict(), "last_at": _utc(each.last_at)}))
    else:
        rows = [
            (each.stream, f"{each.messages:,}{'+' if each.more else ''}", str(each.last_id), _utc(each.last_at))
            for each in found
        ]
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
Print the signed name of a stream. Anybody with this name may watch the stream, at PREFIX/streams/NAME.

The name is signed with the server's secret: that of --secret or PGBUS_SECRET, or else the one that `serve` keeps in the data
directory for its embedded database. This command needs no database."""

_SIGN_EXAMPLES = """\
examples:
  pgbus-gevent sign orders --expires 1h
  curl -N "http://127.0.0.1:8080/pgbus/streams/$(pgbus-gevent sign orders)\""""

_EXPIRES = casting.duration(1, 3650 * 86400)


def _add_sign(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stream", metavar="STREAM", help="the name of the stream")
    parser.add_argument(
        "--expires",
        metavar="DURATION",
        help="how long the name is valid, such as 90s, 15m, 1h or 7d; default: for ever",
    )


def _sign(arguments: argparse.Namespace, settings: Settings) -> int:
    try:
        lifetime = None if arguments.expires is None else _EXPIRES.cast(arguments.expires)
    except ValueError:
        raise InvalidArgument(f"--expires={arguments.expires!r} is not allowed: expected {_EXPIRES.allowed}") from None
    secrets = settings.secret or (read_or_make_secret(settings.data_dir, create=False),)
    print(Signer(secrets).sign(arguments.stream, None if lifetime is None else time() + lifetime))
    return 0


SIGN = Command(
    "sign",
    "print the signed name with which a browser can watch a stream",
    _SIGN,
    _SIGN_EXAMPLES,
    ("secret", "data_dir"),
    _add_sign,
    _sign,
)
