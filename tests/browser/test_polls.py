"""Pages behind a proxy that holds streams back until they end: the element polls, and goes back to a stream when that works."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from browser_parts import Browser, Front, Page, Profile, element, missing, publish
from gevent.event import Event
from holding_proxy_parts import HoldingProxy, holding_proxy
from site_parts import Site, running_site
from support import PATIENCE, until

from pgbus_gevent.testing.databases import TestDatabases

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

HELD = "if (!sessionStorage.asked) sessionStorage.pgbus = sessionStorage.asked = '1';"
"""What a page before has kept in the tab, if streams were held back."""


@pytest.fixture(scope="module")
def quick_site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    """A site that sends heartbeats every second, so that three are soon missed."""
    with running_site(pgbus_databases.make(), retry=0.2, heartbeat=1.0) as site:
        yield site


@pytest.fixture
def front(quick_site: Site) -> Iterator[Front]:
    original = quick_site.app
    quick_site.app = front = Front(quick_site)
    yield front
    quick_site.app = original


@pytest.fixture
def proxy(quick_site: Site) -> Iterator[HoldingProxy]:
    with holding_proxy(quick_site.port) as proxy:
        yield proxy


@pytest.fixture
def tabs(browser: Browser, front: Front, proxy: HoldingProxy) -> Iterator[Profile]:
    found = Profile(browser, proxy.url)
    yield found
    assert found.errors == []
    found.close()
    front.until_live(0)


def until_it_polls(page: Page, proxy: HoldingProxy) -> None:
    page.until_open()
    until(lambda: any("poll=25" in target for target in proxy.asked), "it polls")


@pytest.mark.slow
def test_after_two_streams_without_a_byte_it_polls_and_returns_when_streams_come_through(
    tabs: Profile, front: Front, proxy: HoldingProxy, stream: str
) -> None:
    proxy.holding = False
    page = tabs.open(front.page(element(stream)))
    page.until_open()
    publish(front.site, stream, "a")
    page.until_data(["a"])

    proxy.holding = True
    front.drop()
    publish(front.site, stream, "b")
    until_it_polls(page, proxy)
    held = [target for target in proxy.asked if "/streams" in target and "poll=" not in target and "since=" in target]
    assert len(held) >= 2
    publish(front.site, stream, "c", "d")
    page.until_data(["a", "b", "c", "d"])
    assert page.eval("sessionStorage.pgbus") == "1"

    proxy.holding = False
    # The next page of the tab knows, polls at once, and tries a stream beside.
    page.reload()
    until_it_polls(page, proxy)
    page.until("sessionStorage.pgbus === ''", "it has left polling")
    polls = len(proxy.polls())
    publish(front.site, stream, "e")
    page.until("seen.some(([name, detail]) => name === 'pgbus:message' && detail.data === 'e')")
    publish(front.site, stream, "f")
    page.until("seen.some(([name, detail]) => name === 'pgbus:message' && detail.data === 'f')")
    assert page.data()[-2:] == ["e", "f"]
    assert len(proxy.polls()) <= polls + 1


def test_messages_that_come_by_polls_come_once_and_in_order(
    tabs: Profile, front: Front, proxy: HoldingProxy, stream: str
) -> None:
    page = tabs.open(front.page(element(stream)), init=HELD)
    until_it_polls(page, proxy)
    expected = []
    for n in range(5):
        data = [f"{n}.{m}" for m in range(n + 1)]
        publish(front.site, stream, *data)
        expected += data
        page.until_data(expected)
    assert len(page.seen("pgbus:open")) == 1 and page.seen("pgbus:close") == []
    ids = [detail["id"] for detail in page.seen()]
    assert ids == sorted(set(ids))


def test_several_streams_share_the_polls_and_their_connection_can_be_excluded(
    tabs: Profile, front: Front, proxy: HoldingProxy, stream: str
) -> None:
    both = f"stream={stream}&stream={stream}b"
    page = tabs.open(front.page(f'<pgbus-stream-source src="/pgbus/streams?{both}"></pgbus-stream-source>'), init=HELD)
    until_it_polls(page, proxy)
    (opened,) = page.seen("pgbus:open")
    for name in (stream, f"{stream}b"):
        front.site.bus.stream(name).broadcast("not for it", exclude=opened["connectionId"])
        publish(front.site, name, f"in {name}")
    page.until_data([f"in {stream}", f"in {stream}b"])
    assert all("stream=" in target for target in proxy.polls())


def test_ephemeral_messages_and_gaps_come_by_polls(
    tabs: Profile, front: Front, proxy: HoldingProxy, stream: str
) -> None:
    page = tabs.open(front.page(element(stream, 'since="9000000000000000"')), init=HELD)
    until_it_polls(page, proxy)
    assert [gap["reason"] for gap in page.until_seen(1, "pgbus:gap")] == ["ahead"]
    front.until_live(1)
    front.site.bus.stream(stream).broadcast("hint", event="typing", ephemeral=True)
    page.until("seen.some(([name, detail]) => name === 'pgbus:message' && detail.data === 'hint')")


def test_a_page_that_polls_outlives_a_restart(tabs: Profile, front: Front, proxy: HoldingProxy, stream: str) -> None:
    page = tabs.open(front.page(element(stream)), init=HELD)
    until_it_polls(page, proxy)
    front.until_live(1)
    front.end("restart", 0.1)
    publish(front.site, stream, "a")
    page.until_data(["a"])
    close = page.seen("pgbus:close")[0]
    assert (close["reason"], close["willRetry"]) == ("restart", True)


@pytest.mark.slow
def test_a_page_that_polls_because_nothing_came_through_returns_to_a_stream_as_soon_as_something_does(
    tabs: Profile, front: Front, proxy: HoldingProxy, stream: str
) -> None:
    over = Event()

    def silent(environ: Any, start_response: Any) -> list[bytes]:
        over.wait(PATIENCE)
        start_response("503 Service Unavailable", [("content-length", "0")])
        return []

    proxy.holding = False
    page = tabs.open(front.page(element(stream)))
    page.until_open()
    front.intercept = silent
    front.drop()
    until(lambda: any("poll=0" in target for target in proxy.asked), "it polls, without an answer")
    gevent.sleep(4.0)  # longer than between two looks whether a stream can be tried
    front.intercept = lambda environ, start_response: None
    over.set()
    publish(front.site, stream, "a")
    page.until("sessionStorage.pgbus === ''", "it has left polling")
    publish(front.site, stream, "b")
    page.until("seen.some(([name, detail]) => name === 'pgbus:message' && detail.data === 'b')")
