"""Publishing from Python, in SQL and over HTTP: all accept the same arguments, and refuse the same ones by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import psycopg2
import pytest
from site_parts import Site, running_site
from support import run, session

from pgbus_gevent.errors import DatabaseError, InvalidArgument
from pgbus_gevent.testing.databases import TestDatabases

STREAM = "demo:arguments"


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_site(pgbus_databases.make(), public=("*",), max_body=100_000) as site:
        yield site


def in_python(site: Site, stream: str, **given: Any) -> None:
    try:
        site.bus.stream(stream).broadcast(**{"data": "d", **given})
    except InvalidArgument as error:
        raise Refusal(str(error)) from None


def using(site: Site, stream: str, **given: Any) -> None:
    with site.bus.transaction() as cursor:
        try:
            site.bus.stream(stream).broadcast(**{"data": "d", **given}, using=cursor)
        except InvalidArgument as error:
            # It is refused before the database is asked, so the transaction goes on.
            cursor.execute("select 1")
            raise Refusal(str(error)) from None


def sql(function: str) -> Callable[..., None]:
    def call(site: Site, stream: str, **given: Any) -> None:
        arguments = {"stream": stream, "data": "d", **given}
        named = ", ".join(f"{name} => %s::text" for name in arguments)
        with session(site.instance.settings.database_url or "") as connection:
            try:
                run(connection, f"select pgbus.{function}({named})", *arguments.values())
            except (psycopg2.Error, DatabaseError, ValueError) as error:
                raise Refusal(str(error)) from None

    return call


def over_http(site: Site, stream: str, **given: Any) -> None:
    data = given.pop("data", "d")
    answer = site.publish(stream, data.encode(), urlencode(given))
    if answer.status == 400:
        raise Refusal(answer.line)
    assert answer.status == 201


class Refusal(Exception):
    pass


WAYS = {
    "python": in_python,
    "using": using,
    "broadcast": sql("broadcast"),
    "broadcast_on_commit": sql("broadcast_on_commit"),
    "broadcast_ephemeral": sql("broadcast_ephemeral"),
    "http": over_http,
}
LABELS = ("visible_to", "exclude", "key")
REFUSED = [
    *((name, "") for name in LABELS),
    *((name, "a\0b") for name in (*LABELS, "event", "data")),
    ("key", "x" * 1001), ("key", "é" * 501),
    ("event", "a\nb"), ("event", "a\rb"), ("event", "pgbus:x"), ("event", "pgbus:"),
    ("stream", "a\nb"), ("stream", "demo:\x7f"), ("stream", "demo:\x85"), ("stream", "demo:" + "x" * 251),
    ("stream", "demo:" + "é" * 126),
]  # fmt: skip
TAKEN = [
    *((name, value) for name in LABELS for value in (" ", "x", "a\nb", "pgbus:x", "x" * 1000, "é" * 500, "\x1b")),
    *(("event", value) for value in ("", " ", "x" * 1000, "Pgbus:x", "a pgbus:", "\x1b", "\u2028")),
    *(("data", value) for value in ("", " ", "\r\n", "\x1b")),
    *(("stream", value) for value in (" ", "demo:" + "x" * 250, "demo:" + "é" * 125, "pgbus:x", "demo:\u2028")),
]  # fmt: skip


def ways(given: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Return each argument with each way to publish. An ephemeral message has no key."""
    return [(way, *each) for way in WAYS for each in given if (way, each[0]) != ("broadcast_ephemeral", "key")]


def give(way: str, site: Site, name: str, value: str) -> None:
    given = {name: value}
    stream = given.pop("stream", STREAM)
    WAYS[way](site, stream, **given)


@pytest.mark.parametrize(("way", "name", "value"), ways(REFUSED), ids=lambda part: ascii(part)[:20])
def test_all_ways_refuse_the_same_arguments_by_name(way: str, name: str, value: str, site: Site) -> None:
    with pytest.raises(Refusal, match="NUL" if "\0" in value else name):
        give(way, site, name, value)


@pytest.mark.parametrize(("way", "name", "value"), ways(TAKEN), ids=lambda part: ascii(part)[:20])
def test_all_ways_accept_the_same_arguments(way: str, name: str, value: str, site: Site) -> None:
    give(way, site, name, value)


@pytest.mark.parametrize("function", ["broadcast", "broadcast_on_commit", "broadcast_many", "broadcast_ephemeral"])
@pytest.mark.parametrize("name", ["visible_to", "exclude"])
def test_sql_refuses_an_empty_label_by_name(pgbus_database: str, function: str, name: str) -> None:
    data = "array['a', 'b']" if function == "broadcast_many" else "'a'"
    with (
        session(pgbus_database) as connection,
        pytest.raises(Exception, match=f"bad {name}: it is empty; give a text, or null"),
    ):
        run(connection, f"select pgbus.{function}('s', {data}, {name} => '')")


@pytest.mark.parametrize(
    "slip", ["visible-to=admins", "visibleTo=admins", "Visible_to=admins", "data=x", "=x", "target=x"]
)
def test_a_misspelt_field_does_not_make_a_message_public(slip: str, site: Site) -> None:
    answer = site.publish(STREAM, query=slip)
    assert answer.status == 400 and "visible_to" in answer.line


@pytest.mark.parametrize("ephemeral", ["no", "0", None, 2, []])
def test_ephemeral_must_be_true_or_false(ephemeral: Any, site: Site) -> None:
    with pytest.raises(InvalidArgument, match="ephemeral="):
        site.bus.stream(STREAM).broadcast("x", ephemeral=ephemeral)


@pytest.mark.parametrize("value", [7, b"x", True, [], ("a",)], ids=str)
@pytest.mark.parametrize("name", ["event", "visible_to", "exclude", "key", "data", "target"])
def test_python_refuses_values_that_are_not_text(name: str, value: Any, site: Site) -> None:
    given = {"data": "x", name: value, **({"coalesce": 0.1} if name == "target" else {})}
    with pytest.raises(InvalidArgument, match=name):
        site.bus.stream(STREAM).broadcast(**given)


def test_broadcast_many_checks_keys_and_labels_too(site: Site) -> None:
    stream = site.bus.stream(STREAM)
    bad: dict[str, Any]
    for bad in ({"keys": ["a", ""]}, {"keys": ["a", "x" * 1001]}, {"visible_to": ""}, {"exclude": ""}):
        with pytest.raises(InvalidArgument, match=next(iter(bad))[:3]):
            stream.broadcast_many(["a", "b"], **bad)
    with pytest.raises(InvalidArgument, match="target"):
        stream.broadcast("x", coalesce=0.1, target="")
