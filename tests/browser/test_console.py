"""The console in a real browser: numbers, tables that are sorted, filtered and paged, the end of a connection, the login."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from browser_fixtures import PATIENT
from browser_parts import Browser, Page, Profile, missing
from program_parts import program
from site_parts import Site, running_site
from streamer_parts import FakeClient
from support import holds, until

from pgbus_gevent.core.client import Place
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web.backstage import backstage_of
from pgbus_gevent.web.operators import MADE_TOKEN

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

PATH = "/pgbus/console"
TOKEN = "operator-token-of-the-site"

# Each name of a worker that the page shows, with what the list of workers marks as "this one" at that moment.
NOTE_MARKED = """
  window.marked = [];
  addEventListener('DOMContentLoaded', () => new MutationObserver(() => marked.push([
    document.getElementById('worker').textContent, document.querySelector('#fleet .here')?.textContent,
  ])).observe(document.getElementById('worker'), { childList: true }));
"""


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        # As serve does if no token is configured.
        patch.setenv(MADE_TOKEN, TOKEN)
        with running_site(pgbus_databases.make(), **PATIENT) as site:
            yield site


@contextmanager
def opened(browser: Browser, site: Site, link: str = f"?token={TOKEN}") -> Iterator[tuple[Profile, Page]]:
    """Open the console in a browser. No script may fail there, and none may violate the policy of the page."""
    profile = Profile(browser, site.url)
    try:
        page = profile.open(
            f"{PATH}{link}",
            "window.broken = []; addEventListener('securitypolicyviolation', (e) => broken.push(e.blockedURI))",
        )
        yield profile, page
        assert profile.errors == []
        assert page.eval("broken") == []
    finally:
        profile.close()
        feed: Any = backstage_of(site.instance).feed
        until(lambda: feed._watchers == 0, "the feed has no watcher any more")


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    until(lambda: len(site.instance.registry) == 0, "the clients of other tests have left")
    with opened(browser, site) as (_, page):
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


def click_slowly(page: Page) -> None:
    """Choose the other worker, and release the button only after the list has been brought up to date."""
    page.do("await page.hover('#fleet tbody button'); await page.mouse.down()")
    ages = column(page, "fleet", 4)
    until(lambda: column(page, "fleet", 4) != ages, "the list is new")
    page.do("await page.mouse.up()")


def count(page: Page, table: str) -> str:
    return text(page, f"#{table} .count")


@contextmanager
def ten_thousand(site: Site) -> Iterator[None]:
    """Ten thousand streams with a reader each, without ten thousand sockets."""
    instance = site.instance
    clients = []
    for n in range(10_000):
        client = FakeClient(f"{n:024x}", f"crowd:{n}", owner=f"user-{n}")
        instance.registry.add(client, [Place(f"crowd:{n}")])
        instance.counter.connected([f"crowd:{n}"])
        client.subscriptions[0].cursor = 0
        clients.append(client)
        if n % 500 == 0:
            gevent.sleep(0)
    try:
        yield
    finally:
        for n, client in enumerate(clients):
            instance.registry.remove(client)
            instance.counter.disconnected([f"crowd:{n}"])


def test_the_numbers_move(page: Page, site: Site) -> None:
    before = text(page, "#chart-connections .value")
    with StreamClient(site.url, "/pgbus/streams/demo:live") as client:
        client.next("pgbus:connected")
        page.until("document.querySelector('#chart-connections .value').textContent === '1'", "one connection")
        site.bus.stream("demo:live").broadcast("x")
        client.next("message")
        page.until("document.querySelector('#chart-messages .note').textContent.includes(' so far')")
        latency = "/^[1-9]/.test(document.querySelector('#chart-latency .value').textContent)"
        # It is that of the last five seconds.
        until(lambda: site.bus.stream("demo:live").broadcast("x") and page.eval(latency), "the latency is shown")
        page.until("document.querySelector('#chart-passes .line').getAttribute('d').length > 10", "a line is drawn")
        until(lambda: column(page, "streams") == ["demo:live"], "the stream is listed")
        until(lambda: text(page, "#fact-listener").startswith("listening"), "it listens")
    page.until(f"document.querySelector('#chart-connections .value').textContent === '{before}'", "it has left")


def test_ten_thousand_streams_are_sorted_filtered_and_paged(page: Page, site: Site) -> None:
    with ten_thousand(site):
        until(lambda: count(page, "streams") == "10,000", "all are counted")
        click(page, "#streams th[data-column=name] button")
        until(lambda: column(page, "streams")[:2] == ["crowd:0", "crowd:1"], "they are sorted by name")
        assert page.eval("document.querySelector('#streams th[data-column=name]').ariaSort") == "ascending"
        click(page, "#streams th[data-column=name] button")
        until(lambda: column(page, "streams")[:1] == ["crowd:9999"], "the other way round")
        click(page, "#streams .next")
        until(lambda: text(page, "#streams .pager span").startswith("page 2 of"), "the second page")
        write(page, "streams", "CROWD:123")
        until(lambda: count(page, "streams") == "11 of 10,000", "they are filtered")
        assert set(column(page, "streams")) == {"crowd:123", *(f"crowd:123{n}" for n in range(10))}
        write(page, "connections", "user-777")
        until(lambda: count(page, "connections") == "11 of 10,000", "so are connections")
        write(page, "streams", "nothing of that name")
        until(lambda: text(page, "#streams .empty") == "Nothing matches.", "nothing is there")


def test_a_connection_is_ended_at_the_second_click(page: Page, site: Site) -> None:
    with (
        StreamClient(site.url, "/pgbus/streams/demo:kept") as kept,
        StreamClient(site.url, "/pgbus/streams/demo:gone") as gone,
    ):
        for client in (kept, gone):
            client.next("pgbus:connected")
        confirm_slowly(page)
        write(page, "connections", "demo:gone")
        until(lambda: column(page, "connections", 2) == ["demo:gone"], "it is found")
        click(page, "#connections tbody button")
        assert text(page, "#connections tbody button") == "Sure?"
        assert len(site.instance.registry) == 2
        click(page, "#connections tbody button")
        gone.next("pgbus:shutdown")
        until(lambda: column(page, "connections") == [], "it is gone")
        assert len(site.instance.registry) == 1 and not kept.closed


def test_an_unanswered_confirmation_goes_away(page: Page, site: Site) -> None:
    with StreamClient(site.url, "/pgbus/streams/demo:kept") as client:
        client.next("pgbus:connected")
        until(lambda: column(page, "connections"), "it is listed")
        click(page, "#connections tbody button")
        until(lambda: text(page, "#connections tbody button") == "End", "the button is reset")
        assert len(site.instance.registry) == 1


def test_a_pause_stops_the_feed_and_the_tables(page: Page, site: Site) -> None:
    feed: Any = backstage_of(site.instance).feed
    until(lambda: feed._watchers == 1, "the feed is open")
    click(page, "#pause")
    assert text(page, "#status") == "paused" and text(page, "#pause") == "Resume"
    until(lambda: feed._watchers == 0, "the feed is closed")
    before = text(page, "#chart-connections .value")
    with StreamClient(site.url, "/pgbus/streams/demo:paused") as client:
        client.next("pgbus:connected")
        holds(lambda: text(page, "#chart-connections .value") == before, "nothing moves", 2.5)
        assert column(page, "streams") == []
        click(page, "#pause")
        page.until("document.querySelector('#chart-connections .value').textContent === '1'", "it goes on")
        until(lambda: column(page, "streams") == ["demo:paused"], "the tables too")


def test_messages_are_counted_on_demand(page: Page, site: Site) -> None:
    site.bus.stream("demo:counted").broadcast_many(["x"] * 7)
    with StreamClient(site.url, "/pgbus/streams/demo:counted") as client:
        client.next("pgbus:connected")
        until(lambda: column(page, "streams") == ["demo:counted"], "it is listed")
        click(page, "#streams tbody button")
        until(lambda: text(page, "#streams tbody button") == "7", "it is counted")


def test_names_are_shown_as_text(page: Page, site: Site) -> None:
    name = "demo:<img src=x onerror=alert(1)>"
    with StreamClient(site.url, "/pgbus/streams/demo:%3Cimg%20src=x%20onerror=alert(1)%3E") as client:
        client.next("pgbus:connected")
        until(lambda: column(page, "streams") == [name], "it is shown as it is")
        assert page.eval("document.querySelectorAll('td img').length") == 0


def test_the_right_token_opens_the_console_and_a_wrong_one_does_not(
    browser: Browser, pgbus_database: str, tmp_path: Path
) -> None:
    with running_site(pgbus_database, **PATIENT, operator_token=TOKEN) as site, opened(browser, site, "") as (_, page):

        def sign_in(token: str) -> None:
            page.do(f"await page.fill('#token', {token!r})")
            leave(page, ".login button")

        sign_in("wrong")
        until(lambda: page.eval("document.getElementById('wrong')?.hidden") is False, "it says so")
        sign_in(TOKEN)
        until(lambda: text(page, "#status") == "serving", "it is open")
        assert page.eval("document.cookie") == ""
        with StreamClient(site.url, "/pgbus/streams/demo:guarded") as client:
            client.next("pgbus:connected")
            until(lambda: column(page, "connections", 2) == ["demo:guarded"], "it is listed")
            confirm_slowly(page)
            click(page, "#connections tbody button")
            click(page, "#connections tbody button")
            client.next("pgbus:shutdown")
        leave(page, "#logout button")
        until(lambda: page.eval("!!document.getElementById('token')"), "it is closed again")


def test_another_worker_behind_the_same_port_can_be_chosen(
    browser: Browser, pgbus_databases: TestDatabases, tmp_path: Path
) -> None:
    url = pgbus_databases.make_empty()
    migrate(url)
    arguments = ["-m", "pgbus_gevent.serve", "--workers", "2"]
    with program(*arguments, database_url=url, cwd=tmp_path) as serving:
        profile = Profile(browser, serving.url)
        try:
            (link,) = until(lambda: re.findall(r"/console(\?token=\S+)", serving.log), "its URL is logged")
            page = profile.open(f"{PATH}{link}", NOTE_MARKED)
            assert page.eval("location.search") == ""
            for _ in range(2):
                page.until("document.querySelectorAll('#fleet tbody button').length === 1", "both are listed", 20)
                before = text(page, "#worker")
                click_slowly(page)
                until(lambda before=before: text(page, "#worker") != before, "it is the other one's")
                until(lambda: count(page, "connections"), "its tables are there")
            chosen = text(page, "#worker")
            holds(lambda: text(page, "#worker") == chosen, "it stays", 3.0)
            until(lambda: text(page, "#status") == "serving", "it serves")
            assert profile.errors == []
            changes = page.eval("marked")
            # The list is empty while the database does not answer.
            assert len(changes) >= 3 and all(f" {each.split()[2]} " in name for name, each in changes[1:] if each), (
                changes
            )
        finally:
            profile.close()
        serving.stop()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(page: Page, site: Site, width: int) -> None:
    page.do(f"await page.setViewportSize({{ width: {width}, height: 800 }})")
    with StreamClient(site.url, f"/pgbus/streams/demo:{'a-long-name-' * 15}") as client:
        client.next("pgbus:connected")
        until(lambda: column(page, "streams"), "it is listed")
        assert page.eval("document.documentElement.scrollWidth") <= width
