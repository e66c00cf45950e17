"""What an operator reads and publishes at the console over HTTP."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from edge_parts import TOKEN as WORKER_TOKEN
from edge_parts import edge_of
from raw_http import Answer, ask
from site_parts import MAX_BODY, Site, running_site

from pgbus_gevent.errors import DatabaseError, DatabaseUnavailable
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web import sessions
from pgbus_gevent.web.operator_messages import LATEST, SHOWN, why_not

TOKEN = "operator-token-of-the-site"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_site(pgbus_databases.make(), operator_token=TOKEN) as site:
        yield site


@pytest.fixture
def cookie(site: Site, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The header of a browser that has logged in."""
    monkeypatch.setattr(sessions, "_TIMEOUT", 30.0)
    answer = ask(site.port, "/pgbus/console/login", "POST", f"token={TOKEN}", Content_Type=FORM)
    return {"Cookie": answer.headers["set-cookie"].split(";")[0]}


def publish(site: Site, fields: Any, **headers: str) -> Answer:
    headers = {"Content_Type": "application/json", **headers}
    body = fields if isinstance(fields, (str, bytes)) else json.dumps(fields)
    return ask(site.port, "/pgbus/console/publish", "POST", body, **headers)


def latest(site: Site, stream: str, **headers: str) -> Any:
    answer = site.get(f"/console/messages?stream={stream}", **{**BEARER, **headers})
    assert answer.status == 200, answer
    return json.loads(answer.body)["messages"]


# reading --------------------------------------------------------------------------------------------------------------


def test_the_newest_messages_are_shown_newest_first_and_cut(site: Site) -> None:
    stream = site.bus.stream("orders:read")
    ids = [stream.broadcast(f"n{n}") for n in range(LATEST)]
    long = stream.broadcast("é" * (SHOWN + 1), event="order.paid", visible_to="admins")
    first, *others = latest(site, "orders:read")
    assert [message["id"] for message in others] == list(reversed(ids[1:]))
    assert (first["id"], first["event"], first["visible_to"]) == (long, "order.paid", "admins")
    assert (first["size"], first["data"], first["cut"]) == (2 * (SHOWN + 1), "é" * SHOWN, True)
    assert (others[0]["data"], others[0]["cut"], others[0]["event"]) == (f"n{LATEST - 1}", False, None)
    assert latest(site, "orders:nothing") == []


def test_messages_below_the_horizon_are_not_shown(site: Site, pgbus_databases: TestDatabases) -> None:
    stream = site.bus.stream("orders:pruned")
    gone, kept = stream.broadcast("gone"), stream.broadcast("kept")
    with site.bus.transaction() as cursor:
        cursor.execute("insert into pgbus.horizons (stream, msg_id) values ('orders:pruned', %s)", (gone,))
    assert [message["id"] for message in latest(site, "orders:pruned")] == [kept]


@pytest.mark.parametrize("query", ["", "stream=", "stream=a&stream=b", "stream=%00", "stream=" + "x" * 256])
def test_a_stream_has_to_be_named(site: Site, query: str) -> None:
    assert site.get(f"/console/messages?{query}", **BEARER).status == 400


def test_only_operators_read_messages(site: Site) -> None:
    site.bus.stream("demo:secret").broadcast("a secret")
    for headers in ({}, {"Cookie": "pgbus_console=x"}, {"Authorization": "Bearer publish-token-of-the-site"}):
        answer = site.get("/console/messages?stream=demo:secret", **headers)
        assert answer.status == 401 and b"secret" not in answer.body
    answer = site.get("/console/messages?stream=demo:secret", Origin="https://shop.example", **BEARER)
    assert answer.headers["cache-control"] == "no-store"
    assert [name for name in answer.headers if name.startswith("access-control")] == []


