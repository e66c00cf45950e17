"""Brings a schema up to date: all missing migrations in one transaction, by one process at a time, without blocking others.

While a migration waits for a lock, every later statement on that table queues behind it. So it waits only for a moment, then
rolls back, which releases its locks, and tries again a little later.
"""

from __future__ import annotations

import logging
import time
from time import monotonic

import psycopg2
import psycopg2.extensions as ext

from ..core.retries import Backoff
from ..errors import DatabaseError, DatabaseUnavailable
from . import schema
from .connect import connect, translated
from .failures import first_line
from .schema import Migration

logger = logging.getLogger("pgbus_gevent.schema")

_LOCK_CLASS = 1885823597  # 'pgbm', an advisory lock class beside those that the SQL names
_LOCK_TIMEOUT = 0.2  # seconds; the longest that publishers queue behind a migration that waits for a table
_PAUSES = 0.2, 2.0  # seconds between two tries: the first, and the longest

_COMMAND = "python -m pgbus_gevent migrate"

_HOLDERS = """
select distinct a.pid, a.usename, a.application_name, a.state, coalesce(extract(epoch from now() - a.xact_start), 0)
from pg_catalog.pg_locks l join pg_catalog.pg_stat_activity a on a.pid = l.pid
where l.granted and a.pid <> pg_backend_pid() and a.datname = current_database()
  and (l.locktype = 'advisory' and l.classid = %s and l.objid = 0
    or l.relation in (select oid from pg_catalog.pg_class where relnamespace = to_regnamespace('pgbus')))
order by 5 desc limit 3
"""
_OWNERSHIP = """
select current_user, (select pg_get_userbyid(nspowner) from pg_catalog.pg_namespace where nspname = 'pgbus'),
  pg_is_in_recovery()
"""


def migrate(url: str, *, connect_timeout: float = 5.0, timeout: float = 60.0) -> list[int]:
    """Bring the schema up to date, and return the versions that were applied. Many processes may call this at the same time.

    ``timeout``, in seconds, bounds the wait for other sessions, and each statement. Raises :class:`SchemaTooNew` and
    :class:`SchemaMismatch` if this release cannot work on the schema, :class:`DatabaseUnavailable` if other sessions kept their
    locks until the timeout, and :class:`DatabaseError` if a migration fails. After an error, nothing has been changed.
    """
    connection = connect(
        url, application_name="pgbus-migrate", connect_timeout=connect_timeout, statement_timeout=timeout
    )
    try:
        with translated():
            # With a higher level, the one snapshot would date from before the wait, and not show another process's migration.
            connection.set_session(isolation_level="READ COMMITTED", autocommit=False)
            return _migrate(connection, monotonic() + timeout)
    finally:
        connection.close()


class _Busy(Exception):
    """Another process is migrating."""


_IN_THE_WAY = (_Busy, psycopg2.errors.LockNotAvailable, psycopg2.errors.DeadlockDetected)
_HANDLED = (*_IN_THE_WAY, psycopg2.errors.InsufficientPrivilege, psycopg2.errors.ReadOnlySqlTransaction)


def _migrate(connection: ext.connection, deadline: float) -> list[int]:
    backoff = Backoff(*_PAUSES)
    while True:
        try:
            return _attempt(connection)
        except _IN_THE_WAY:
            connection.rollback()
        except psycopg2.errors.InsufficientPrivilege as error:
            raise DatabaseError(_without_right(connection, error), error.pgcode) from error
        except psycopg2.errors.ReadOnlySqlTransaction as error:
            raise DatabaseError(_read_only(connection), error.pgcode) from error
        _wait(connection, deadline, backoff.next())


def _attempt(connection: ext.connection) -> list[int]:
    known = schema.migrations()
    with connection.cursor() as cursor:
        # Usually there is nothing to do. This check needs no lock.
        missing = schema.pending(known, schema.read_applied(cursor))
        if missing:
            _prepare(cursor)
            missing = schema.pending(known, schema.read_applied(cursor))
            _apply(cursor, missing)
    connection.commit()
    return [migration.version for migration in missing]


