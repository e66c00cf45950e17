"""Cursors on which values look the same whatever an application has told psycopg2 about them.

What turns values into SQL and back is kept in tables for the whole process. ``register_adapter(list, Json)`` in an application
would make our arrays JSON, and a caster of its own our ids texts. So a parameter is wrapped in a class of ours, which has no
entry there and says itself how it is written, and a cursor has a table of casters of its own.
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
    """For the package's own statements; those of an application run on psycopg2's."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.string_types: Any = _CASTERS

    def execute(self, query: Any, vars: Any = None) -> None:
        """As psycopg2's; parameters are texts, bytes, numbers, truth values, lengths of time, None, and sequences of these."""
        connection: Any = self.connection
        if connection.prefix is not None and connection.info.transaction_status == ext.TRANSACTION_STATUS_IDLE:
            query = connection.prefix(not connection.autocommit) + query
        with watched(connection):
            super().execute(query, wrapped(vars))


class PlainCursor(ext.cursor):
    """In the place of psycopg2's own, for the statements of an application on a connection of ours."""

    def execute(self, query: Any, vars: Any = None) -> None:
        """As psycopg2's."""
        with watched(self.connection):
            super().execute(query, vars)


class Literal:
    """One value, written by psycopg2's own adapter for its class."""

    __slots__ = ("_value",)

    def __init__(self, value: Any) -> None:
        self._value = value

    def __conform__(self, protocol: object) -> Any:
        return _adapted(self._value)


def wrapped(parameters: Any) -> Any:
    """Parameters for ``execute``, by position or by name."""
    if isinstance(parameters, Mapping):
        return {name: _wrap(value) for name, value in parameters.items()}
    return None if parameters is None else tuple(map(_wrap, parameters))


def _wrap(value: Any) -> Any:
    return value if value is None else Literal(value)


def _adapted(value: Any) -> Any:
    # bool before int, of which it is one.
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
    raise TypeError(f"a parameter of type {type(value).__name__} is not one that the package's statements have")


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
