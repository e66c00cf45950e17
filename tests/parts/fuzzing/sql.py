"""A target that calls the SQL functions with any arguments: stored as given, or refused with a clear error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from support import session

from fuzzing.engine import Check, OfProcess, Target
from fuzzing.inputs import Taker

REFUSALS = {
    "22": "data that is not valid",
    "23": "a constraint, such as that of a key",
    "42": "a wrong type or name",
    "54": "too large",
    "P0": "raised by our functions",
    "0A": "a feature that is not supported",
    "40": "a conflict of transactions",
    "55": "an object that is not in the state for this",
}
"""The classes of SQLSTATE that a caller may get. All others are findings, such as XX (internal error) and 57 (a statement that was
ended because it took too long)."""

TEXTS = (
    "",
    "orders",
    "a" * 255,
    "a" * 256,
    "é" * 128,
    "a\x01b",
    "pgbus:x",
    "a\nb",
    "x" * 9000,
    "\u2028",
    "{id}",
    "%",
    "'",
    "\\",
    "null",
)
INTERVALS = ("1 s", "0", "-1 s", "infinity", "1 year", "1e-9 s", None)
NUMBERS = (0, 1, -1, 500, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30, None)


def text_of(take: Taker) -> str | None:
    """Return a text for an argument, or None."""
    kind = take.byte() % 4
    if kind == 0:
        return None
    return take.pick(TEXTS) if kind == 1 else take.text().replace("\0", "")


def array_of(take: Taker) -> list[str | None]:
    return [text_of(take) for _ in range(take.byte() % 6)] * take.pick((1, 1, 1, 50))


def call_of(take: Taker) -> tuple[str, list[Any]]:
    """Return a statement and its arguments."""
    kind = take.byte() % 22
    five = [text_of(take) for _ in range(5)]
    if kind == 0:
        return "select pgbus.broadcast(%s, %s::text, %s, %s, %s, %s)", [five[0], text_of(take), *five[1:]]
    if kind == 1:
        return "select pgbus.broadcast(%s, %s::json, %s)", [five[0], take.rest().decode("utf-8", "replace"), five[1]]
    if kind == 2:
        return "select pgbus.broadcast(%s, %s::jsonb, %s)", [five[0], json.dumps(take.value(), default=str), five[1]]
    if kind == 3:
        arrays = [array_of(take), array_of(take)]
        return "select pgbus.broadcast_many(%s, %s::text[], %s, %s, %s, %s::text[])", [
            *[five[0], arrays[0], *five[1:4]],
            arrays[1],
        ]
    if kind == 4:
        return "select pgbus.broadcast_on_commit(%s, %s::text, %s, %s, %s, %s)", [five[0], text_of(take), *five[1:]]
    if kind == 5:
        return "select pgbus.broadcast_ephemeral(%s, %s::text, %s, %s, %s)", five
    if kind == 6:
        return "select pgbus.last_id(%s)", five[:1]
    if kind == 7:
        return "select count(*) from pgbus.read_after(%s, %s::bigint, %s::integer)", [
            five[0],
            take.pick(NUMBERS),
            take.pick(NUMBERS),
        ]
    if kind == 8:
        return "select pgbus.disconnect(%s)", five[:1]
    if kind == 9:
        where = ("public.watched", "pgbus.messages", "pg_class", "public.nothing")
        return "select pgbus.watch_table(%s, %s, %s)", [take.pick(where), *five[:2]]
    if kind == 10:
        return "select pgbus.presence_join(%s, %s, %s::jsonb, %s, ((%s)::text || ' s')::interval)", [
            *[five[0], five[1], json.dumps(take.value(), default=str), five[2]],
            take.pick(NUMBERS),
        ]
    if kind == 11:
        arrays = [array_of(take) for _ in range(3)]
        call = "select pgbus.presence_touch_many(%s::text[], %s::text[], %s::text[], ((%s)::text || ' s')::interval)"
        return call, [*arrays, take.pick(NUMBERS)]
    if kind == 12:
        return "select count(*) from pgbus.presence_members(%s)", five[:1]
    if kind > 13:
        return _rarer_call_of(take, kind, five)
    return "select pgbus.broadcast_many(%s, %s::bigint[], keys => %s::text[])", [
        *[five[0], [take.pick((0, -1, None, 2**31 - 1)) for _ in range(take.byte() % 5)]],
        array_of(take),
    ]


def _rarer_call_of(take: Taker, kind: int, five: list[str | None]) -> tuple[str, list[Any]]:
    """Return a call of one of the functions that applications rarely need."""
    value, numbers = json.dumps(take.value(), default=str), [take.pick(NUMBERS) for _ in range(3)]
    if kind == 14:
        return "select pgbus.broadcast_on_commit(%s, %s::jsonb, %s, %s)", [five[0], value, *five[1:3]]
    if kind == 15:
        return "select pgbus.broadcast_ephemeral(%s, %s::json, %s, %s)", [five[0], value, *five[1:3]]
    if kind == 16:
        size = take.byte() % 4
        streams, ages = [text_of(take) for _ in range(size)], [take.pick(INTERVALS) for _ in range(size)]
        counts = take.pick((None, [take.pick(NUMBERS) for _ in range(size)], numbers[:2]))
        call = "select pgbus.prune(%s::text[], %s::interval[], %s::bigint[], %s::integer)"
        return call, [streams, ages, counts, numbers[2]]
    if kind == 17:
        return "select pgbus.presence_leave(%s, %s, %s)", five[:3]
    if kind == 18:
        return "select pgbus.presence_touch(%s, %s, %s)", five[:3]
    if kind == 19:
        return "select pgbus.presence_count(%s)", five[:1]
    if kind == 20:
        return "select pgbus.unwatch_table(%s)", [take.pick(("public.watched", "pgbus.messages", "pg_class"))]
    # What is in the rows of a watched table is in the names of streams and in messages.
    statement = take.pick(WATCHES)
    return f"{statement}; insert into public.watched values (%s, %s) on conflict (id) do update set note = %s", [
        *[numbers[0] if numbers[0] in (0, 1, 500) else 7, five[0], five[1]],
    ]


WATCHES = (
    "select 1",
    "select pgbus.watch_table('public.watched', 'rows')",
    "select pgbus.watch_table('public.watched', 'row:{id}')",
    "select pgbus.watch_table('public.watched', 'note:{note}')",
    "select pgbus.watch_table('public.watched', '{note}', 'insert')",
)
"""Ways to watch the table before something is written to it."""


@contextmanager
def sql(url: str) -> Iterator[Check]:
    """Each call stores what it was given, once, or raises an error of a class that callers expect. The session stays usable."""
    with session(url) as connection, connection.cursor() as cursor:
        cursor.execute("create table public.watched (id int primary key, note text)")
        cursor.execute("set statement_timeout = '20s'")
        encodings = ("UTF8", "LATIN1", "SQL_ASCII")

        def check(data: bytes) -> None:
            take = Taker(data)
            encoding = take.pick(encodings)
            statement, arguments = call_of(take)
            cursor.execute("set client_encoding to " + encoding)
            try:
                cursor.execute(statement, arguments)
                found = (cursor.fetchall() or [(None,)])[0][0] if cursor.description else None
            except ValueError:
                return  # the driver cannot send it
            except psycopg2.Error as error:
                code = error.pgcode or ""
                assert code[:2] in REFUSALS, (code, statement, str(error)[:500])
                # "permission denied" and wrong numbers of arguments would mean that the target tests nothing.
                assert code not in ("42883", "42501") or "watch_table" in statement, (code, str(error)[:500])
            else:
                if statement.startswith("select pgbus.broadcast(") and encoding == "UTF8" and found is not None:
                    cursor.execute("select stream, data from pgbus.messages where msg_id = %s", (found,))
                    [(stream, stored)] = cursor.fetchall()
                    assert stream == arguments[0]
                    assert stored == arguments[1] or arguments[-1] is not None or "json" in statement
            cursor.execute("select 1")
            assert cursor.fetchall() == [(1,)]

        yield OfProcess(check, connection.info.backend_pid)


SQL = Target(
    "sql", sql,
    (*(bytes([0, kind]) for kind in range(22)), *(bytes([kind % 3, kind]) for kind in range(22)), b"\0", b"\1", b"\2",
     b"\2orders\n", b"\2{}\n",
     b"\2\xff\xfe\n", b"\n", b"\1\1", b"\1\5", b"\1\6", b"\1\x08", b"x" * 300, "é".encode(), b"\xed\xa0\x80", b"[1, 2",
     b'{"a": "\\u0000"}',
     b'"\\ud800"', b"[" * 200, b"1e400", b"\2insert,update\n", b"\2{id}\n", b"\4", b"\5", b"\xf0\x9f\x98\x80"),
    most=20_000, needs="database",
    about="the arguments of the SQL functions: names, data, json, events, keys, arrays, limits, encodings",
)  # fmt: skip

TARGETS = (SQL,)
