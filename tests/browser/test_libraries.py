"""Turbo, htmx and Datastar as they are published, with the element and with their own clients of event streams."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser_parts import Browser, Front, Profile, element, missing, needs_datastar, publish, status
from library_parts import DATASTAR, FOLLOW, HTMX, HTMX_2, HX_SSE, ITEMS, LIST, TURBO, WAYS, action
from program_parts import program

from pgbus_gevent import datastar, turbo

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

EXAMPLES = Path(__file__).parents[2] / "examples"


# all of them ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[needs_datastar] if "Datastar" in way else []) for way in WAYS]
)
def test_a_page_shows_each_message_once(way: str, tabs: Profile, front: Front, stream: str) -> None:
    """Messages come while the page is loading, live, after a cut connection, and after a shutdown that was planned."""
    head, _, message = WAYS[way]
    (watermark,) = publish(front.site, stream, "<b>before the page</b>")
    expected = ["on the page"]

    def send(*texts: str) -> None:
        for text in texts:
            data, event = message(text)
            publish(front.site, stream, data, event=event)
            expected.append(text)

    def until_shown() -> None:
        page.until(f"{ITEMS} == '{','.join(expected)}'")

    send("while it loads")
    page = tabs.open(front.page(WAYS[way].page(stream, watermark), head))
    until_shown()
    send("live")
    until_shown()
    with front.away(front.drop):
        send("away", "still away")
    until_shown()
    with front.away(lambda: front.end("restart", 0.2)):
        send("during the restart")
    send("after it")
    until_shown()
    assert "connectionId" not in page.eval("document.body.textContent"), "no control frame is shown"
    assert page.eval(ITEMS) == ",".join(expected)


# Turbo ---------------------------------------------------------------------------------------------------------------


def test_turbo_gets_only_turbo_stream_messages(tabs: Profile, front: Front, stream: str) -> None:
    page = tabs.open(front.page(LIST + element(stream), TURBO))
    page.until("window.Turbo")
    page.until_open()
    publish(front.site, stream, '{"json": true}')
    publish(front.site, stream, action("typed"), event="order.paid")
    publish(front.site, stream, action("a"))
    page.until("document.querySelectorAll('#list li').length == 2")
    assert page.eval(ITEMS) == "on the page,a"
    assert "json" not in page.eval("document.documentElement.textContent")


def test_a_turbo_visit_keeps_the_stream_on_the_next_page(tabs: Profile, front: Front, stream: str) -> None:
    page = tabs.open(front.page('<ul id="list"></ul>' + element(stream), TURBO))
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


def test_a_refresh_that_morphs_keeps_the_stream(tabs: Profile, front: Front, stream: str) -> None:
    """The new page has a newer watermark. Its list has what came before it, and the stream brings the rest, once each."""
    page = tabs.open(front.page(LIST + element(stream, 'since-id="0"'), TURBO))
    page.until_open()
    page.eval("void (document.getElementById('list').kept = true)")
    (watermark,) = publish(front.site, stream, action("a"))
    page.until(f"{ITEMS} == 'on the page,a'")
    front.page(LIST.replace("</ul>", "<li>a</li></ul>") + element(stream, f'since-id="{watermark}"'), TURBO)
    publish(front.site, stream, turbo.refresh(morph=True))
    publish(front.site, stream, action("b"))
    page.until(f"{ITEMS} == 'on the page,a,b'")
    page.until_open()
    publish(front.site, stream, action("c"))
    page.until(f"{ITEMS} == 'on the page,a,b,c'")
    assert page.eval("document.getElementById('list').kept"), "the page was morphed, not replaced"


# htmx ----------------------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("head", [HTMX, HTMX_2], ids=["htmx 4", "htmx 2"])


@BOTH
def test_htmx_swaps_in_messages_by_their_event(head: str, tabs: Profile, front: Front, stream: str) -> None:
    parts = (
        '<div id="paid" sse-swap="order.paid, order.sent"></div>'
        '<ul id="list" sse-swap="message" hx-swap="beforeend settle:0ms"></ul>'
        '<div hx-target="#elsewhere"><div sse-swap="other"></div></div>'
    )
    body = element(stream, 'since="0"').replace("></pg", f">{parts}</pg") + '<p id="elsewhere"></p>'
    page = tabs.open(front.page(body, head))
    publish(front.site, stream, "<b>1</b>", "<b>2</b>", event="order.paid")
    publish(front.site, stream, "<li>a</li>", "<li>b</li>")
    publish(front.site, stream, "<i>there</i>", event="other")
    page.until("elsewhere.innerHTML == '<i>there</i>'")
    page.until("paid.innerHTML == '<b>2</b>'")
    page.until(f"{ITEMS} == 'a,b'")


@BOTH
def test_htmx_sends_a_request_when_a_message_comes(head: str, tabs: Profile, front: Front, stream: str) -> None:
    near = "closest pgbus-stream-source" if head == HTMX_2 else "'closest pgbus-stream-source'"
    trigger = f'hx-get="/something" hx-trigger="order.paid from:{near}"'
    body = element(stream).replace("></pg", f'><div id="inside" {trigger}></div></pg')
    outside = '<div id="outside" hx-get="/something" hx-trigger="order.paid from:#source"></div>'
    page = tabs.open(front.page(body + outside, head))
    page.until_open()
    publish(front.site, stream, "{}", event="order.paid")
    page.until("inside.textContent == 'hello' && outside.textContent == 'hello'")


@BOTH
def test_what_htmx_swapped_in_is_alive(head: str, tabs: Profile, front: Front, stream: str) -> None:
    body = element(stream, 'since="0"').replace("></pg", '><div id="place" sse-swap="message"></div></pg')
    page = tabs.open(front.page(body, head))
    publish(front.site, stream, '<p id="new" hx-get="/something" hx-trigger="go"></p>')
    page.until("document.getElementById('new')")
    page.eval("htmx.trigger(document.getElementById('new'), 'go')")
    page.until("place.textContent == 'hello'")


def test_htmx_4_takes_inherited_targets_and_partials(tabs: Profile, front: Front, stream: str) -> None:
    parts = (
        '<section hx-target:inherited="#elsewhere" hx-swap:inherited="beforeend"><i sse-swap="other"></i></section>'
        '<i id="place" sse-swap="message"></i>'
    )
    body = element(stream, 'since="0"').replace("></pg", f">{parts}</pg") + '<p id="elsewhere"></p><p id="sum">0</p>'
    page = tabs.open(front.page(body, HTMX))
    publish(front.site, stream, "<b>1</b>", "<b>2</b>", event="other")
    publish(front.site, stream, '<hx-partial hx-target="#sum"><b>3</b></hx-partial>')
    page.until("sum.innerHTML == '<b>3</b>'")
    page.until("elsewhere.innerHTML == '<b>1</b><b>2</b>'")
    assert page.eval("place.innerHTML") == "", "a partial is for its own target alone"


OWN = '<div id="own" hx-sse:connect="/pgbus/streams/STREAM"></div>'


def test_hx_sse_makes_dom_events_of_messages_with_an_event(tabs: Profile, front: Front, stream: str) -> None:
    """Also of our control frames, which the page can react to."""
    told = '<p id="told" hx-get="/something" hx-trigger="order.paid from:#own"></p>'
    reaction = "void (own.dataset.reason = JSON.parse(event.detail.data).reason)"
    own = OWN.replace("STREAM", f"{stream}?since=9000000000000000").replace(
        "></div>", f' hx-on:pgbus:gap-detected="{reaction}"></div>'
    )
    page = tabs.open(front.page(own + told, HX_SSE))
    page.until("own.dataset.reason == 'ahead'")
    publish(front.site, stream, "{}", event="order.paid")
    page.until("told.textContent == 'hello'")
    assert page.eval("own.textContent") == ""


@pytest.mark.parametrize("guarded", [False, True])
def test_hx_sse_shows_a_refusal_unless_told_not_to(guarded: bool, tabs: Profile, front: Front, stream: str) -> None:
    """A page that is refused from the beginning stays so: htmx 4 repeats a request only if it once had a stream."""
    front.intercept = status("403 Forbidden", ("x-told", "yes"))
    own = OWN.replace("STREAM", stream).replace(">", ">was here", 1)
    page = tabs.open(
        front.page(own.replace("<div", '<div hx-status:4xx="swap:none"') if guarded else own, HX_SSE),
        init="addEventListener('htmx:finally:request', () => window.refused = true, true)",
    )
    page.until("window.refused")
    assert page.eval("own.textContent") == ("was here" if guarded else "")
    assert len(front.asked) == 1


def test_the_extension_of_htmx_2_repeats_messages_after_a_refusal(tabs: Profile, front: Front, stream: str) -> None:
    """EventSource gives up at a status other than 200. The extension then makes another, which has no cursor."""
    way = WAYS["htmx 2 alone"]
    (first,) = publish(front.site, stream, "<li>a</li>", event="item")
    page = tabs.open(front.page(way.page(stream, first - 1), way.head))
    page.until(f"{ITEMS} == 'on the page,a'")
    front.intercept = status("503 Service Unavailable", times=1)
    front.drop()
    page.until(f"{ITEMS} == 'on the page,a,a'")


# Datastar ------------------------------------------------------------------------------------------------------------

NOTED = """
  window.told = [];
  document.addEventListener("datastar-fetch", ({ detail }) => told.push(detail.type));
