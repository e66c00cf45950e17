"""Statements that run in an application's own transaction. Errors of the application's driver are not translated.

The object that an application gives as ``using=`` is recognised by its class, without importing drivers that are not
installed. A database cursor only leads to its connection: the statement gets a new database cursor there, so that row
factories and results that have not been fetched do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import iscoroutinefunction
from typing import Any

import psycopg2.extensions as ext

from ..errors import InvalidArgument
from . import statements
from .cursors import wrapped
from .statements import Publication
from .traces import SET_TRACE, traced

Run = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]

_DRIVERS = ("psycopg2", "psycopg")
"""SQLAlchemy's names of the drivers that are accepted. Both write parameters as ``%s``."""

_MOST_WRAPPERS = 8  # nested wrappers; with more, the wrapper probably wraps itself

_ACCEPTED = (
    "using= takes a cursor or connection of psycopg2 or psycopg 3, a Session or Connection of SQLAlchemy on one of these, or"
    " Django's connection"
)


def broadcast_on_commit(
    using: object, stream: str, data: str, publication: Publication, trace: str | None = None
) -> None:
    """Queue one message in the transaction of ``using``. It is appended at the commit. ``trace`` is the publisher's traceparent."""
    _runner(using)(*traced(statements.BROADCAST_ON_COMMIT, (stream, data, *publication), trace))


def broadcast_many_on_commit(
    using: object,
    stream: str,
    data: Sequence[str],
    publication: Publication,
    keys: Sequence[str | None] | None = None,
    trace: str | None = None,
) -> None:
    """Queue several messages in the transaction of ``using``, in this order. They are appended at the commit."""
    run = _runner(using)
    if trace is not None:
        run(SET_TRACE, (trace,))
    run(*statements.many_on_commit(stream, data, publication, keys))


def broadcast_ephemeral(using: object, stream: str, data: str, publication: Publication) -> None:
    """Send an ephemeral message when the transaction of ``using`` commits."""
    _runner(using)(statements.BROADCAST_EPHEMERAL, (stream, data, *publication[:3]))


def last_ids(using: object, streams: Sequence[str]) -> list[int]:
    """Return the newest id of each stream in the snapshot of the transaction of ``using``."""
    rows = _runner(using)(statements.last_ids(len(streams)), tuple(streams))
    return [int(id) for (id,) in rows]


def disconnect(using: object, owner: str) -> None:
    """End all connections of an owner when the transaction of ``using`` commits."""
    _runner(using)(statements.DISCONNECT, (owner,))


def _runner(given: Any, wrappers: int = 0) -> Run:
    """Return a function that runs a statement in the transaction of ``given``. Raises :class:`InvalidArgument` if none can."""
    # The testing kit's. Looked up in the class, because a mock object has every attribute.
    if not isinstance(given, type) and hasattr(type(given), "pgbus_run"):
        return given.pgbus_run  # type: ignore[no-any-return]
    if isinstance(given, type) or _is_async(given):
        raise _refused(given)
    for known in (_psycopg2, _psycopg, _sqlalchemy, _django):
        run = known(given)
        if run is not None:
            return _encodable(run)
    inner = _inner(given)
    if inner is None or wrappers == _MOST_WRAPPERS:
        raise _refused(given)
    return _runner(inner, wrappers + 1)


def _inner(given: Any) -> Any:
    """Return the object inside a wrapper of SQLAlchemy's pool, of Werkzeug, or of wrapt, which tracers use."""
    if hasattr(type(given), "_get_current_object"):
        return given._get_current_object()
    return getattr(given, "driver_connection", None) or getattr(given, "__wrapped__", None)


def _encodable(run: Run) -> Run:
    """Wrap ``run`` so that it raises :class:`InvalidArgument` for text that the client encoding lacks. Nothing is sent then."""

    def checked(statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        try:
            return run(statement, parameters)
        except UnicodeEncodeError as error:
            raise InvalidArgument(
                f"the client encoding of the connection in using= is {error.encoding}, which has no"
                f" {error.object[error.start : error.start + 1]!a}: set its client_encoding to UTF8"
            ) from error

    return checked


def _psycopg2(given: Any) -> Run | None:
    if isinstance(given, ext.cursor):
        given = given.connection
    if not isinstance(given, ext.connection):
        return None
    if given.async_:
        raise _refused(given)

    def run(statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with given.cursor(cursor_factory=ext.cursor) as cursor:
            cursor.execute(statement, wrapped(parameters))
            return cursor.fetchall()

    return run


def _psycopg(given: Any) -> Run | None:
    if not _of(given, "psycopg", "Connection", "Cursor", "BaseCursor"):
        return None
    from psycopg import Connection, Cursor
    from psycopg.rows import tuple_row

    connection = given if isinstance(given, Connection) else given.connection

    def run(statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        # Not the connection's cursor_factory: a RawCursor, for example, has another syntax for parameters.
        with Cursor(connection, row_factory=tuple_row) as cursor:
            cursor.execute(statement, parameters)  # type: ignore[arg-type, unused-ignore]
            return cursor.fetchall()

    return run


def _sqlalchemy(given: Any) -> Run | None:
    if _of(given, "sqlalchemy.orm", "Session", "scoped_session"):
        given = given.connection()
    if not _of(given, "sqlalchemy", "Connection"):
        return None
    dialect = given.dialect
    if dialect.name != "postgresql" or dialect.driver not in _DRIVERS:
        raise InvalidArgument(f"{_ACCEPTED}, not {_named(given)} on {dialect.name}+{dialect.driver}")
    return lambda statement, parameters: [tuple(row) for row in given.exec_driver_sql(statement, tuple(parameters))]


def _django(given: Any) -> Run | None:
    if _of(given, "django", "CursorWrapper"):
        given = given.db
    if not _of(given, "django", "ConnectionProxy", "BaseDatabaseWrapper"):
        return None
    if given.vendor != "postgresql":
        raise InvalidArgument(f"{_ACCEPTED}, not {_named(given)} of {given.vendor}")

    def run(statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with given.cursor() as cursor:
            cursor.execute(statement, list(parameters))
            return list(cursor.fetchall())

    return run


def _of(given: Any, package: str, *names: str) -> bool:
    """Whether ``given`` is an instance of one of these classes of the package, or of a subclass."""
    classes = [kind for kind in type(given).__mro__ if kind.__name__ in names]
    return any(kind.__module__ == package or kind.__module__.startswith(f"{package}.") for kind in classes)


def _is_async(given: Any) -> bool:
    """Whether its calls return coroutines. Without ``await``, they would publish nothing."""
    calls = [getattr(type(given), name, None) for name in ("execute", "cursor", "connection", "__aenter__")]
    return any(iscoroutinefunction(call) for call in calls) or (
        calls[-1] is not None and not hasattr(given, "__enter__")
    )


def _refused(given: Any) -> InvalidArgument:
    why = "; an asynchronous one would publish nothing" if not isinstance(given, type) and _is_async(given) else ""
    return InvalidArgument(f"{_ACCEPTED}, not {_named(given)}{why}")


def _named(given: Any) -> str:
    if isinstance(given, type):
        return f"the class {given.__module__}.{given.__qualname__}"
    kind = type(given)
    asynchronous = "asynchronous " if getattr(given, "async_", 0) == 1 else ""
    return f"an {asynchronous}object of {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
