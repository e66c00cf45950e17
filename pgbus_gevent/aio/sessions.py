"""Sessions with the database, on psycopg 3: a pool for statements, and those that an application gives as ``using=``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import AsyncConnectionPool
from psycopg_pool import PoolTimeout as NoConnection

from ..database.failures import meaning
from ..database.session_settings import NETWORK, SessionSettings
from ..errors import DatabaseError, DatabaseUnavailable, InvalidArgument, MissingSetting
from ..settings.casting import redact_url
from ..settings.table import Settings

Cursor = psycopg.AsyncCursor[TupleRow]
T = TypeVar("T")

_NO_SCHEMA = ("3F000", "42P01", "42883")  # invalid_schema_name, undefined_table, undefined_function

_ACCEPTED = (
    "using= takes an AsyncConnection or AsyncCursor of psycopg 3, or an AsyncSession or AsyncConnection of SQLAlchemy on"
    " psycopg 3"
)


class Sessions:
    """The database of one bus. The pool opens with the first statement, in the event loop that runs then.

    Raises :class:`MissingSetting` if the settings have no ``database_url``.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.database_url is None:
            raise MissingSetting(
                "database_url",
                "give a postgresql:// URL as database_url, or in PGBUS_DATABASE_URL or DATABASE_URL;"
                " serve prints the URL of its embedded database",
            )
        self.settings = settings
        self._url = settings.database_url
        self._pool: AsyncConnectionPool | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def cursor(self) -> AsyncIterator[Cursor]:
        """Lend a cursor of a pooled connection in autocommit mode. Errors become those of :mod:`pgbus_gevent.errors`."""
        pool = await self._opened()
        with translated():
            async with (
                pool.connection() as connection,
                psycopg.AsyncCursor(connection, row_factory=tuple_row) as cursor,
            ):
                yield cursor

    async def rows(self, statement: str, parameters: Any = None) -> list[TupleRow]:
        """Return the rows of a statement, which is run on its own."""
        return await cancellable(self._rows(statement, parameters))

    async def _rows(self, statement: str, parameters: Any) -> list[TupleRow]:
        async with self.cursor() as cursor:
            await cursor.execute(statement, parameters)  # type: ignore[arg-type, unused-ignore]
            return await cursor.fetchall()

    async def listen(self) -> psycopg.AsyncConnection[TupleRow]:
        """Open a connection for LISTEN, which the caller closes."""
        with translated():
            return await psycopg.AsyncConnection.connect(
                self._conninfo(self.settings.listen_url or self._url, "pgbus-aio-listen"), **_AUTOCOMMIT
            )

    async def _opened(self) -> AsyncConnectionPool:
        async with self._opening:
            if self._pool is None:
                pool = AsyncConnectionPool(
                    self._conninfo(self._url, "pgbus-aio"),
                    kwargs=_AUTOCOMMIT,
                    min_size=0,
                    max_size=self.settings.pool_size,
                    timeout=self.settings.pool_timeout,
                    check=AsyncConnectionPool.check_connection,
                    name="pgbus-aio",
                    open=False,
                )
                await pool.open()
                self._pool = pool
            return self._pool

    def _conninfo(self, url: str, application_name: str) -> str:
        try:
            given = conninfo_to_dict(url)
        except psycopg.ProgrammingError:
            # The reason may quote the password.
            raise InvalidArgument(f"the database URL cannot be parsed: {redact_url(url)}") from None
        ours: dict[str, Any] = {
            **NETWORK,
            **{name: value for name, value in given.items() if value is not None},
            "application_name": application_name,
            "client_encoding": "UTF8",
            "connect_timeout": max(2, round(self.settings.connect_timeout)),
            "options": SessionSettings(self.settings.statement_timeout, {}).options(str(given.get("options") or "")),
        }
        if "," in f"{given.get('host') or ''}{given.get('hostaddr') or ''}":
            ours.setdefault("target_session_attrs", "primary")
        return make_conninfo("", **ours)

    async def close(self) -> None:
        """Close the pool. The next statement opens another."""
        async with self._opening:
            pool, self._pool = self._pool, None
            if pool is not None:
                await pool.close()


# Without prepared statements, because a pooler in transaction mode may run each statement in another session.
_AUTOCOMMIT: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}


async def cancellable(work: Coroutine[Any, Any, T]) -> T:
    """Await work of psycopg, and raise CancelledError if this task is cancelled meanwhile.

    Before Python 3.12, psycopg and its pool lose a cancellation that comes in the moment in which they have waited enough, because
    asyncio.wait_for does. The work is then a task of its own, so that only its own cancellation can be lost.
    """
    if sys.version_info >= (3, 12):
        return await work
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # or asyncio would log that nobody has asked for it
        raise
    return task.result()


@contextmanager
def translated() -> Iterator[None]:
    """Turn psycopg's exceptions into the package's own."""
    try:
        yield
    except NoConnection as error:
        raise DatabaseUnavailable(
            f"no connection to PostgreSQL was free in time ({error}): it cannot be reached, which the log of psycopg.pool explains,"
            " or all connections are busy, and pool_size is too small"
        ) from error
    except psycopg.Error as error:
        lost = error.sqlstate is None and isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
        found = meaning(error, error.sqlstate, lost=lost)
        if isinstance(found, DatabaseError) and found.sqlstate in _NO_SCHEMA:
            found = DatabaseError(f"{found}; if the schema is missing, run `pgbus-gevent migrate`", found.sqlstate)
        raise found from error


async def run_in(using: object, statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Run a statement in the transaction of ``using``, and return its rows. Errors of the application's driver are not translated.

    Raises :class:`InvalidArgument` for an object that has no such transaction.
    """
    if isinstance(using, psycopg.AsyncCursor):
        using = using.connection
    if isinstance(using, psycopg.AsyncConnection):
        # Not the connection's cursor_factory: a raw cursor, for example, has another syntax for parameters.
        async with psycopg.AsyncCursor(using, row_factory=tuple_row) as cursor:
            await cursor.execute(statement, parameters)  # type: ignore[arg-type, unused-ignore]
            return await cursor.fetchall()
    names = {kind.__name__ for kind in type(using).__mro__ if kind.__module__.startswith("sqlalchemy.ext.asyncio.")}
    connection: Any = using
    if names & {"AsyncSession", "async_scoped_session"}:
        connection = await connection.connection()
    elif "AsyncConnection" not in names:
        raise InvalidArgument(f"{_ACCEPTED}, not an object of {type(using).__module__}.{type(using).__qualname__}")
    dialect = connection.dialect
    if (dialect.name, dialect.driver) not in _DRIVERS:
        raise InvalidArgument(f"{_ACCEPTED}, not one on {dialect.name}+{dialect.driver}")
    return [tuple(row) for row in await connection.exec_driver_sql(statement, tuple(parameters))]


_DRIVERS = {("postgresql", "psycopg"), ("postgresql", "psycopg_async")}