"""


@needs_datastar
def test_datastar_patches_elements_and_signals(tabs: Profile, front: Front, stream: str) -> None:
    body = (
        '<div data-signals="{count: 0, kept: 1}"><b id="count" data-text="$count"></b><i id="kept" data-text="$kept"></i></div>'
        f'{LIST}<p id="place">old</p><div data-init="{FOLLOW}"></div>'
    )
    page = tabs.open(front.page(body.replace("STREAM", stream).replace("SINCE", "0"), DATASTAR))
    send = front.site.bus.stream(stream).broadcast
    send(**datastar.patch_signals({"count": 7, "text": "a\nb"}))
    send(**datastar.patch_signals({"count": 8, "kept": 2}, only_if_missing=True))
    page.until("count.textContent == '7' && kept.textContent == '1'")
    send(**datastar.patch_elements("<p id='place'>\n new\r\n lines\n</p>"))
    page.until("place.textContent == '\\n new\\n lines\\n'")
    send(**datastar.patch_elements("<li>first</li>", selector="#list", mode="prepend"))
    page.until(f"{ITEMS} == 'first,on the page'")
    send(**datastar.remove_elements("#list li"))
    page.until(f"{ITEMS} == ''")


@needs_datastar
def test_datastar_ignores_other_events(tabs: Profile, front: Front, stream: str) -> None:
    """Also our control frames, so its page is not told of a gap."""
    way = WAYS["Datastar alone"]
    page = tabs.open(front.page(way.page(stream, 9_000_000_000_000_000), way.head), init=NOTED)
    publish(front.site, stream, "<p>no event</p>")
    publish(front.site, stream, "{}", event="order.paid")
    data, event = way.message("a")
    publish(front.site, stream, data, event=event)
    page.until(f"{ITEMS} == 'on the page,a'")
    assert page.eval("told") == ["started", "datastar-patch-elements"]


@needs_datastar
def test_datastar_alone_gives_up_after_a_planned_shutdown_unless_told_otherwise(
    tabs: Profile, front: Front, stream: str
) -> None:
    body = LIST + f"""<div data-init="@get('/pgbus/streams/{stream}')"></div>"""
    page = tabs.open(front.page(body, DATASTAR), init=NOTED)
    front.until_live(1)
    front.end("restart", 0.2)
    page.until("told.includes('finished')")
    assert len(front.asked) == 1


SHOWN_BEFORE_AN_ATTEMPT = """
  const { setTimeout: start } = window;
  window.setTimeout = (act, ms, ...more) => {
    const due = start(act, ms, ...more);
    if (ms === 5000) start(() => document.dispatchEvent(new Event("visibilitychange")));
    return due;
  };
