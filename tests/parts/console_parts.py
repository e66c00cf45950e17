"""Shared parts of the tests of the console in a browser: a site with a token, and a page of it that is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from browser_fixtures import PATIENT
from browser_parts import Browser, Page, Profile
from site_parts import Site, running_site
from support import until

from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web.backstage import backstage_of
from pgbus_gevent.web.operators import MADE_TOKEN

PATH = "/pgbus/console"
TOKEN = "operator-token-of-the-site"


@contextmanager
def console_site(databases: TestDatabases, **changes: Any) -> Iterator[Site]:
    """Run a site with a token that was made, as by serve if none is configured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MADE_TOKEN, TOKEN)
        with running_site(databases.make(), **PATIENT, **changes) as site:
            yield site


@contextmanager
def opened(
    browser: Browser, site: Site, link: str = f"?token={TOKEN}", init: str = ""
) -> Iterator[tuple[Profile, Page]]:
    """Open the console in a browser. No script may fail there, and none may violate the policy of the page."""
    profile = Profile(browser, site.url)
    try:
        page = profile.open(
            f"{PATH}{link}",
            "window.broken = []; addEventListener('securitypolicyviolation', (e) => broken.push(e.blockedURI));" + init,
        )
        yield profile, page
        assert profile.errors == []
        assert page.eval("broken") == []
    finally:
        profile.close()
        feed: Any = backstage_of(site.instance).feed
        until(lambda: feed._watchers == 0, "the feed has no watcher any more")


@contextmanager
def live(browser: Browser, site: Site, init: str = "") -> Iterator[Page]:
    """Open the console when the clients of other tests have left, and wait until it is live."""
    until(lambda: len(site.instance.registry) == 0, "the clients of other tests have left")
    with opened(browser, site, init=init) as (_, page):
        page.until("document.getElementById('status').dataset.state === 'good'", "it is live")
        yield page


def text(page: Page, selector: str) -> str:
    return str(page.eval("(selector) => document.querySelector(selector)?.textContent ?? ''", selector))


def column(page: Page, table: str, number: int = 1) -> list[str]:
    selector = f"#{table} tbody tr td:nth-child({number})"
    return list(page.eval("(s) => [...document.querySelectorAll(s)].map((cell) => cell.textContent)", selector))


def write(page: Page, table: str, what: str) -> None:
    page.do(f"await page.fill('#{table} input', {what!r})")


def click(page: Page, selector: str) -> None:
    page.do(f"await page.click({selector!r})")


def leave(page: Page, selector: str) -> None:
    """Click on what leads to another page, and wait for that."""
    page.do(f"await Promise.all([page.waitForNavigation(), page.click({selector!r})])")


def confirm_slowly(page: Page) -> None:
    """From now on, a page waits a minute for the second click, instead of four seconds."""
    page.eval(
        "{ const later = setTimeout; window.setTimeout = (act, ms) => later(act, ms === 4000 ? 60_000 : ms); }",
    )


def count(page: Page, table: str) -> str:
    return text(page, f"#{table} .count")
