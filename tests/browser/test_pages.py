"""The HTML, CSS and JavaScript in README.md and docs/browser.md, in a real browser and on a real server."""

from __future__ import annotations

from typing import Any

import pytest
from browser_fixtures import PATIENT
from browser_parts import Front, Page, Profile, element, missing, publish, status
from gevent.event import Event
from page_parts import block_of
from site_parts import running_site
from support import PATIENCE

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.docs]

LOGGING = "window.logged = []; console.log = (...words) => logged.push(words);"


def filled_in(code: str, stream: str, watermark: int = 0) -> str:
    """Return the code with a stream and a watermark of the test in the place of those of the page."""
    code = (
        code.replace("TOKEN", stream).replace("WATERMARK", str(watermark)).replace("1700000000000012", str(watermark))
    )
    return code.replace("/assets/", "/lib/")


def opened_and_refused(code: str, tabs: Profile, front: Front, path: str) -> Page:
    """Open a page, and refuse its first request for a stream, once.

    The page has loaded by then, as the driver waits for that; and a page that changes to others again and again answers nobody.
    """
    loaded, refuse = Event(), status(code, times=1)

    def wait(environ: Any, start_response: Any) -> Any:
        loaded.wait(PATIENCE)
        return refuse(environ, start_response)

    front.intercept = wait
    page = tabs.open(path)
    loaded.set()
    return page


@pytest.mark.parametrize(
    ("code", "with_id"), [(block_of("README.md", "element"), False), (block_of("docs/browser.md", "element"), True)]
)
def test_the_element_gets_what_came_after_the_watermark(
    code: str, with_id: bool, tabs: Profile, front: Front, stream: str
) -> None:
    (watermark,) = publish(front.site, stream, "on the page", event="order.paid")
    (id,) = publish(front.site, stream, "meanwhile", event="order.paid")
    page = tabs.open(front.page(filled_in(code, stream, watermark)), init=LOGGING)
    page.until("logged.length == 1")
    (later,) = publish(front.site, stream, "later", event="order.paid")
    page.until("logged.length == 2")
    told = [[id, "meanwhile"], [later, "later"]]
    assert page.eval("logged") == (told if with_id else [words[1:] for words in told])


def test_the_style_shows_a_note_while_the_element_waits(tabs: Profile, front: Front, stream: str) -> None:
    style = f"<style>.offline {{ display: none }}\n{block_of('docs/browser.md', 'style')}</style>"
    page = tabs.open(front.page(element(stream) + '<p class="offline">offline</p>', style))
    shown = "getComputedStyle(document.querySelector('.offline')).display"
    page.until_open()
    assert page.eval(shown) == "none" and page.eval("getComputedStyle(source).display") == "none"
    front.intercept = status("503 No", ("retry-after", "60"))
    front.drop()
    page.until(f"{shown} == 'block'")


def test_the_reactions_lead_to_the_login_and_load_the_page_again(tabs: Profile, front: Front, stream: str) -> None:
    reactions = f"<script>{block_of('docs/browser.md', 'reactions')}</script>"
    front.pages["/login"] = "<title>the login</title>"
    page = opened_and_refused("403 No", tabs, front, front.page(element(stream), reactions))
    page.until("location.pathname == '/login'")

    page = tabs.open(front.page(element(stream), reactions))
    for event, detail in (("pgbus:gap", "{}"), ("pgbus:close", "{ reason: 'identity-changed', willRetry: false }")):
        page.until_open()
        page.eval("void (window.before = true)")
        page.eval(f"void source.dispatchEvent(new CustomEvent('{event}', {{ detail: {detail}, bubbles: true }}))")
        page.until("!window.before")


def test_a_plain_eventsource_knows_whether_it_comes_back(tabs: Profile, front: Front, stream: str) -> None:
    (before,) = publish(front.site, stream, "before")
    code = filled_in(block_of("docs/operations/faults-for-clients.md", "plain"), stream, before)
    page = tabs.open(front.page("", f"<script>window.show = (data) => (window.shown = data); {code}</script>"))
    page.until("document.body.dataset.stream == 'open'")
    publish(front.site, stream, "after")
    page.until("window.shown == 'after'")
    front.end("restart", 1.0)
    page.until("document.body.dataset.stream == 'waiting'")
    page.until("document.body.dataset.stream == 'open'")
    front.intercept = status("404 No")
    front.drop()
    page.until("document.body.dataset.stream == 'closed'")


def test_a_page_whose_name_is_worth_nothing_loads_itself_again(tabs: Profile, front: Front, stream: str) -> None:
    reload = f"<script>{block_of('docs/operations/secrets.md', 'reload')}</script>"
    page = opened_and_refused("404 No", tabs, front, front.page(element(stream), reload))
    page.until("performance.getEntriesByType('navigation')[0].type == 'reload'")
    page.until_open()


def test_pages_with_their_own_connection_share_none(tabs: Profile, front: Front, stream: str) -> None:
    path = front.page(filled_in(block_of("docs/browser.md", "own-connection"), stream))
    for number in (1, 2):
        tabs.open(path).until_open()
        front.until_live(number)


def test_connect_gives_the_messages_until_it_is_closed(tabs: Profile, front: Front, stream: str) -> None:
    code = filled_in(block_of("docs/browser.md", "connect"), stream)
    publish(front.site, stream, "a", event="order.paid")
    assert "orders.close();" in code
    still_open = code.replace("orders.close();", "window.orders = orders;")
    page = tabs.open(front.page("", f'<script type="module">{still_open}</script>'), init=LOGGING)
    page.until("logged.length == 1")
    assert page.eval("logged") == [["a"]] and page.eval("orders.state") == "open"
    front.until_live(2)
    assert front.followed == {stream, "demo:a", "demo:b"}
    page.close()
    front.until_live(0)

    closed = code.replace("orders.close();", "orders.close(); window.orders = orders;")
    page = tabs.open(front.page("", f'<script type="module">{closed}</script>'), init=LOGGING)
    page.until("window.orders")
    front.until_live(1)
    assert front.followed == {"demo:a", "demo:b"} and page.eval("orders.state") == "closed"


def test_the_policy_lets_the_element_work(tabs: Profile, front: Front, stream: str) -> None:
    policy = block_of("docs/browser.md", "policy").strip().removeprefix("Content-Security-Policy: ")
    front.pages["/strict"] = f"""<!doctype html><meta http-equiv="Content-Security-Policy" content="{policy}">
        <script type="module" src="/pgbus/pgbus.js"></script>{element(stream)}"""
    page = tabs.open("/strict")
    page.until_open()
    (id,) = publish(front.site, stream, "a")
    page.until(f"source.getAttribute('since') == '{id}'")


def test_a_page_follows_a_stream_of_another_origin(tabs: Profile, front: Front, pgbus_database: str) -> None:
    with running_site(pgbus_database, **PATIENT, cors_origins=(front.site.url,)) as site:
        code = block_of("docs/browser.md", "other-origin").replace("https://live.example", site.url)
        module, _, tag = filled_in(code, "demo:far").partition("\n")
        front.pages["/far"] = f"<!doctype html>{module}{tag}"
        page = tabs.open("/far")
        page.until_open()
        (id,) = publish(site, "demo:far", "a")
        page.until(f"document.querySelector('pgbus-stream-source').getAttribute('since') == '{id}'")
        page.close()
