"""Publishing to demo:hello: the form's route, and the demo's token over HTTP."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from demo_parts import running_demo
from program_parts import program
from raw_http import Answer, ask, read_head
from site_parts import PUBLISH_TOKEN, SECRETS, Site

from pgbus_gevent.demo import rates
from pgbus_gevent.demo.hello import MAX_TEXT, STREAM, token_of
from pgbus_gevent.demo.rates import Rates
from pgbus_gevent.testing.databases import TestDatabases

JSON = "application/json"
TOKEN = token_of(SECRETS[-1])
ADDRESS = f"/pgbus/streams/{STREAM}"


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_demo(pgbus_databases.make()) as site:
        yield site


@pytest.fixture(scope="module")
def closed(pgbus_databases: TestDatabases) -> Iterator[Site]:
    """A demo whose server has no publish token."""
    with running_demo(pgbus_databases.make(), publish_token=()) as site:
        yield site


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests publish more than visitors may."""
    monkeypatch.setattr(Rates, "admit", lambda self, address: True)


def with_token(site: Site, body: Any, path: str = ADDRESS, token: str = TOKEN) -> Answer:
    return ask(site.port, path, "POST", body, Authorization=f"Bearer {token}")


def newest(site: Site) -> list[str]:
    return [message.data for message in site.bus.stream(STREAM)]


def test_the_form_publishes_a_text(site: Site) -> None:
    answer = ask(site.port, "/demo/hello", "POST", json.dumps({"text": " <b>é</b> "}), Content_Type=JSON)
    assert answer.status == 201
    (message,) = site.bus.stream(STREAM).read_after(json.loads(answer.body)["id"] - 1)
    assert message.data == "<b>é</b>"


def test_the_token_publishes_where_the_server_takes_messages(site: Site) -> None:
    answer = with_token(site, "from a program")
    assert answer.status == 201 and json.loads(answer.body).keys() == {"id"}
    assert newest(site)[-1] == "from a program"
    assert with_token(site, "of the older secret", token=token_of(SECRETS[0])).status == 201


@pytest.mark.parametrize("path", ["/pgbus/streams/demo:lab", "/pgbus/streams/demo:departures", "/pgbus/streams/public"])
def test_the_token_is_valid_for_no_other_stream(site: Site, path: str) -> None:
    before = site.bus.stream(path.rpartition("/")[2]).last_id()
    assert with_token(site, "evil", path).status == 401
    assert site.bus.stream(path.rpartition("/")[2]).last_id() in (before, site.bus.stream("demo:departures").last_id())


def test_other_tokens_are_checked_as_ever(site: Site) -> None:
    assert site.publish(STREAM, b"of the operator", "event=note").status == 201
    assert [message.event for message in site.bus.stream(STREAM)][-1] == "note"
    for token in ("demo-", TOKEN[:-1], f"{TOKEN}x"):
        assert with_token(site, "evil", token=token).status == 401
    assert with_token(site, "evil", "/demo/publish", PUBLISH_TOKEN).status == 401
    assert ask(site.port, "/demo/publish", "POST", "evil").status == 401


@pytest.mark.parametrize(
    ("path", "token"),
    [(ADDRESS, "demo-wrong"), (ADDRESS, ""), ("/pgbus/streams/demo:lab", TOKEN), ("/pgbus/streams/orders", "")],
)
def test_without_another_token_a_refusal_says_where_the_demos_is_shown(path: str, token: str, closed: Site) -> None:
    answer = with_token(closed, "x", path, token)
    assert answer.status == 403
    assert f"for {STREAM} alone, and needs the demo's token: the page at / shows it" in answer.line
    assert "PGBUS_PUBLISH_TOKEN" in answer.line
    assert f"Bearer {TOKEN}" in ask(closed.port, "/").body.decode()


def test_without_another_token_the_demos_is_valid(closed: Site) -> None:
    assert with_token(closed, "from a program").status == 201


@pytest.mark.parametrize(
    ("body", "query", "status"),
    [
        ("x" * (MAX_TEXT + 1), "", 400),
        ("", "", 400),
        ("  \n", "", 400),
        (b"\xff", "", 400),
        ("a\0b", "", 400),
        ("x" * 5000, "", 413),
        ("x", "?event=order.paid", 400),
        ("x", "?ephemeral=1", 400),
        ("x", "?visible_to=admins", 400),
    ],
    ids=str,
)
def test_what_is_no_short_text_is_refused(site: Site, body: Any, query: str, status: int) -> None:
    before = newest(site)
    assert with_token(site, body, ADDRESS + query).status == status
    assert newest(site) == before


@pytest.mark.parametrize("form", [{}, {"text": 7}, {"text": " "}, {"text": "x" * (MAX_TEXT + 1)}, []], ids=str)
def test_the_form_refuses_the_same(site: Site, form: Any) -> None:
    assert ask(site.port, "/demo/hello", "POST", json.dumps(form), Content_Type=JSON).status == 400
    foreign = {"Content_Type": JSON, "Sec_Fetch_Site": "cross-site"}
    assert ask(site.port, "/demo/hello", "POST", json.dumps({"text": "evil"}), **foreign).status == 403


@pytest.mark.parametrize("path", ["/demo/hello", "/lab/publish", ADDRESS])
def test_a_body_that_ends_early_is_refused(site: Site, path: str, caplog: pytest.LogCaptureFixture) -> None:
    before = newest(site)
    with socket.create_connection(("127.0.0.1", site.port), 10) as sock:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
        sock.sendall(f"{head}Content-Type: {JSON}\r\nContent-Length: 400\r\n\r\n{{".encode())
        sock.shutdown(socket.SHUT_WR)
        assert (read_head(sock) or b"").startswith(b"HTTP/1.1 400 ")
    assert newest(site) == before
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_visitor_who_is_too_fast_has_to_wait(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # However long this process stands still, there are never more.
    few = Rates(rates.Pace(2, 0.001), rates.Pace(9, 1.0))
    monkeypatch.undo()
    monkeypatch.setattr(Rates, "admit", lambda self, address, admit=few.admit: admit(address))
    found = [with_token(site, "again") for _ in range(3)]
    assert [answer.status for answer in found] == [201, 201, 429]
    assert found[-1].headers["retry-after"] == "1"
    for path in ("/demo/hello", "/lab/publish"):
        assert ask(site.port, path, "POST", json.dumps({"text": "x"}), Content_Type=JSON).status == 429


def test_all_workers_have_the_same_token(pgbus_databases: TestDatabases, tmp_path: Any) -> None:
    arguments = ("-m", "pgbus_gevent.serve", "--workers", "2", "--secret", SECRETS[-1])
    with program(*arguments, database_url=pgbus_databases.make_empty(), cwd=tmp_path) as serving:
        found = [ask(serving.port, ADDRESS, "POST", f"{n}", Authorization=f"Bearer {TOKEN}").status for n in range(8)]
        assert found == [201] * 8
