"""The identity of a client: the connection, the identity URL and the element on the page all give the same."""

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
    """A context that has no equal in any other process."""


class Logins:
    """An application's users, by the cookie ``login``. ``contexts`` holds the context of each."""

    def __init__(self) -> None:
        # Those whose cap matters have one test each: other workers may count the connections of earlier tests for a while.
        self.contexts: dict[str, Any] = {
            "ada": {"admin": True},
            "bob": {"admin": False},
            "opaque": Opaque(),
            "capped": {"admin": False},
            "changed": {"admin": True},
        }

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


def test_all_workers_give_a_login_the_same_identity_and_other_logins_another(site: Site, sites: list[Site]) -> None:
    found = [connected(each, login)["identity"] for login in ("", "ada", "bob") for each in (*sites, site)]
    assert [found.count(each) for each in found] == [3] * 9
    assert None not in found


def test_an_identity_without_a_comparable_context_names_the_owner(site: Site) -> None:
    identity = connected(site, "opaque")["identity"]
    assert identity.endswith(".") and identity.split(".")[1]


def test_a_login_with_another_role_has_another_identity_of_the_same_owner(site: Site, logins: Logins) -> None:
    before = connected(site, "ada")["identity"]
    logins.contexts["ada"] = {"admin": False}
    now = connected(site, "ada")["identity"]
    assert now != before
    assert now.split(".")[:2] == before.split(".")[:2]


def test_streams_with_different_owners_have_different_identities(site: Site) -> None:
    ada, anybody = connected(site, "ada")["identity"], connected(site)["identity"]
    path = "/pgbus/streams?stream=demo:a&stream=public"
    with StreamClient(site.url, path, headers={"Cookie": "login=ada"}) as client:
        told = json.loads(client.next("pgbus:connected").data)
    assert [each["identity"] for each in told["streams"]] == [ada, anybody]
    assert told["identity"] not in (ada, anybody, None)


def test_the_identity_url_answers_as_the_connection_would(site: Site) -> None:
    for login in ("", "ada"):
        headers = {"Cookie": f"login={login}"} if login else {}
        for path in ("/pgbus/streams/demo:a?identity", "/pgbus/streams?stream=demo:a&since=0&identity"):
            answer = ask(site.port, path, "HEAD", **headers)
            assert (answer.status, answer.headers["pgbus-identity"]) == (200, connected(site, login)["identity"])
    assert "pgbus-identity" not in ask(site.port, "/pgbus/streams/demo:a", "HEAD").headers


def test_the_identity_url_answers_even_if_the_cap_is_reached(site: Site) -> None:
    with site.watch("demo:a", Cookie="login=capped") as client, site.watch("demo:b", Cookie="login=capped") as other:
        identity = json.loads(client.next("pgbus:connected").data)["identity"]
        other.next("pgbus:connected")
        answer = ask(site.port, "/pgbus/streams/demo:a?identity", "HEAD", Cookie="login=capped")
        assert (answer.status, answer.headers["pgbus-identity"]) == (429, identity)


def test_pages_of_configured_origins_may_read_the_identity(site: Site) -> None:
    answer = ask(site.port, "/pgbus/streams/demo:a?identity", "HEAD", Origin=ORIGIN)
    assert answer.headers["access-control-expose-headers"] == "pgbus-identity"


def test_a_recheck_that_finds_another_role_sends_the_new_identity(site: Site, logins: Logins) -> None:
    with site.watch("demo:a", Cookie="login=changed") as client:
        before = json.loads(client.next("pgbus:connected").data)
        logins.contexts["changed"] = {"admin": False}
        now = json.loads(client.next("pgbus:identity").data)
        assert now == {"identity": connected(site, "changed")["identity"], "streams": [{"name": "demo:a"}]}
        assert now["identity"] != before["identity"]


@pytest.mark.parametrize("login", ["", "ada"])
def test_the_tags_of_bottles_pages_have_the_identity_of_the_user(site: Site, logins: Logins, login: str) -> None:
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


def test_a_tag_made_outside_of_a_request_has_no_identity(site: Site, logins: Logins) -> None:
    PgbusPlugin(site.bus, authorize=logins.authorize, instance=site.instance)
    # In a separate greenlet, because in that of the tests Bottle still has the request of another test.
    assert "identity" not in gevent.spawn(site.bus.stream_tag, "demo:a").get(timeout=10)
