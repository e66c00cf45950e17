"""The version of a schema, and whether this release can work on it.

Numbered migrations make the schema. They are plain SQL files in ``sql/``; the first ones are the baseline, one file for each
subject. Each is recorded in ``pgbus.migrations`` with the oldest release that it still serves. A release is identified by its
newest migration, as in "code of version 9".

- Code runs on a newer schema if that schema serves it, so workers of two releases can run side by side.
- Code never runs on a schema that is older than itself.

A file says which version it serves in a line ``-- serves: 9``. Without that line, it serves only its own release and later
ones. A released file is never edited; the recorded checksum shows if one was.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

import psycopg2
import psycopg2.extensions as ext

from ..errors import NO_RIGHT, DatabaseError, SchemaMismatch, SchemaTooNew, SchemaTooOld

if TYPE_CHECKING:
    from importlib.abc import Traversable


_FILE_NAME = re.compile(r"(\d{4})_(\w+)\.sql")
_SERVES = re.compile(r"^-- serves: (\d+)$", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)

RECORD = """
create table pgbus.migrations (
  version integer primary key,
  name text not null,
  serves integer not null,
  checksum text not null,
  applied_at timestamptz not null default now()
)
"""
_HAS_RECORD = """
select to_regclass('pgbus.migrations') is not null, exists (
  select 1 from pg_catalog.pg_attribute where attrelid = to_regclass('pgbus.migrations') and attname = 'checksum')
"""


class Migration(NamedTuple):
    """One file of ``sql/``: its number, its name, and the statements in it."""

    version: int
    name: str
    sql: str

    @property
    def serves(self) -> int:
        """The version of the oldest code that works with the schema after this migration."""
        found = _SERVES.search(self.sql)
        return int(found[1]) if found else self.version

    @property
    def checksum(self) -> str:
        """A checksum of the statements. White space, and comments on lines of their own, do not count."""
        return _checksum(self.sql)


class Applied(NamedTuple):
    """A row of ``pgbus.migrations``."""

    version: int
    name: str
    serves: int
    checksum: str


def migrations() -> list[Migration]:
    """Return all migrations of this release, lowest number first."""
    return list(_own_migrations())


@cache
def _own_migrations() -> tuple[Migration, ...]:
    # Read once: an upgrade may replace the files while the process runs, and later the process may have no free descriptor.
    return tuple(read_folder(files(__package__).joinpath("sql")))


def read_folder(folder: Traversable) -> list[Migration]:
    """Return the migrations in ``folder``, files with names like ``0001_messages.sql``, lowest number first."""
    found = []
    for entry in folder.iterdir():
        match = _FILE_NAME.fullmatch(entry.name)
        if match:
            found.append(Migration(int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    return sorted(found)


@cache
def _checksum(sql: str) -> str:
    words = " ".join(_COMMENT.sub("", sql).split())
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def read_applied(cursor: ext.cursor) -> dict[int, Applied]:
    """Return the recorded migrations by version; none if there is no schema. Raises :class:`SchemaMismatch`."""
    cursor.execute(_HAS_RECORD)
    has_record, is_whole = cursor.fetchone() or (False, False)
    if not has_record:
        return {}
    if not is_whole:
        raise SchemaMismatch("it was made by a version of pgbus-gevent from before the first release")
    cursor.execute("select version, name, serves, checksum from pgbus.migrations")
    return {row[0]: Applied(*row) for row in cursor.fetchall()}


def pending(known: Sequence[Migration], applied: Mapping[int, Applied]) -> list[Migration]:
    """Return the migrations of this release that are newer than the schema.

    Raises :class:`SchemaTooNew` if the schema does not serve this release, and :class:`SchemaMismatch` if no release makes such a
    schema.
    """
    newest, found = known[-1].version, max(applied, default=0)
    _compare(known, applied, min(newest, found))
    serves = max((row.serves for row in applied.values() if row.version > newest), default=0)
    if serves > newest:
        raise SchemaTooNew(found, newest, serves)
    return [migration for migration in known if migration.version > found]


def _compare(known: Sequence[Migration], applied: Mapping[int, Applied], upto: int) -> None:
    """Compare the migrations up to ``upto``, which both this release and the schema must have."""
    names = {migration.version for migration in known}
    for version in sorted(applied):
        if version <= upto and version not in names:
            raise SchemaMismatch(
                f"its record has a migration {version} ({applied[version].name}), which this release does not have"
            )
    for migration in known:
        if migration.version > upto:
            return
        _compare_one(migration, applied.get(migration.version))


def _compare_one(migration: Migration, row: Applied | None) -> None:
    title = f"migration {migration.version} ({migration.name})"
    if row is None:
        raise SchemaMismatch(
            f"{title} is missing, and a later one is there; if only its row was lost: insert into pgbus.migrations"
            f" (version, name, serves, checksum) values ({migration.version}, '{migration.name}', {migration.serves},"
            f" '{migration.checksum}')"  # nosec B608 # a message, not a statement
        )
    if row.name != migration.name:
        raise SchemaMismatch(f"its record calls {title} {row.name!r}")
    if row.checksum != migration.checksum:
        raise SchemaMismatch(f"{title} was applied with statements that differ from this release's")


def check(connection: ext.connection) -> None:
    """Raise if this release cannot work on the schema, for callers that do not migrate.

    Raises :class:`SchemaTooOld` (with version 0 if there is no schema), :class:`SchemaTooNew` and :class:`SchemaMismatch`.
    Returns if the role may not read the record: its next statements show whether its rights are enough.
    """
    known = migrations()
    try:
        with connection.cursor() as cursor:
            applied = read_applied(cursor)
    except psycopg2.errors.InsufficientPrivilege:
        return
    if pending(known, applied):
        raise SchemaTooOld(max(applied, default=0), known[-1].version)


_SERVING = """
select version, name, serves, checksum from pgbus.migrations where has_table_privilege('pgbus.messages', 'select')
"""


def check_serving(connection: ext.connection) -> None:
    """Do as :func:`check`, and also raise :class:`DatabaseError` if the role may not read messages, or not any more."""
    with (
        suppress(psycopg2.ProgrammingError),
        connection.cursor() as cursor,
    ):  # no such table or right, as is found out below
        # One statement, because each worker asks this all the time.
        cursor.execute(_SERVING)
        applied = {row[0]: Applied(*row) for row in cursor.fetchall()}
        if applied and not pending(migrations(), applied):
            return
    check(connection)
    with connection.cursor() as cursor:
        cursor.execute("select has_table_privilege('pgbus.messages', 'select'), current_user")
        may, role = cursor.fetchone() or (False, "")
    if not may:
        raise DatabaseError(f"role {role} may not read pgbus.messages: grant it the rights in docs/sql.md", NO_RIGHT)
