"""Fixtures of the browser tests: a browser, a site behind a front, and tabs with pages of it.

Tests marked ``every_engine`` run in each engine, the others in Chromium.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from browser_parts import Browser, Front, Page, Profile, element, missing, profile
from engine_ledger_parts import marks
from engine_parts import ENGINES
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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test marked ``every_engine`` in each."""
    if metafunc.definition.get_closest_marker("every_engine") is not None and "browser" in metafunc.fixturenames:
        engines = [pytest.param(engine, marks=marks(engine, metafunc.definition)) for engine in ENGINES]
        metafunc.parametrize("browser", engines, indirect=True, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In Firefox and WebKit, which take longer, run only the first and the last set of a test's parameters."""
    groups: dict[Any, list[pytest.Item]] = {}
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("every_engine") and hasattr(item, "callspec"):
            engine = item.callspec.params.get("browser", "chromium")
            if engine != "chromium":
                groups.setdefault((item.path, item.originalname, engine), []).append(item)
    left_out = {item for group in groups.values() for item in group[1:-1]}
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))


@pytest.fixture(scope="session")
def browsers() -> Iterator[Callable[[str], Browser]]:
    """A function that returns the browser of an engine. It stays for all tests of this process, as starting one takes seconds."""
    running: dict[str, Browser] = {}

    def browser(engine: str) -> Browser:
        if why := missing(engine):
            pytest.skip(why)
        if engine not in running:
            running[engine] = Browser(engine)
        return running[engine]

    yield browser
    for each in running.values():
        each.close()


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest, browsers: Callable[[str], Browser]) -> Browser:
    return browsers(getattr(request, "param", "chromium"))


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
