"""The command ``doctor``: runs the checks, and prints what they find."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from time import time
from urllib.parse import quote

from ..bus import Bus
from ..core.names import Signer
from ..core.shown import json_line, visible
from ..database.pruning import Pruning
from ..database.rights import GRANTS
from ..errors import DatabaseError, EmbeddedError, InvalidArgument
from ..settings.retention import Retention
from ..settings.table import Settings
from .finding import FAIL, Finding
from .findings import SERVER, findings
from .path_client import Address
from .path_findings import PathChecks
from .program import FAILED, Command, add_json, database_settings
from .rights_findings import obstacles
from .secret import read_or_make_secret

_AT_ONCE = 0.001  # seconds; messages of that age are removed
_MOST = 1000  # messages at most, which is more than one run publishes

_DOCTOR = """\
Without a URL, check what the streams depend on: the database, its schema and the rights on it, LISTEN, the steward, clocks, limits,
causes of a slow database, and if --wake names one, Redis: its login, its rights, and whether a relay's beacons come. This changes
nothing.

With the URL of a server, as browsers use it, try the path to its streams through whatever stands in front: which requests and
headers arrive, whether something buffers, compresses, caches or cuts off, how long messages take, and whether a client that comes
back gets what it missed. The prefix is added to a URL without a path. With the server's database and secret, this publishes some
messages to a stream of its own, and removes them if it may; with --stream, it only reads. It takes three heartbeats (45 seconds).

Each check prints a line, and if there is a problem, others that say what to do.
The exit status is 0 if no check fails, 1 if one fails, 2 for wrong usage; warnings do not count."""

_EXAMPLES = """\
examples:
  pgbus-gevent doctor
  pgbus-gevent doctor --database-url postgresql://app@db/shop --json | jq 'select(.level != "ok")'
  pgbus-gevent doctor https://shop.example
  pgbus-gevent doctor https://shop.example/pgbus --stream "$TOKEN" --header "Cookie: session=…" --watch 0"""


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", nargs="?", help="the address of the server, as browsers use it")
    parser.add_argument(
        "--stream",
        metavar="TOKEN",
        help="with URL: the signed or public name of a stream that may be read; nothing is published",
    )
    parser.add_argument(
        "--header", metavar="HEADER", action="append", default=[],
        help="with URL: a header for each request, such as 'Cookie: session=…'; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        type=float,
        help="with URL: how long a quiet connection is watched; 0 leaves that out; default: three heartbeats",
    )
    parser.add_argument(
        "--rights",
        metavar="GRANTS",
        help="without URL: the grants that this role is meant to have, separated by commas: publisher, reader, server, pruner,"
        " operator; default: publisher,server,pruner (without pruner if prune_interval is 0)",
    )
    add_json(parser, "check, level (ok, warn, fail or skip), text, todo and figures")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    failed = False
    for found in _path(arguments, settings) if arguments.url else _database(arguments, settings):
        failed = failed or found.level == FAIL
        if arguments.json:
            print(json_line({**found._asdict(), "figures": dict(found.figures)}), flush=True)
            continue
        print(f"{found.level:5}{found.check:15}{visible(found.text)}", flush=True)
        for line in found.todo.splitlines():
            print(f"{'':20}→ {visible(line)}", flush=True)
    return FAILED if failed else 0


def _database(arguments: argparse.Namespace, settings: Settings) -> Iterator[Finding]:
    for flag in ("stream", "header", "watch"):
        if getattr(arguments, flag):
            raise InvalidArgument(f"--{flag} is for the path to a server: give its URL")
    with database_settings(settings) as settings:
        yield from findings(settings, _grants(arguments.rights, settings))


def _grants(given: str | None, settings: Settings) -> tuple[str, ...]:
    if given is None:
        return tuple(grant for grant in SERVER if grant != "pruner" or settings.prune_interval)
    names = tuple(name.strip() for name in given.split(","))
    wrong = [name for name in names if name not in GRANTS]
    if wrong:
        raise InvalidArgument(f"--rights: there is no grant {wrong[0]!r}; there are {', '.join(GRANTS)}")
    return names


def _path(arguments: argparse.Namespace, settings: Settings) -> Iterator[Finding]:
    if arguments.rights:
        raise InvalidArgument("--rights is for the database: give no URL")
    if arguments.watch is not None and not 0 <= arguments.watch <= 300:
        raise InvalidArgument("--watch is a number of seconds, from 0 to 300")
    headers = dict(_header(text) for text in arguments.header)
    address, watch = Address(arguments.url, headers, prefix=settings.prefix), arguments.watch
    if arguments.stream is not None:
        token, reason = quote(arguments.stream, safe=""), "--stream is given: nothing is published to your streams"
        yield from PathChecks(address, token, None, watch, reason=reason).findings()
        return
    name = f"doctor:{secrets.token_hex(8)}"
    with _own_database(settings) as settings:
        token = Signer(settings.secret).sign(name, time() + 3600)
        failures = obstacles(settings)
        yield from failures
        reason = "".join(f"the check {found.check} has failed" for found in failures)
        with _OwnStream(settings, name) as stream:
            publish = None if failures else stream.publish
            yield from PathChecks(address, token, publish, watch, reason=reason).findings()


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not (colon and name.isascii() and name.replace("-", "").isalnum()) or not value.isprintable():
        raise InvalidArgument(f"--header is a name, a colon and a value, not {name!r}")
    return name, value.strip()


class _OwnStream:
    """A stream for one run. At the end its messages are removed, if the role may do that; otherwise the retention removes them."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._bus = Bus(settings=settings)
        self._name = name
        self._published = False

    def publish(self, data: str) -> None:
        """Publish a message. Raises DatabaseError."""
        self._published = True
        self._bus.stream(self._name).broadcast(data)

    def __enter__(self) -> _OwnStream:
        return self

    def __exit__(self, *_: object) -> None:
        with closing(self._bus), suppress(DatabaseError):
            if self._published:
                Pruning(self._bus.database.pool, Retention(_AT_ONCE)).prune([self._name], _MOST)


@contextmanager
def _own_database(settings: Settings) -> Iterator[Settings]:
    """Yield settings with a database and a secret. Raises InvalidArgument if one of them is not given."""
    entered = False
    try:
        with database_settings(settings) as found:
            secret = found.secret or (read_or_make_secret(found.data_dir, create=False),)
            entered = True
            yield replace(found, secret=secret, migrate=False)
    except (EmbeddedError, InvalidArgument) as error:
        if entered:
            raise
        raise InvalidArgument(
            "give the server's database and secret (PGBUS_DATABASE_URL, PGBUS_SECRET), or the name of a stream by --stream:"
            f" {error}"
        ) from None


DOCTOR = Command(
    "doctor",
    "check what the streams depend on, or the path to a server, and say what to do",
    _DOCTOR,
    _EXAMPLES,
    (
        *("database_url", "listen_url", "replica_url", "wake", "data_dir", "workers", "max_connections"),
        *("secret", "prefix"),
    ),
    _add,
    _run,
)
