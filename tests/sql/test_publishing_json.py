"""The types of data: text, json and jsonb. Literals and parameters without a type count as text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import pytest
from database_parts import Ear, Session, opened_sessions, raises
from psycopg.types.json import Json, Jsonb
from psycopg2.extras import Json as Json2

from pgbus_gevent.core.wakes import Ephemeral, parse
from pgbus_gevent.testing.databases import TestDatabases

INVALID, NO_SUCH_FUNCTION = "22023", "42883"
STORING = ["broadcast", "broadcast_on_commit"]
ONE = [*STORING, "broadcast_ephemeral"]
UNTIDY = '{"b": 1,  "a":[2,\n3], "a": "é"}'
TIDY = '{"a": "é", "b": 1}'
EXPRESSIONS = {
    "literal": (f"'{UNTIDY}'", UNTIDY),
    "string with escapes": (r"E'a\nb'", "a\nb"),
    "dollar quotes": ("$$a'b$$", "a'b"),
    "text": ("'x'::text", "x"),
    "varchar": ("'x'::varchar(5)", "x"),
    "char": ("'x'::char(3)", "x"),
    "name": ("current_schema()", "public"),
    "concatenation": ("'a' || 'b'", "ab"),
    "domain over text": ("'x'::label", "x"),
    "json": (f"'{UNTIDY}'::json", UNTIDY),
    "jsonb": (f"'{UNTIDY}'::jsonb", TIDY),
    "domain over jsonb": (f"'{UNTIDY}'::document", TIDY),
    "row_to_json": ("row_to_json(t) from (values (1, 'x')) t(n, x)", '{"n":1,"x":"x"}'),
    "json_build_object": ("json_build_object('a', 1)", '{"a" : 1}'),
    "jsonb_build_object": ("jsonb_build_object('a', 1)", '{"a": 1}'),
    "to_jsonb": ("to_jsonb('x'::text)", '"x"'),
    "json null": ("'null'::jsonb", "null"),
    "element": ("""'{"a": {"b": [1,2]}}'::jsonb -> 'a'""", '{"b": [1, 2]}'),
    "element as text": ("""'{"a": {"b": [1,2]}}'::jsonb ->> 'a'""", '{"b": [1, 2]}'),
    "subselect": ("(select 'x')", "x"),
    "case": ("case when true then 'x' else 'y' end", "x"),
}


@pytest.fixture(scope="module")
def url(pgbus_databases: TestDatabases) -> Iterator[str]:
    found = pgbus_databases.make()
    with opened_sessions(found) as opener:
        opener().run("create domain label as text; create domain document as jsonb; create domain labels as text[]")
    yield found
    pgbus_databases.drop(found)


@pytest.fixture
def sql(url: str) -> Iterator[Session]:
    with opened_sessions(url) as opener:
        yield opener()


@pytest.fixture
def three(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of psycopg 3."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def sent(sql: Session, ear: Ear) -> list[str]:
    """Return the data of the ephemeral messages that were sent."""
    return [wake.data or "" for wake in map(parse, ear.heard_until(sql)) if isinstance(wake, Ephemeral)]


# expressions in SQL


@pytest.mark.parametrize(("expression", "expected"), EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_data_of_each_type_is_published_as_its_text(expression: str, expected: str, sql: Session, stream: str) -> None:
    value, _, source = expression.partition(" from ")
    source = source and f" from {source}"
    for function in STORING:
        sql.run(f"select pgbus.{function}(%s, {value}){source}", stream)
        sql.run(f"select pgbus.{function}(data => {value}, stream => %s, event => 'e'){source}", stream)
    assert sql.data(stream) == [expected] * 4
    ear = Ear(sql)
    sql.run(f"select pgbus.broadcast_ephemeral(%s, {value}){source}", stream)
    sql.run(f"select pgbus.broadcast_ephemeral(data => {value}, stream => %s, event => 'e'){source}", stream)
    assert sent(sql, ear) == [expected] * 2


@pytest.mark.parametrize("type", ["", "::text", "::json", "::jsonb"], ids=["untyped", "text", "json", "jsonb"])
@pytest.mark.parametrize("function", ONE)
def test_null_of_each_type_is_refused_by_name(function: str, type: str, sql: Session, stream: str) -> None:
    with raises(INVALID, "data is null: broadcast an empty text instead"):
        sql.run(f"select pgbus.{function}(%s, null{type})", stream)


@pytest.mark.parametrize("data", ["1", "true", "'x'::bytea", "now()", "array['x']", "row(1)"])
@pytest.mark.parametrize("function", ONE)
def test_data_of_another_type_is_refused(function: str, data: str, sql: Session, stream: str) -> None:
    with raises(NO_SUCH_FUNCTION):
        sql.run(f"select pgbus.{function}(%s, {data})", stream)


@pytest.mark.parametrize("type", ["json", "jsonb"])
def test_json_data_takes_the_same_other_arguments_as_text(type: str, sql: Session, stream: str) -> None:
    first = sql.one(f"select pgbus.broadcast(%s, '1'::{type}, 'e', 'admins', 'c7', 'k')", stream)
    assert sql.one(f"select pgbus.broadcast(%s, '2'::{type}, key => 'k')", stream) == first
    sql.run(f"select pgbus.broadcast_on_commit(%s, '3'::{type}, 'e', 'admins', 'c7', 'l')", stream)
    rows = sql.run("select data, event, visible_to, exclude from pgbus.read_after(%s, 0)", stream)
    assert rows == [("1", "e", "admins", "c7"), ("3", "e", "admins", "c7")]
    for function in ONE:
        with raises(INVALID, "bad event name"):
            sql.run(f"select pgbus.{function}(%s, '1'::{type}, event => 'a\nb')", stream)


@pytest.mark.parametrize("function", ONE)
def test_untyped_parameters_of_a_prepared_statement_are_text(function: str, sql: Session, stream: str) -> None:
    sql.run(f"prepare publish as select pgbus.{function}($1, $2)")
    sql.run(f"prepare naming as select pgbus.{function}(data => $1, stream => $2, event => $3)")
    types = "select parameter_types::text from pg_prepared_statements where name in ('publish', 'naming') order by name"
    assert [row[0] for row in sql.run(types)] == ["{text,text,text}", "{text,text}"]
    sql.run("execute publish (%s, 'x')", stream)
    assert sql.data(stream) == (["x"] if function in STORING else [])


def test_a_trigger_of_an_application_can_publish_json(sql: Session, stream: str) -> None:
    sql.run("create table orders (id integer, document jsonb)")
    sql.run(
        "create function announce() returns trigger language plpgsql as $$ begin"
        " perform pgbus.broadcast_on_commit(tg_argv[0], to_jsonb(new)); perform pgbus.broadcast(tg_argv[0], new.document);"
        " return new; end $$"
    )
    sql.run(f"create trigger announce after insert on orders for each row execute function announce('{stream}')")
    sql.run("""insert into orders values (7, '{"b":1,"a":2}')""")
    assert sql.data(stream) == ['{"a": 2, "b": 1}', '{"id": 7, "document": {"a": 2, "b": 1}}']


def test_the_examples_of_the_documentation_work(pgbus_databases: TestDatabases) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sql.md").read_text(encoding="utf-8")
    code = re.findall(r"```sql\n(.*?)```", page.split("## Text and JSON\n", 1)[1], re.DOTALL)[0]
    empty = pgbus_databases.make()
    with opened_sessions(empty) as opener:
        sql = opener()
        sql.run("create table orders (id integer, total integer); insert into orders values (7, 1), (8, 2)")
        for statement in filter(None, map(str.strip, code.split(";"))):
            sql.run(statement)
        assert sql.data("orders") == ['{"id": 7, "total": 1}', '{"id": 7, "total": 1}', '{"id": 8, "total": 2}']
    pgbus_databases.drop(empty)


@pytest.mark.parametrize("type", ["json", "jsonb"])
def test_postgresql_inlines_the_call_with_json(type: str, sql: Session) -> None:
    """It becomes the call with text, so there is no second function call."""
    plan = "\n".join(
        row[0]
        for row in sql.run(f"explain verbose select pgbus.broadcast('s', n::{type}) from (values ('1'), ('2')) v(n)")
    )
    assert "broadcast('s'::text, (" in plan and "::text, NULL::text" in plan


# arrays


ARRAYS = {
    "literal": ("'{a,b}'", ["a", "b"]),
    "numbered literal": ("'[7:8]={a,b}'", ["a", "b"]),
    "text[]": ("array['a', 'b']", ["a", "b"]),
    "varchar[]": ("array['a', 'b']::varchar[]", ["a", "b"]),
    "char[]": ("array['a', 'b']::char(1)[]", ["a", "b"]),
    "name[]": ("array['a', 'b']::name[]", ["a", "b"]),
    "domain over text[]": ("array['a', 'b']::labels", ["a", "b"]),
    "domain[]": ("array['a', 'b']::label[]", ["a", "b"]),
    "json[]": (f"array['{UNTIDY}', '1']::json[]", [UNTIDY, "1"]),
    "jsonb[]": (f"array['{UNTIDY}', 'null']::jsonb[]", [TIDY, "null"]),
    "domain over jsonb[]": (f"array['{UNTIDY}', '1']::document[]", [TIDY, "1"]),
    "array_agg": ("(select array_agg(to_jsonb(n)) from generate_series(1, 2) n)", ["1", "2"]),
}


@pytest.mark.parametrize(("expression", "expected"), ARRAYS.values(), ids=ARRAYS)
def test_an_array_of_each_type_is_published_as_texts(
    expression: str, expected: list[str], sql: Session, stream: str
) -> None:
    last = sql.one(f"select pgbus.broadcast_many(%s, {expression})", stream)
    sql.run(
        f"select pgbus.broadcast_many(data => {expression}, stream => %s, event => 'e', keys => '{{k,null}}')", stream
    )
    assert sql.data(stream) == [*expected, *expected]
    assert sql.read(stream)[1][0] == last


@pytest.mark.parametrize("type", ["", "::text[]", "::json[]", "::jsonb[]"], ids=["untyped", "text", "json", "jsonb"])
def test_a_null_array_or_null_elements_are_refused_and_an_empty_array_adds_nothing(
    type: str, sql: Session, stream: str
) -> None:
    for data in ("null", "'{1,null}'", "'{{1},{2}}'"):
        with raises(INVALID, "bad data: it must be an array of one dimension without nulls"):
            sql.run(f"select pgbus.broadcast_many(%s, {data}{type})", stream)
    assert sql.one(f"select pgbus.broadcast_many(%s, '{{}}'{type})", stream) is None


@pytest.mark.parametrize(
    ("data", "type"),
    [
        ("array[1, 2]", "integer[]"),
        ("array['a'::bytea]", "bytea[]"),
        ("array[now()]", ".*[]"),
    ],
)
def test_an_array_of_another_type_is_refused_by_name(data: str, type: str, sql: Session, stream: str) -> None:
    expected = f"bad data of type {type.replace('[', chr(92) + '[')}: it must be an array of text, json or jsonb"
    with raises(INVALID, expected):
        sql.run(f"select pgbus.broadcast_many(%s, {data})", stream)
    with raises(NO_SUCH_FUNCTION):
        sql.run("select pgbus.broadcast_many(%s, 'x'::text)", stream)


def test_an_untyped_array_of_a_prepared_statement_is_of_texts(sql: Session, stream: str) -> None:
    sql.run("prepare many as select pgbus.broadcast_many($1, $2)")
    assert sql.one("select parameter_types::text from pg_prepared_statements") == "{text,text[]}"
    sql.run("execute many (%s, '{a,b}')", stream)
    assert sql.data(stream) == ["a", "b"]


def test_a_cast_made_by_a_publisher_does_not_run_with_the_rights_of_the_owner(url: str, sql: Session) -> None:
    role = f"pgbus_test_caster_{os.getpid()}"
    sql.run(f"create role {role}; create schema theirs authorization {role}")
    try:
        sql.call("grant_publisher", role)
        with opened_sessions(url) as opener:
            theirs = opener(role=role)
            theirs.run("create type theirs.thing as (n integer)")
            theirs.run("create type theirs.kind as enum ('x')")
            for type in ("thing", "kind"):
                theirs.run(
                    f"create function theirs.spell(theirs.{type}) returns text language plpgsql as"
                    " $$ begin raise exception 'it ran as %', current_user; end $$"
                )
                theirs.run(f"create cast (theirs.{type} as text) with function theirs.spell(theirs.{type}) as implicit")
            for data in ("array[row(1)::theirs.thing]", "array['x'::theirs.kind]"):
                with raises(INVALID, "bad data of type theirs"):
                    theirs.run(f"select pgbus.broadcast_many('s', {data})")
            with pytest.raises(psycopg2.errors.RaiseException, match=f"it ran as {role}"):
                theirs.run("select pgbus.broadcast('s', row(1)::theirs.thing)")
    finally:
        sql.run(f"drop owned by {role} cascade; drop role {role}")


# drivers


@pytest.mark.parametrize("function", STORING)
def test_psycopg2_sends_texts_and_json_without_a_type(function: str, sql: Session, stream: str) -> None:
    for data in ("x", Json2({"b": 1, "a": [2]})):
        sql.call(function, stream, data)
        sql.call(function, stream=stream, data=data)
    assert sql.data(stream) == ["x", "x", *['{"b": 1, "a": [2]}'] * 2]
    with raises(INVALID, "data is null"):
        sql.call(function, stream, None)


def test_psycopg2_sends_lists(sql: Session, stream: str) -> None:
    sql.call("broadcast_many", stream, ["a", "b"])
    assert sql.call("broadcast_many", stream, []) is None
    sql.run("select pgbus.broadcast_many(%s, %s::jsonb[])", stream, [Json2({"b": 1})])
    assert sql.data(stream) == ["a", "b", '{"b": 1}']


@pytest.mark.parametrize("prepare", [False, True], ids=["once", "prepared"])
@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize("function", STORING)
def test_psycopg_3_sends_texts_and_json_with_their_types(
    function: str, binary: bool, prepare: bool, three: psycopg.Connection[Any], sql: Session, stream: str
) -> None:
    spot = "%b" if binary else "%s"
    for data in ("x", Json({"b": 1, "a": [2]}), Jsonb({"b": 1, "a": [2]})):
        for statement in (f"{function}({spot}, {spot})", f"{function}(stream => {spot}, data => {spot}, event => 'e')"):
            three.execute(f"select pgbus.{statement}".encode(), (stream, data), prepare=prepare)
    assert sql.data(stream) == ["x", "x", *['{"b": 1, "a": [2]}'] * 2, *['{"a": [2], "b": 1}'] * 2]
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="data is null"):
        three.execute(f"select pgbus.{function}({spot}, {spot})".encode(), (stream, None), prepare=prepare)


@pytest.mark.parametrize("prepare", [False, True], ids=["once", "prepared"])
@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_psycopg_3_sends_lists(
    binary: bool, prepare: bool, three: psycopg.Connection[Any], sql: Session, stream: str
) -> None:
    statement = f"select pgbus.broadcast_many({'%b, %b' if binary else '%s, %s'})".encode()
    for data in (["a", "b"], [], [Json({"b": 1})], [Jsonb({"b": 1})]):
        three.execute(statement, (stream, data), prepare=prepare)
    assert sql.data(stream) == ["a", "b", '{"b": 1}', '{"b": 1}']