def _prepare(cursor: ext.cursor) -> None:
    """Check the encoding, and take the lock of migrations. Raises :class:`_Busy` if another process has it."""
    cursor.execute("show server_encoding")
    encoding = str(_single(cursor))
    if encoding != "UTF8":
        raise DatabaseError(f"the database's encoding is {encoding}; pgbus needs a database with encoding UTF8")
    cursor.execute(f"set local lock_timeout = '{round(_LOCK_TIMEOUT * 1000)}ms'")
    cursor.execute("set local search_path = pg_catalog, pg_temp")
    cursor.execute("select pg_try_advisory_xact_lock(%s, 0)", (_LOCK_CLASS,))
    if not _single(cursor):
        raise _Busy


def _apply(cursor: ext.cursor, missing: list[Migration]) -> None:
    # Asks first, because `create schema if not exists` requires the right to create schemas even if the schema exists.
    cursor.execute("select to_regnamespace('pgbus') is not null, to_regclass('pgbus.migrations') is not null")
    has_schema, has_record = cursor.fetchone() or (False, False)
    if not has_schema:
        cursor.execute("create schema pgbus")
    if not has_record:
        cursor.execute(schema.RECORD)
    for migration in missing:
        logger.info("migrating schema pgbus to version %d (%s)", migration.version, migration.name)
        _run(cursor, migration)
        cursor.execute(
            "insert into pgbus.migrations (version, name, serves, checksum) values (%s, %s, %s, %s)",
            (migration.version, migration.name, migration.serves, migration.checksum),
        )


def _run(cursor: ext.cursor, migration: Migration) -> None:
    try:
        cursor.execute(migration.sql)
    except _HANDLED:
        raise
    except psycopg2.Error as error:
        if error.pgcode is None:
            raise  # the connection is lost
        raise DatabaseError(
            f"migration {migration.version} ({migration.name}) failed, and nothing was changed: {first_line(error)}",
            error.pgcode,
        ) from error


def _single(cursor: ext.cursor) -> object:
    row = cursor.fetchone()
    return row[0] if row else None


# messages for migrations that cannot go on


def _wait(connection: ext.connection, deadline: float, pause: float) -> None:
    """Log which sessions hold locks, and pause. Raises :class:`DatabaseUnavailable` once the deadline has passed."""
    with connection.cursor() as cursor:
        cursor.execute(_HOLDERS, (_LOCK_CLASS,))
        found = [
            f"{pid} (role {role}, application {application!r}, {state}, for {round(age)} s)"
            for pid, role, application, state, age in cursor.fetchall()
        ]
    connection.rollback()
    others = ", ".join(found) or "unknown, it has ended"
    if monotonic() > deadline:
        raise DatabaseUnavailable(
            f"the schema cannot be upgraded while other sessions hold locks on it: session {others}; wait for them, or end them"
            " with pg_terminate_backend"
        )
    logger.info("the upgrade of the schema is waiting for session %s", others)
    time.sleep(pause)


def _without_right(connection: ext.connection, error: psycopg2.Error) -> str:
    role, owner, _ = _ownership(connection)
    if owner is None:
        remedy = f"have an administrator run: create schema pgbus authorization {role}"
    elif owner == role:
        remedy = f"the role owns schema pgbus, and this needs further rights: run `{_COMMAND}` as an administrator"
    else:
        remedy = f"the schema belongs to {owner}: run `{_COMMAND}` as {owner}, and start the servers with --no-migrate"
    return f"role {role} may not create or upgrade schema pgbus ({first_line(error)}); {remedy}"


def _read_only(connection: ext.connection) -> str:
    _, _, is_standby = _ownership(connection)
    if is_standby:
        return f"this server is a standby, on which no schema can be created or upgraded: give the primary's URL to `{_COMMAND}`"
    return (
        "the schema cannot be created or upgraded, because transactions are read-only here (default_transaction_read_only):"
        f" run `{_COMMAND}` in a session that may write"
    )


def _ownership(connection: ext.connection) -> tuple[str, str | None, bool]:
    """Return our role, the schema's owner (None if there is no schema), and whether the server is a standby."""
    connection.rollback()
    with connection.cursor() as cursor:
        cursor.execute(_OWNERSHIP)
        role, owner, is_standby = cursor.fetchone() or ("", None, False)
    connection.rollback()
    return str(role), owner, bool(is_standby)
