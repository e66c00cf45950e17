"""Database cursors whose values do not depend on the adapters that an application has registered with psycopg2.

psycopg2 keeps adapters and casters for the whole process. After ``register_adapter(list, Json)`` in an application, our arrays
would become JSON; a caster could turn our ids into text. So each parameter is wrapped in a class of ours that has no
registered adapter and adapts itself, and each database cursor has its own table of casters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import psycopg2.extensions as ext
from psycopg2._psycopg import List  # it has no public name

from .overdue import watched


class Cursor(ext.cursor):
    """The database cursor for the package's own statements. An application's statements run on :class:`PlainCursor`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.string_types: Any = _CASTERS

    def execute(self, query: Any, vars: Any = None) -> None:
        """As psycopg2's. Parameters are str, bytes, int, float, bool, timedelta, None, and sequences of these."""
        connection: Any = self.connection
        if connection.prefix is not None and connection.info.transaction_status == ext.TRANSACTION_STATUS_IDLE:
            query = connection.prefix(not connection.autocommit) + query
        with watched(connection):
            super().execute(query, wrapped(vars))


class PlainCursor(ext.cursor):
    """Stands in for psycopg2's own, for an application's statements on one of our connections."""

    def execute(self, query: Any, vars: Any = None) -> None:
        """As psycopg2's."""
        with watched(self.connection):
            super().execute(query, vars)


class Literal:
    """One value, adapted by psycopg2's own adapter for its class."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def __conform__(self, protocol: object) -> Any:
        return _adapted(self._value)


def wrapped(parameters: Any) -> Any:
    """Wrap the parameters of ``execute``, given by position or by name."""
    if isinstance(parameters, Mapping):
        return {name: _wrap(value) for name, value in parameters.items()}
    return None if parameters is None else tuple(map(_wrap, parameters))


def _wrap(value: Any) -> Any:
    return value if value is None else Literal(value)


def _adapted(value: Any) -> Any:
    # bool first, because a bool is an int too.
    if isinstance(value, bool):
        return ext.Boolean(value)
    if isinstance(value, str):
        return ext.QuotedString(value)
    if isinstance(value, bytes):
        return ext.Binary(value)
    if isinstance(value, int):
        return ext.Int(value)
    if isinstance(value, float):
        return ext.Float(value)
    if isinstance(value, timedelta):
        return ext.IntervalFromPy(value)
    if isinstance(value, Sequence):
        return List([_wrap(item) for item in value])
    raise TypeError(f"the package's statements have no parameters of type {type(value).__name__}")


def _json(value: str | bytes | None, cursor: ext.cursor) -> Any:
    return None if value is None else json.loads(value)


_CASTERS = {
    oid: caster
    for caster in (
        ext.INTEGER, ext.LONGINTEGER, ext.FLOAT, ext.DECIMAL, ext.BOOLEAN, ext.UNICODE, ext.PYDATETIME, ext.PYDATETIMETZ,
        ext.PYINTERVAL, ext.INTEGERARRAY, ext.LONGINTEGERARRAY, ext.UNICODEARRAY, ext.new_type((114, 3802), "JSON", _json),
    )
    for oid in caster.values
}  # fmt: skip
