"""A site with several logins, for tests in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from http.cookies import SimpleCookie
from itertools import count
from typing import Any

import pytest
from browser_fixtures import PATIENT
from browser_parts import Front, Profile
from site_parts import Site, running_site

from pgbus_gevent import StreamApp, Subscriber
from pgbus_gevent.testing.databases import TestDatabases

RECHECK = 0.3


class Opaque:
    """A context that has no equal in any other process."""


class Logins:
    """An application's users, by a cookie. A tag of the bus has the identity that its page was made for."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.named = True
        self.owners: dict[str, str] = {}
        self.open_to_all: set[str] = set()
        self.contexts: dict[str, Any] = {
            "ada": {"admin": True},
            "bob": {"admin": False},
            "eve": Opaque(),
            "dan": Opaque(),
        }

    def subscriber(self, login: str) -> Subscriber:
        context = self.contexts[login]
        owner = self.owners.get(login, login) if self.named else None
        return Subscriber(owner, context() if callable(context) else context)

    def authorize(self, environ: Any, stream: str) -> bool | Subscriber:
        login = SimpleCookie(environ.get("HTTP_COOKIE", "")).get("login")
        return login is None or stream in self.open_to_all or self.subscriber(login.value)

    def tag(self, login: str, stream: str) -> str:
        tag = self.site.bus.stream_tag(stream, subscriber=self.subscriber(login))
        return tag.replace("<pgbus-stream-source ", '<pgbus-stream-source id="source" ')


@pytest.fixture(scope="module")
def browser_site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_site(pgbus_databases.make(), **PATIENT, recheck=RECHECK) as site:
        site.instance.filters.register("admins", lambda context, stream: bool(context and context["admin"]))
        yield site


@pytest.fixture
def logins(browser_site: Site, front: Front) -> Logins:
    logins = Logins(browser_site)
    front.streams = StreamApp(browser_site.instance, logins.authorize)
    return logins


paths = count()


def log_in(tabs: Profile, login: str) -> None:
    tabs.cookie("login", login)


def whisper(front: Front, stream: str, text: str) -> None:
    front.site.bus.stream(stream).broadcast(text, visible_to="admins")