def test_a_database_that_is_away_is_said(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> Any:
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(site.instance.database.fleet, "latest", away)
    answer = site.get("/console/messages?stream=x", **BEARER)
    assert (answer.status, answer.line) == (503, "the database does not answer now")


# publishing -----------------------------------------------------------------------------------------------------------


def test_an_operator_publishes_to_a_private_stream(
    site: Site, cookie: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pgbus_gevent.console")
    fields = {"stream": "orders:private", "data": "<p>paid</p>", "event": "order.paid", "visible_to": "admins"}
    answer = publish(site, fields, Sec_Fetch_Site="same-origin", **cookie)
    id = json.loads(answer.body)["id"]
    assert (answer.status, json.loads(answer.body)) == (201, {"stream": "orders:private", "id": id})
    (message,) = site.bus.stream("orders:private").read_after(0)
    assert (message.id, message.data, message.event, message.visible_to) == (id, "<p>paid</p>", "order.paid", "admins")
    (said,) = [record.getMessage() for record in caplog.records if "published" in record.getMessage()]
    assert str(id) in said and "orders:private" in said and "paid" not in said


def test_an_ephemeral_message_has_no_id_and_is_not_stored(site: Site) -> None:
    with site.watch("demo:now") as client:
        client.next("pgbus:connected")
        answer = publish(site, {"stream": "demo:now", "data": "hint", "ephemeral": True, "event": None}, **BEARER)
        assert (answer.status, json.loads(answer.body)["id"]) == (201, None)
        assert client.next("message").data == "hint"
    assert latest(site, "demo:now") == []


WRONG: list[tuple[Any, int, str]] = [
    ("stream=a&data=b", 400, "JSON"),
    ("[]", 400, "object"),
    ("[" * 50_000, 400, "JSON"),
    ({}, 400, "stream is text"),
    ({"stream": "a"}, 400, "data is text"),
    ({"stream": "", "data": "x"}, 400, "stream"),
    ({"stream": "a", "data": 1}, 400, "data is text"),
    ({"stream": "a", "data": "x\0"}, 400, "NUL"),
    ({"stream": "a", "data": "x", "event": "pgbus:shutdown"}, 400, "reserved"),
    ({"stream": "a", "data": "x", "event": "a\nid: 1"}, 400, "line break"),
    ({"stream": "a", "data": "x", "visible_to": ""}, 400, "visible_to"),
    ({"stream": "a", "data": "x", "visibleto": "admins"}, 400, "visibleto"),
    ({"stream": "a", "data": "x", "ephemeral": "no"}, 400, "ephemeral"),
    ({"stream": "a", "data": "x" * (MAX_BODY + 1)}, 413, "allowed"),
    ({"stream": "a", "data": "x" * 200_000}, 413, "more than"),
]


@pytest.mark.parametrize(("fields", "status", "says"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_message_is_refused_with_what_is_wrong(site: Site, fields: Any, status: int, says: str) -> None:
    answer = publish(site, fields, **BEARER)
    assert (answer.status, says in answer.line) == (status, True), answer
    assert latest(site, "a") == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},  # another port of this host: its page has the cookie
        {"Origin": "https://shop.example"},
        {"Origin": "null"},
    ],
    ids=str,
)
def test_a_page_of_another_site_publishes_nothing(site: Site, cookie: dict[str, str], headers: dict[str, str]) -> None:
    assert publish(site, {"stream": "demo:forged", "data": "x"}, **cookie, **headers).status == 403
    assert latest(site, "demo:forged") == []


@pytest.mark.parametrize("kind", [FORM, "text/plain", "multipart/form-data", "", "application/json-no"])
def test_what_a_form_can_send_publishes_nothing(site: Site, cookie: dict[str, str], kind: str) -> None:
    """Even if a browser said nothing of where the request comes from."""
    assert publish(site, {"stream": "demo:forged", "data": "x"}, **cookie, Content_Type=kind).status == 415
    preflight = {"Origin": "https://shop.example", "Access_Control_Request_Method": "POST"}
    answer = ask(site.port, "/pgbus/console/publish", "OPTIONS", **preflight)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert latest(site, "demo:forged") == []


def test_nobody_but_an_operator_publishes_there(site: Site, pgbus_database: str) -> None:
    fields = {"stream": "demo:forged", "data": "x"}
    for headers in ({}, {"Cookie": "pgbus_console=x"}, {"Authorization": "Bearer publish-token-of-the-site"}):
        assert publish(site, fields, **headers).status == 401
    with running_site(pgbus_database) as tokenless:
        for headers in ({}, BEARER, {"Cookie": "pgbus_console=x"}):
            assert publish(tokenless, fields, **headers).status == 403
        assert tokenless.bus.stream("demo:forged").last_id() == 0
    assert latest(site, "demo:forged") == []


def test_an_edge_says_why_it_can_do_neither(pgbus_database: str) -> None:
    with (
        running_site(pgbus_database, worker_token=WORKER_TOKEN) as origin,
        edge_of(origin.instance.settings, origin.url, operator_token=TOKEN) as edge,
    ):
        port = int(edge.url.rpartition(":")[2])
        headers = {"Content_Type": "application/json", **BEARER}
        body = json.dumps({"stream": "demo:x", "data": "x"})
        published = ask(port, "/pgbus/console/publish", "POST", body, **headers)
        assert (published.status, "publish at its origin" in published.line) == (403, True)
        read = ask(port, "/pgbus/console/messages?stream=demo:x", **headers)
        assert (read.status, "origin's console" in read.line) == (503, True)
        assert why_not(edge.instance.settings) and why_not(origin.instance.settings) is None
        assert origin.bus.stream("demo:x").last_id() == 0


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (DatabaseUnavailable("away"), 503, "not available"),
        (
            DatabaseError("permission denied for function broadcast\nCONTEXT: x"),
            500,
            "permission denied for function broadcast",
        ),
    ],
    ids=["away", "refused"],
)
def test_a_failure_of_the_database_is_said(
    site: Site, error: Exception, status: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(site.instance.database.queries, "broadcast", fails)
    answer = publish(site, {"stream": "a", "data": "x"}, **BEARER)
    assert (answer.status, says in answer.line, "CONTEXT" in answer.line) == (status, True, False)
