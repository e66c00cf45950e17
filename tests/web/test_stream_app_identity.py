"""As whom a stream is followed: the connection, a question and the element on the page all tell the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from http.cookies import SimpleCookie
from time import time
from typing import Any

import bottle
import gevent
import pytest
from raw_http import ask
from site_parts import Site, running_site

from pgbus_gevent import StreamApp, Subscriber
from pgbus_gevent.bottle_plugin import PgbusPlugin
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases

ORIGIN = "https://shop.example"
RECHECK = 0.2


class Opaque:
    """A context that no other process could have an equal of."""


class Logins:
    """An application's users, by the cookie ``login``; what each may see is ``contexts``."""

    def __init__(self) -> None:
        self.contexts: dict[str, Any] = {"ada": {"admin": True}, "bob": {"admin": False}, "opaque": Opaque()}

    def authorize(self, environ: Any, stream: str) -> bool | Subscriber:
        login = SimpleCookie(environ.get("HTTP_COOKIE", "")).get("login")
        if login is None or stream == "public":
            return True
        return Subscriber(login.value, self.contexts[login.value], expires_at=time() + 3600)


@pytest.fixture
def logins() -> Logins:
    return Logins()


@pytest.fixture(scope="module")
def sites(pgbus_databases: TestDatabases) -> Iterator[list[Site]]:
    """Two workers of one site."""
    url = pgbus_databases.make()
    settings: dict[str, Any] = {"recheck": RECHECK, "cors_origins": (ORIGIN,), "max_per_owner": 2}
    with running_site(url, **settings) as one, running_site(url, **settings) as other:
        yield [one, other]


@pytest.fixture
def site(sites: list[Site], logins: Logins) -> Site:
    for each in sites:
        each.app = StreamApp(each.instance, logins.authorize)
    return sites[0]


def connected(site: Site, login: str = "", streams: str = "demo:a") -> Any:
    headers = {"Cookie": f"login={login}"} if login else {}
    with site.watch(streams, **headers) as client:
        return json.loads(client.next("pgbus:connected").data)


def test_every_worker_tells_the_same_of_the_same_login_and_another_of_another(site: Site, sites: list[Site]) -> None:
    found = [connected(each, login)["identity"] for login in ("", "ada", "bob") for each in (*sites, site)]
    assert [found.count(each) for each in found] == [3] * 9
    assert None not in found


def test_of_what_cannot_be_compared_it_tells_whose_it_is(site: Site) -> None:
    identity = connected(site, "opaque")["identity"]
    assert identity.endswith(".") and identity.split(".")[1]


def test_another_role_of_the_same_login_is_another_identity_of_the_same_owner(site: Site, logins: Logins) -> None:
    before = connected(site, "ada")["identity"]
    logins.contexts["ada"] = {"admin": False}
    now = connected(site, "ada")["identity"]
    assert now != before
    assert now.split(".")[:2] == before.split(".")[:2]


def test_streams_that_are_followed_as_different_people_tell_so_each(site: Site) -> None:
    ada, anybody = connected(site, "ada")["identity"], connected(site)["identity"]
    path = "/pgbus/streams?stream=demo:a&stream=public"
    with StreamClient(site.url, path, headers={"Cookie": "login=ada"}) as client:
        told = json.loads(client.next("pgbus:connected").data)
    assert [each["identity"] for each in told["streams"]] == [ada, anybody]
    assert told["identity"] not in (ada, anybody, None)


def test_a_question_is_answered_as_the_connection_would_be(site: Site) -> None:
    for login in ("", "ada"):
        headers = {"Cookie": f"login={login}"} if login else {}
        for path in ("/pgbus/streams/demo:a?identity", "/pgbus/streams?stream=demo:a&since=0&identity"):
            answer = ask(site.port, path, "HEAD", **headers)
            assert (answer.status, answer.headers["pgbus-identity"]) == (200, connected(site, login)["identity"])
    assert "pgbus-identity" not in ask(site.port, "/pgbus/streams/demo:a", "HEAD").headers


def test_who_has_all_connections_that_they_may_have_is_answered_too(site: Site) -> None:
    with site.watch("demo:a", Cookie="login=ada") as client, site.watch("demo:b", Cookie="login=ada") as other:
        identity = json.loads(client.next("pgbus:connected").data)["identity"]
        other.next("pgbus:connected")
        answer = ask(site.port, "/pgbus/streams/demo:a?identity", "HEAD", Cookie="login=ada")
        assert (answer.status, answer.headers["pgbus-identity"]) == (429, identity)


def test_pages_of_configured_origins_may_read_the_answer(site: Site) -> None:
    answer = ask(site.port, "/pgbus/streams/demo:a?identity", "HEAD", Origin=ORIGIN)
    assert answer.headers["access-control-expose-headers"] == "pgbus-identity"


def test_a_recheck_that_finds_another_role_tells_who_it_is_now(site: Site, logins: Logins) -> None:
    with site.watch("demo:a", Cookie="login=ada") as client:
        before = json.loads(client.next("pgbus:connected").data)
        logins.contexts["ada"] = {"admin": False}
        now = json.loads(client.next("pgbus:identity").data)
        assert now == {"identity": connected(site, "ada")["identity"], "streams": [{"name": "demo:a"}]}
        assert now["identity"] != before["identity"]


@pytest.mark.parametrize("login", ["", "ada"])
def test_bottles_pages_tell_as_whom_their_elements_follow(site: Site, logins: Logins, login: str) -> None:
    app = bottle.Bottle()
    app.install(PgbusPlugin(site.bus, authorize=logins.authorize, instance=site.instance))

    @app.get("/page")  # type: ignore[untyped-decorator]
    def page(pgbus: Any) -> str:
        return str(pgbus.stream_tag("demo:a") + pgbus.stream_tag("demo:a", "demo:b"))

    site.app = app
    headers = {"Cookie": f"login={login}"} if login else {}
    body = ask(site.port, "/page", **headers).body.decode()
    told = connected(site, login)["identity"]
    assert re.findall('identity="([^"]*)"', body) == [told, told]


def test_a_page_that_is_made_outside_of_any_request_tells_nothing(site: Site, logins: Logins) -> None:
    PgbusPlugin(site.bus, authorize=logins.authorize, instance=site.instance)
    # In a greenlet of its own: in that of the tests, Bottle still has the request of another test.
    assert "identity" not in gevent.spawn(site.bus.stream_tag, "demo:a").get(timeout=10)
