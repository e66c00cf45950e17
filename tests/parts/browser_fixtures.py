"""Fixtures of the browser tests: a browser, a site behind a front, and tabs with pages of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from browser_parts import Browser, Front, Page, Profile, element, profile
from site_parts import Site, running_site

from pgbus_gevent.testing.databases import TestDatabases

PATIENT: dict[str, Any] = {"retry": 0.2, "heartbeat": 10.0}
"""Settings of a site for browsers. If any process stands still for some seconds, no connection is taken for dead: the element gives
one up after three heartbeats without a byte."""

numbers = count()


@pytest.fixture(scope="module")
def browser_site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_site(pgbus_databases.make(), **PATIENT) as site:
        yield site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def front(browser_site: Site) -> Iterator[Front]:
    original = browser_site.app
    browser_site.app = front = Front(browser_site)
    yield front
    browser_site.app = original


@pytest.fixture
def tabs(browser: Browser, front: Front) -> Iterator[Profile]:
    with profile(browser, front) as tabs:
        yield tabs
    front.until_live(0)


@pytest.fixture
def stream() -> str:
    return f"demo:{next(numbers)}"


@pytest.fixture
def page(tabs: Profile, front: Front, stream: str) -> Page:
    """A page with one element that is open and gets new messages."""
    page = tabs.open(front.page(element(stream)))
    page.until_open()
    return page
