"""The commands ``migrate`` and ``prune``, which maintain the database."""

from __future__ import annotations

import argparse
from contextlib import closing

from ..core.shown import json_line
from ..database import Database
from ..database.checks import Checks
from ..database.pruning import Pruning
from ..database.schema import migrations
from ..settings.table import Settings
from .output import table
from .program import Command, add_json, database_settings, say, schema_expected

_MIGRATE = """\
Create the schema pgbus in the database, or upgrade it to this release, and print what was done.

`serve` does the same when it starts. Run this command if the server's role may not create tables (and start the server with
--no-migrate), or to choose the time."""

_MIGRATE_EXAMPLES = """\
examples:
  pgbus-gevent migrate --database-url postgresql://owner@db.example/shop"""


def _add_migrate(parser: argparse.ArgumentParser) -> None:
    pass


def _migrate(arguments: argparse.Namespace, settings: Settings) -> int:
    with database_settings(settings) as settings, closing(Database(settings)) as database:
        applied = database.migrate()
        version, warning = Checks(database.pool).schema_version(), database.check_ids()
    known = migrations()
    for migration in known:
        if migration.version in applied:
            print(f"applied migration {migration.version} ({migration.name})")
    newest = known[-1].version
    if version is not None and version > newest:
        print(
            f"schema pgbus is at version {version} of a newer release, and still supports this one (version {newest})"
        )
    else:
        print(f"schema pgbus is {'now' if applied else 'already'} at version {newest}")
    if warning:
        print(warning)
    return 0


MIGRATE = Command(
    "migrate",
    "create or upgrade the schema in the database",
    _MIGRATE,
    _MIGRATE_EXAMPLES,
    ("database_url", "data_dir"),
    _add_migrate,
    _migrate,
)


_PRUNE = """\
Remove the messages that are past the retention (--retention and the rules of retention_patterns), and print how many were
removed from each stream.

`serve` does the same all the time. Run this command if no server removes messages (prune_interval=0), or to choose the time."""

_PRUNE_EXAMPLES = """\
examples:
  pgbus-gevent prune --retention 7d
  pgbus-gevent prune --config pgbus.toml --json"""

_PRUNE_STREAMS, _PRUNE_MESSAGES, _PRUNE_HORIZONS = 200, 1000, 10_000


def _add_prune(parser: argparse.ArgumentParser) -> None:
    add_json(parser, "stream, removed, and up_to, the highest id that was removed")


def _prune(arguments: argparse.Namespace, settings: Settings) -> int:
    with database_settings(settings) as settings, schema_expected(), closing(Database(settings)) as database:
        for theirs, teller in database.pruning.ask():
            say(
                f"the server {teller} has, or had until it ended a while ago, {theirs} instead of"
                f" {database.pruning.retention}: for each stream, the longer retention applies"
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
    """Remove messages in batches, so that no server waits long for a lock. Return the number and the highest id by stream."""
    found: dict[str, tuple[int, int]] = {}
    below = None
    while names := pruning.below(below, _PRUNE_STREAMS):
        below = names[-1]
        full = True
        while full:
            batch = pruning.prune(names, _PRUNE_MESSAGES)
            full = sum(pruned.removed for pruned in batch) >= _PRUNE_MESSAGES
            for name, removed, up_to, _ in batch:
                found[name] = (found.get(name, (0, 0))[0] + removed, up_to)
    while pruning.prune_ephemerals(_PRUNE_MESSAGES) >= _PRUNE_MESSAGES:
        pass
    below = pruning.forget(None, forget_after, _PRUNE_HORIZONS)
    while below is not None:
        below = pruning.forget(below, forget_after, _PRUNE_HORIZONS)
    return sorted(found.items())


PRUNE = Command(
    "prune",
    "remove the messages that are past the retention",
    _PRUNE,
    _PRUNE_EXAMPLES,
    ("database_url", "data_dir", "retention"),
    _add_prune,
    _prune,
)
