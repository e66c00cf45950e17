"""The console in a real browser: numbers, tables that are sorted, filtered and paged, the end of a connection, the login."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from browser_fixtures import PATIENT
from browser_parts import Browser, Page, Profile, close_idle, missing
from console_parts import (
    PATH,
    TOKEN,
    click,
    column,
    confirm_slowly,
    console_site,
    count,
    leave,
    live,
    opened,
    text,
    write,
)
from program_parts import program
from site_parts import Site, running_site
from streamer_parts import FakeClient
from support import holds, until

from pgbus_gevent.core import events
from pgbus_gevent.core.client import Place
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases
from pgbus_gevent.web.backstage import backstage_of
from pgbus_gevent.web.tables import ROWS, Tables

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

# Each name of a worker that the page shows, with what the list of workers marks as "this one" at that moment.
NOTE_MARKED = """
  window.marked = [];
  addEventListener('DOMContentLoaded', () => new MutationObserver(() => marked.push([
    document.getElementById('worker').textContent, document.querySelector('#fleet .here')?.textContent,
  ])).observe(document.getElementById('worker'), { childList: true }));
"""


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with console_site(pgbus_databases) as site:
        yield site


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    with live(browser, site) as page:
        yield page


@pytest.mark.every_engine
def test_it_is_live_in_each_engine(browser: Browser, site: Site) -> None:
    tabs = Profile(browser, site.url)
    try:
        page = tabs.open(f"{PATH}?token={TOKEN}")
        page.until("document.getElementById('status').dataset.state === 'good'", "it is live")
        with StreamClient(site.url, "/pgbus/streams/demo:live") as client:
            client.next("pgbus:connected")
            page.until("document.querySelector('#chart-connections .value').textContent === '1'", "one connection")
            page.until("document.querySelector('#connections tbody tr')", "its row")
        page.until("!document.querySelector('#connections tbody tr')", "it has left")
        assert tabs.errors == []
    finally:
        tabs.close()
        close_idle(site)


def click_slowly(page: Page) -> None:
    """Choose the other worker, and release the button only after the list has been brought up to date."""
    page.do("await page.hover('#fleet tbody button:not([aria-current])'); await page.mouse.down()")
    ages = column(page, "fleet", 9)
    until(lambda: column(page, "fleet", 9) != ages, "the list is new")
    page.do("await page.mouse.up()")


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
        scale = "[...document.querySelectorAll('#chart-messages .ticks span')].map((tick) => tick.textContent)"
        page.until(f"{scale}[0] === '0' && {scale}.length > 1", "it has a scale")
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
        matching = {"crowd:123", *(f"crowd:123{n}" for n in range(10))}
        until(lambda: len(set(column(page, "streams")) & matching) == ROWS, "a page of them is shown")
        write(page, "connections", "user-777")
        until(lambda: count(page, "connections") == "11 of 10,000", "so are connections")
        write(page, "streams", "nothing of that name")
        until(lambda: text(page, "#streams .empty") == "Nothing matches.", "nothing is there")


def test_a_table_is_shown_even_if_each_answer_takes_longer_than_a_refresh(
    page: Page, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Tables.streams

    def slow(tables: Tables, wanted: Any) -> Any:
        gevent.sleep(2.6)
        return real(tables, wanted)

    monkeypatch.setattr(Tables, "streams", slow)
    with StreamClient(site.url, "/pgbus/streams/demo:slow") as client:
        client.next("pgbus:connected")
        until(lambda: column(page, "streams") == ["demo:slow"], "it is listed")


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
        click(page, "#connections tbody .end")
        assert text(page, "#connections tbody .end") == "Sure?"
        assert len(site.instance.registry) == 2
        click(page, "#connections tbody .end")
        gone.next("pgbus:shutdown")
        until(lambda: column(page, "connections") == [], "it is gone")
        assert len(site.instance.registry) == 1 and not kept.closed


def test_an_unanswered_confirmation_goes_away(page: Page, site: Site) -> None:
    with StreamClient(site.url, "/pgbus/streams/demo:kept") as client:
        client.next("pgbus:connected")
        until(lambda: column(page, "connections"), "it is listed")
        click(page, "#connections tbody .end")
        until(lambda: text(page, "#connections tbody .end") == "End", "the button is reset")
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
        click(page, "#streams tbody .stored")
        until(lambda: text(page, "#streams tbody .stored") == "7", "it is counted")


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
            click(page, "#connections tbody .end")
            click(page, "#connections tbody .end")
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
                page.until(
                    "document.querySelectorAll('#fleet tbody button:not([aria-current])').length === 1",
                    "both are listed",
                    20,
                )
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


def test_a_stream_leads_to_its_connections_and_its_latest_messages(page: Page, site: Site) -> None:
    site.bus.stream("demo:one").broadcast("before", visible_to="admins")
    with (
        StreamClient(site.url, "/pgbus/streams/demo:one") as one,
        StreamClient(site.url, "/pgbus/streams/demo:two") as two,
    ):
        for client in (one, two):
            client.next("pgbus:connected")
        write(page, "streams", "demo:one")
        until(lambda: column(page, "streams") == ["demo:one"], "it is listed")
        click(page, "#streams tbody .link")
        until(lambda: column(page, "connections", 2) == ["demo:one"], "only its connection is shown")
        assert page.eval("document.activeElement.id") == "messages-title"
        until(lambda: column(page, "messages", 6) == ["before"], "its message is shown")
        assert column(page, "messages", 5) == ["admins"]
        id = site.bus.stream("demo:one").broadcast("<b>now</b>", event="order.paid")
        until(lambda: column(page, "messages", 6) == ["<b>now</b>", "before"], "the next one too, as text")
        assert column(page, "messages", 1)[0].split()[0] == str(id) and column(page, "messages", 3) == [
            "order.paid",
            "–",
        ]
        click(page, "#messages-close")
        until(lambda: len(column(page, "connections", 2)) == 2, "all are shown")
        assert page.eval("document.activeElement.textContent") == "demo:one"


def test_an_operator_publishes_and_sees_the_id(page: Page, site: Site) -> None:
    with StreamClient(site.url, "/pgbus/streams/demo:box") as client:
        client.next("pgbus:connected")
        click(page, "#publish")
        page.do("await page.fill('#publish-stream', 'demo:box'); await page.fill('#publish-event', 'greeting')")
        page.do("await page.fill('#publish-data', 'a\\nb'); await page.press('#publish-event', 'Enter')")
        page.until("document.getElementById('published').textContent.startsWith('Published as')")
        (message,) = site.bus.stream("demo:box").read_after(0)
        assert (message.data, message.event, message.visible_to) == ("a\nb", "greeting", None)
        assert str(message.id) in text(page, "#published")
        assert client.next("greeting").data == "a\nb"
        page.do(
            "await page.fill('#publish-event', 'pgbus:shutdown'); await page.click('#publish-form fieldset button')"
        )
        page.until("document.getElementById('published').textContent.startsWith('Not published: event names')")
        page.do("await page.keyboard.press('Escape')")
        page.until("!document.getElementById('publish-box').open && document.activeElement.id === 'publish'")
        assert site.bus.stream("demo:box").last_id() == message.id


def test_where_nobody_can_publish_the_box_says_why(
    browser: Browser, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgbus_gevent.web.feed.why_not", lambda settings: "this server is an edge")
    with live(browser, site) as page:
        click(page, "#publish")
        assert text(page, "#unpublishable") == "This does not work here: this server is an edge."
        assert page.eval("document.querySelector('#publish-form fieldset').disabled") is True


def test_a_whole_id_is_copied(page: Page, site: Site) -> None:
    clipboards = {
        "there": "{ writeText: async (text) => void copied.push(text) }",
        "missing": "undefined",
        "refused": "{ writeText: async () => { throw new DOMException('no', 'NotAllowedError'); } }",
    }
    with StreamClient(site.url, "/pgbus/streams/demo:copied") as client:
        client.next("pgbus:connected")
        (connection,) = site.instance.registry.clients()
        until(lambda: column(page, "connections"), "it is listed")
        page.eval("void (document.execCommand = () => copied.push(document.activeElement.value) > 0)")
        for clipboard in clipboards.values():
            page.eval("void (window.copied = [], document.getElementById('said').textContent = '')")
            page.eval(
                f"void Object.defineProperty(navigator, 'clipboard', {{ value: {clipboard}, configurable: true }})"
            )
            page.do("await page.focus('#connections .copy'); await page.keyboard.press('Enter')")
            until(lambda: text(page, "#said").startswith("copied the connection id"), "it is said")
            assert page.eval("copied") == [connection.id]
            assert page.eval("document.activeElement.className") == "link copy"
        page.eval("void (document.execCommand = () => false)")
        page.do("await page.keyboard.press('Enter')")
        until(lambda: connection.id in text(page, "#notice"), "if nothing works, it is shown")


def test_refusals_warnings_and_the_whole_fleet_are_shown(page: Page, site: Site) -> None:
    feed: Any = backstage_of(site.instance).feed
    until(lambda: feed._watchers == 1, "the feed is open")
    page.until("document.querySelector('#chart-refused .note').textContent === 'none'")
    for reason in ("overloaded", "restart", "overloaded"):
        site.instance.events.emit(events.Refused(reason))
    page.until("document.querySelector('#chart-refused .value').textContent === '3'", "they are counted")
    assert text(page, "#chart-refused .note").split() == ["2", "overloaded", "1", "restart"]
    assert page.eval("document.querySelector('#chart-refused .bar.of1').getAttribute('d').length") > 10
    logging.getLogger("pgbus_gevent.shop").error("no wine")
    page.until("document.querySelector('#chart-warned .note').textContent.includes('errors')")
    facts = {"connections": 7, "streams": 2, "messages": 10, "sends": 20, "refused": 3, "lost": 1, "warned": 0}
    for _ in range(2):
        site.bus.database.fleet.beat("there", "web-2", 4711, 0.0, facts)
        page.until("document.getElementById('all-connections').textContent === '7'", "all workers are summed up")
    until(lambda: any(name.startswith("web-2") for name in column(page, "fleet")), "the other worker is listed")
    assert text(page, "#foot-connections") == "7"
    site.bus.database.fleet.leave("there")


def test_the_charts_show_five_minutes_or_an_hour(browser: Browser, site: Site) -> None:
    feed: Any = backstage_of(site.instance).feed
    now = feed._now()
    hour = [{**now, "at": now["at"] - ago, "connections": 7} for ago in range(3600, 30, -30)]
    feed._hour.extend(hour)
    with live(browser, site) as page:
        assert text(page, "#chart-connections .ends span") == "5 min ago"
        click(page, "#window [value=hour]")
        assert text(page, "#chart-connections .ends span") == "1 h ago"
        assert page.eval("document.querySelector('#window [value=hour]').getAttribute('aria-pressed')") == "true"
        page.do("await page.focus('#chart-connections .plot'); await page.keyboard.press('Home')")
        told = page.eval("document.querySelector('#chart-connections .plot').getAttribute('aria-valuetext')")
        assert told.endswith("min ago: 7 connections"), told
    feed._hour.clear()
