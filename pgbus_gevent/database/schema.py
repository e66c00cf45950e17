"""Numbered migrations: plain SQL files of this package, applied in order, each recorded, under one advisory lock."""

from __future__ import annotations

import logging
import re
from importlib.resources import files
from typing import NamedTuple

import psycopg2.extensions as ext

from ..errors import DatabaseError, SchemaTooNew
from .connect import connect, translated

logger = logging.getLogger("pgbus_gevent.schema")

_LOCK_CLASS = 1885823597  # 'pgbm'; beside the classes that sql/0001_messages.sql names
_FILE_NAME = re.compile(r"(\d{4})_(\w+)\.sql")


class Migration(NamedTuple):
    """One file of ``sql/``: its number, its name, and the statements in it."""

    version: int
    name: str
    sql: str


def migrations() -> list[Migration]:
    """All that this release knows, lowest number first."""
    found = []
    for entry in files(__package__).joinpath("sql").iterdir():
        match = _FILE_NAME.fullmatch(entry.name)
        if match:
            found.append(Migration(int(match[1]), match[2], entry.read_text(encoding="utf-8")))
    return sorted(found)


def migrate(url: str, *, connect_timeout: float = 5.0, timeout: float = 60.0) -> list[int]:
    """Bring the schema up to date and return the versions that were applied; safe when many processes start at once.

    ``timeout`` bounds each statement, the wait for another process's migration included, in seconds. Raises
    :class:`SchemaTooNew` for a schema made by a newer release, :class:`DatabaseError` when a migration fails, which
    then leaves nothing of itself behind.
    """
    connection = connect(
        url, application_name="pgbus-migrate", connect_timeout=connect_timeout, statement_timeout=timeout
    )
    try:
        with translated():
            # One snapshot for all of it would be from before the wait for another process's migration.
            connection.set_session(isolation_level="READ COMMITTED", autocommit=False)
            return _migrate(connection)
    finally:
        connection.close()


def _migrate(connection: ext.connection) -> list[int]:
    known = migrations()
    with connection.cursor() as cursor:
        cursor.execute("show server_encoding")
        encoding = str(_single(cursor))
        if encoding != "UTF8":
            raise DatabaseError(f"the database's encoding is {encoding}; pgbus needs one made with encoding UTF8")
        cursor.execute("select pg_advisory_xact_lock(%s, 0)", (_LOCK_CLASS,))
        version = _prepare(cursor)
        newest = known[-1].version
        if version > newest:
            raise SchemaTooNew(version, newest)
        applied = [migration for migration in known if migration.version > version]
        for migration in applied:
            logger.info("migrating schema pgbus to %d (%s)", migration.version, migration.name)
            cursor.execute(migration.sql)
            cursor.execute(
                "insert into pgbus.migrations (version, name) values (%s, %s)", (migration.version, migration.name)
            )
    connection.commit()
    return [migration.version for migration in applied]


def _prepare(cursor: ext.cursor) -> int:
    """Make the schema and its record of migrations where they are missing; return the version it is at."""
    # Asked first: `create schema if not exists` wants the right to create schemas even where there is nothing to do.
    cursor.execute("select to_regnamespace('pgbus') is not null, to_regclass('pgbus.migrations') is not null")
    has_schema, has_record = cursor.fetchone() or (False, False)
    if not has_schema:
        cursor.execute("create schema pgbus")
    if not has_record:
        cursor.execute(
            "create table pgbus.migrations"
            " (version integer primary key, name text not null, applied_at timestamptz not null default now())"
        )
    cursor.execute("select coalesce(max(version), 0) from pgbus.migrations")
    return int(str(_single(cursor)))


def _single(cursor: ext.cursor) -> object:
    row = cursor.fetchone()
    return row[0] if row else None
