"""Bringing a schema up to date: all that is missing in one transaction, by one process at a time, in nobody's way.

A migration that waits for a lock has everybody queue behind it who comes later. So it waits for an instant only, gives up
what it has, and tries again a little later.
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
from .connect import connect, first_line, translated
from .schema import Migration

logger = logging.getLogger("pgbus_gevent.schema")

_LOCK_CLASS = 1885823597  # 'pgbm'; beside the classes that sql/0001_messages.sql names
_LOCK_TIMEOUT = 0.2  # seconds for which publishers may have to queue behind a migration that waits for a table
_PAUSES = 0.2, 2.0  # seconds between two tries: at first, and at the most

_COMMAND = "python -m pgbus_gevent migrate"

_HOLDERS = """
select distinct a.pid, a.usename, a.application_name, a.state, coalesce(extract(epoch from now() - a.xact_start), 0)
from pg_catalog.pg_locks l join pg_catalog.pg_stat_activity a on a.pid = l.pid
where l.granted and a.pid <> pg_backend_pid() and a.datname = current_database()
  and (l.locktype = 'advisory' and l.classid = %s and l.objid = 0
    or l.relation in (select oid from pg_catalog.pg_class where relnamespace = to_regnamespace('pgbus')))
order by 5 desc limit 3
"""
_WHOSE = """
select current_user, (select pg_get_userbyid(nspowner) from pg_catalog.pg_namespace where nspname = 'pgbus'),
  pg_is_in_recovery()
"""


def migrate(url: str, *, connect_timeout: float = 5.0, timeout: float = 60.0) -> list[int]:
    """Bring the schema up to date and return the versions that were applied; safe when many processes start at once.

    ``timeout`` bounds, in seconds, the wait for other sessions, and each statement. Raises :class:`SchemaTooNew` and
    :class:`SchemaMismatch` for a schema that this release cannot work on, :class:`DatabaseUnavailable` when others did not
    give way in time, and :class:`DatabaseError` when a migration fails. Each leaves nothing of itself behind.
    """
    connection = connect(
        url, application_name="pgbus-migrate", connect_timeout=connect_timeout, statement_timeout=timeout
    )
    try:
        with translated():
            # One snapshot for all of it would be from before the wait for another process's migration.
            connection.set_session(isolation_level="READ COMMITTED", autocommit=False)
            return _migrate(connection, monotonic() + timeout)
    finally:
        connection.close()


class _Busy(Exception):
    """Another process migrates."""


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
        # Most often there is nothing to do, and then nobody is waited for.
        missing = schema.pending(known, schema.read_applied(cursor))
        if missing:
            _prepare(cursor)
            missing = schema.pending(known, schema.read_applied(cursor))
            _apply(cursor, missing)
    connection.commit()
    return [migration.version for migration in missing]


def _prepare(cursor: ext.cursor) -> None:
    """See that we may begin. Raises :class:`_Busy`."""
    cursor.execute("show server_encoding")
    encoding = str(_single(cursor))
    if encoding != "UTF8":
        raise DatabaseError(f"the database's encoding is {encoding}; pgbus needs one made with encoding UTF8")
    cursor.execute(f"set local lock_timeout = '{round(_LOCK_TIMEOUT * 1000)}ms'")
    cursor.execute("set local search_path = pg_catalog, pg_temp")
    cursor.execute("select pg_try_advisory_xact_lock(%s, 0)", (_LOCK_CLASS,))
    if not _single(cursor):
        raise _Busy


def _apply(cursor: ext.cursor, missing: list[Migration]) -> None:
    # Asked first: `create schema if not exists` wants the right to create schemas even where there is nothing to do.
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


# what is told where it does not work


def _wait(connection: ext.connection, deadline: float, pause: float) -> None:
    """Give others time, and say who is in the way. Raises :class:`DatabaseUnavailable` at the deadline."""
    with connection.cursor() as cursor:
        cursor.execute(_HOLDERS, (_LOCK_CLASS,))
        found = [
            f"{pid} (role {role}, application {application!r}, {state}, for {round(age)} s)"
            for pid, role, application, state, age in cursor.fetchall()
        ]
    connection.rollback()
    others = ", ".join(found) or "one that has ended"
    if monotonic() > deadline:
        raise DatabaseUnavailable(
            f"the schema cannot be upgraded while others have locks on it: session {others}; wait for them, or end them with"
            " pg_terminate_backend"
        )
    logger.info("the schema's upgrade waits for session %s", others)
    time.sleep(pause)


def _without_right(connection: ext.connection, error: psycopg2.Error) -> str:
    role, owner, _ = _whose(connection)
    if owner is None:
        remedy = f"have an administrator run: create schema pgbus authorization {role}"
    elif owner == role:
        remedy = f"it needs rights beyond those on schema pgbus, which is its own: run `{_COMMAND}` as an administrator"
    else:
        remedy = f"the schema is {owner}'s: run `{_COMMAND}` as {owner}, and start the others with --no-migrate"
    return f"role {role} may not make or upgrade schema pgbus ({first_line(error)}); {remedy}"


def _read_only(connection: ext.connection) -> str:
    _, _, is_standby = _whose(connection)
    if is_standby:
        return f"this is a standby, where no schema can be made or upgraded: give the primary's URL to `{_COMMAND}`"
    return (
        "the schema cannot be made or upgraded, as transactions are read-only here (default_transaction_read_only):"
        f" run `{_COMMAND}` where it is off"
    )


def _whose(connection: ext.connection) -> tuple[str, str | None, bool]:
    connection.rollback()
    with connection.cursor() as cursor:
        cursor.execute(_WHOSE)
        role, owner, is_standby = cursor.fetchone() or ("", None, False)
    connection.rollback()
    return str(role), owner, bool(is_standby)
