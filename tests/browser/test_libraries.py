"""The real Turbo and htmx, with the element and with their own stream sources, and the example of the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser_parts import Browser, Front, Profile, element, missing, publish
from program_parts import program

from pgbus_gevent import turbo

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

EXAMPLES = Path(__file__).parents[2] / "examples"

TURBO = '<script type="module" src="/lib/turbo.js"></script>'
HTMX = '<script src="/lib/htmx.js"></script>'
LIST = '<ul id="list"></ul>'


def action(text: str) -> str:
    return turbo.append("list", f"<li>{text}</li>")


ITEMS = "[...document.querySelectorAll('#list li')].map((item) => item.textContent).join()"


# Turbo ---------------------------------------------------------------------------------------------------------------


def test_turbo_performs_the_actions_of_the_element_once_each(tabs: Profile, front: Front, stream: str) -> None:
    publish(front.site, stream, action("early"))
    page = tabs.open(front.page(LIST + element(stream, 'since="0"'), TURBO))
    page.until("document.querySelectorAll('#list li').length == 1")
    publish(front.site, stream, action("a") + action("b"))
    page.until("document.querySelectorAll('#list li').length == 3")
    front.drop()
    publish(front.site, stream, action("c"))
    page.until("document.querySelectorAll('#list li').length == 4")
    assert page.eval(ITEMS) == "early,a,b,c"


def test_turbo_gets_only_turbo_stream_messages(tabs: Profile, front: Front, stream: str) -> None:
    page = tabs.open(front.page(LIST + element(stream), TURBO))
    page.until("window.Turbo")
    page.until_open()
    publish(front.site, stream, '{"json": true}')
    publish(front.site, stream, action("typed"), event="order.paid")
    publish(front.site, stream, action("a"))
    page.until("document.querySelectorAll('#list li').length == 1")
    assert page.eval(ITEMS) == "a"
    assert "json" not in page.eval("document.documentElement.textContent")


def test_a_turbo_visit_keeps_the_stream_on_the_next_page(tabs: Profile, front: Front, stream: str) -> None:
    page = tabs.open(front.page(LIST + element(stream), TURBO))
    page.until("window.Turbo")
    page.until_open()
    (watermark,) = publish(front.site, stream, action("a"))
    page.until_seen(1)
    since = f'since="{watermark}"'
    front.page(f'<ul id="list"><li>a</li></ul><p id="next"></p>{element(stream, since)}', TURBO, path="/next")
    publish(front.site, stream, action("b"))
    page.until_seen(2)
    page.eval("Turbo.visit('/next')")
    page.until("document.getElementById('next')")
    publish(front.site, stream, action("c"))
    page.until("document.querySelectorAll('#list li').length == 3")
    assert page.eval(ITEMS) == "a,b,c"
    front.until_live(1)
    page.eval("history.back()")
    page.until("!document.getElementById('next')")
    page.until(f"{ITEMS} == 'a,b,c'", "the page as it was, with the messages since then")


def test_turbos_own_source_reads_a_stream(tabs: Profile, front: Front, stream: str) -> None:
    own = f'<turbo-stream-source src="/pgbus/streams/{stream}?since=0"></turbo-stream-source>'
    page = tabs.open(front.page(LIST + own, TURBO))
    publish(front.site, stream, action("a"))
    page.until("document.querySelectorAll('#list li').length == 1")
    page.eval("document.querySelector('turbo-stream-source').remove()")


# htmx ----------------------------------------------------------------------------------------------------------------


def test_htmx_swaps_in_messages_by_their_event(tabs: Profile, front: Front, stream: str) -> None:
    parts = (
        '<div id="paid" sse-swap="order.paid, order.sent"></div>'
        '<ul id="list" sse-swap="message" hx-swap="beforeend"></ul>'
        '<div hx-target="#elsewhere"><div sse-swap="other"></div></div>'
    )
    body = element(stream, 'since="0"').replace("></pg", f">{parts}</pg") + '<p id="elsewhere"></p>'
    page = tabs.open(front.page(body, HTMX))
    publish(front.site, stream, "<b>1</b>", "<b>2</b>", event="order.paid")
    publish(front.site, stream, "<li>a</li>", "<li>b</li>")
    publish(front.site, stream, "<i>there</i>", event="other")
    page.until("elsewhere.innerHTML == '<i>there</i>'")
    page.until("paid.innerHTML == '<b>2</b>'")
    front.drop()
    publish(front.site, stream, "<li>c</li>")
    page.until(f"{ITEMS} == 'a,b,c'")


def test_htmx_sends_a_request_when_a_message_comes(tabs: Profile, front: Front, stream: str) -> None:
    trigger = 'hx-get="/something" hx-trigger="order.paid from:closest pgbus-stream-source"'
    body = element(stream).replace("></pg", f'><div id="inside" {trigger}></div></pg')
    outside = '<div id="outside" hx-get="/something" hx-trigger="order.paid from:#source"></div>'
    page = tabs.open(front.page(body + outside, HTMX))
    page.until_open()
    publish(front.site, stream, "{}", event="order.paid")
    page.until("inside.textContent == 'hello' && outside.textContent == 'hello'")


def test_htmx_own_extension_reads_a_stream(tabs: Profile, front: Front, stream: str) -> None:
    own = (
        f'<div hx-ext="sse" sse-connect="/pgbus/streams/{stream}?since=0"><p id="paid" sse-swap="order.paid"></p></div>'
    )
    page = tabs.open(front.page(own, HTMX + '<script src="/lib/htmx-sse.js"></script>'))
    publish(front.site, stream, "<b>1</b>", event="order.paid")
    page.until("paid.innerHTML == '<b>1</b>'")


# the example ---------------------------------------------------------------------------------------------------------


def test_an_order_appears_in_every_window_of_the_shop(browser: Browser, pgbus_database: str, tmp_path: Path) -> None:
    with program(str(EXAMPLES / "bottle_orders.py"), database_url=pgbus_database, cwd=tmp_path) as shop:
        tabs = Profile(browser, shop.url)
        try:
            one, other = tabs.open("/"), tabs.open("/")
            one.until_open()
            other.until_open()
            one.do("await page.fill('input', 'a bell'); await page.click('form button')")
            for page in (one, other):
                page.until("document.querySelectorAll('li').length == 1")
            assert other.eval("document.querySelector('li.live span').textContent") == "a bell"
            assert tabs.errors == []
        finally:
            tabs.close()