"""


@needs_datastar
def test_datastar_opens_two_connections_if_it_follows_the_visibility(tabs: Profile, front: Front, stream: str) -> None:
    """It does by default. The attempt that was due is made as well as the one for the tab that is shown.

    The page itself says that it is shown, once the attempt is due. Before it has read the end of the stream, none is: then Datastar
    gives that stream up, and opens one connection.
    """
    body = LIST + f"""<div data-init="@get('/pgbus/streams/{stream}', {{retry: 'always'}})"></div>"""
    tabs.open(front.page(body, DATASTAR), init=SHOWN_BEFORE_AN_ATTEMPT)
    front.until_live(1)
    front.end("restart", 5.0)
    front.until_live(2)


@needs_datastar
def test_datastar_fetches_what_has_changed_when_the_element_says_so(tabs: Profile, front: Front, stream: str) -> None:
    front.pages["/orders/mine"] = '<p id="mine">my own orders</p>'
    on = "data-on:order-changed=\"@get('/orders/mine')\""
    page = tabs.open(front.page(element(stream, on) + '<p id="mine"></p>', DATASTAR))
    page.until_open()
    publish(front.site, stream, "", event="order-changed")
    page.until("mine.textContent == 'my own orders'")


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
                page.until("document.querySelectorAll('li').length == 3")  # it begins with two
            assert other.eval("document.querySelector('li.live span').textContent") == "a bell"
            assert tabs.errors == []
        finally:
            tabs.close()
