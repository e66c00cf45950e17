"""The HTML and JavaScript in docs/guides, in a real browser and on a real server."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from browser_parts import LIBRARIES, Browser, Front, Profile, element, missing, needs_datastar, publish
from page_parts import block_of, blocks
from program_parts import program

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.docs]


def filled_in(code: str, stream: str) -> str:
    """Return the code of a page with a stream of the test and our copies of the libraries."""
    return code.replace("TOKEN", stream).replace("WATERMARK", "0").replace("/assets/", "/lib/")


def test_htmx_fetches_what_has_changed(tabs: Profile, front: Front, stream: str) -> None:
    front.pages["/orders/mine"] = "my own orders"
    page = tabs.open(front.page(filled_in(block_of("docs/guides/htmx.md", "fetch"), stream)))
    page.until_open()
    publish(front.site, stream, "", event="order.changed")
    page.until("mine.textContent == 'my own orders'")


def test_htmx_4_reads_a_stream_itself(tabs: Profile, front: Front, stream: str) -> None:
    front.pages["/orders/mine"] = "my own orders"
    page = tabs.open(front.page(filled_in(block_of("docs/guides/htmx.md", "own"), stream)))
    publish(front.site, stream, "<li>a</li>", "<li>b</li>")
    page.until("document.querySelector('ul').innerHTML == '<li>a</li><li>b</li>'")
    publish(front.site, stream, "", event="order.changed")
    page.until("mine.textContent == 'my own orders'")


@needs_datastar
def test_datastar_hears_the_events_of_the_element(tabs: Profile, front: Front, stream: str) -> None:
    front.pages["/orders/mine"] = '<div id="mine">my own orders</div>'
    page = tabs.open(front.page(filled_in(block_of("docs/guides/datastar.md", "element"), stream)))
    publish(front.site, stream, "3", event="order.count")
    publish(front.site, stream, "", event="order.changed")
    page.until("count.textContent == '3' && mine.textContent == 'my own orders'")
    page.eval("void (window.before = true)")
    other = """([name, value]) => document.querySelector("pgbus-stream-source").setAttribute(name, value)"""
    page.eval(f"void [['src', '/pgbus/streams/demo:other'], ['since-id', '9000000000000000']].forEach({other})")
    page.until("!window.before", "the page has loaded itself again after a gap")


def test_json_is_read_and_shown_as_text(tabs: Profile, front: Front, stream: str) -> None:
    code = f'<script type="module">{block_of("docs/guides/json.md", "read")}</script>'
    page = tabs.open(front.page(element(stream, 'since="0"') + '<p id="order-7"></p>' + code))
    page.until_open()
    publish(front.site, stream, json.dumps({"id": 7, "total": "<b>12.50"}), event="order.paid")
    page.until("document.getElementById('order-7').textContent == 'paid <b>12.50'")


def test_a_page_whose_name_has_expired_renews_it_and_misses_nothing(tabs: Profile, front: Front, stream: str) -> None:
    bus = front.site.bus
    front.pages["/live/orders"] = bus.stream_path(stream, expires_in=3600)
    soon = bus.stream_path(stream, expires_at=int(time.time()) + 5)
    code = f'<script type="module">{block_of("docs/guides/tokens.md", "renew")}</script>'
    source = f'<pgbus-stream-source src="{soon}" since-id="0"></pgbus-stream-source>'
    publish(front.site, stream, "before")
    page = tabs.open(front.page(source + code))
    page.until_data(["before"])
    page.until("seen.some(([name, detail]) => name === 'pgbus:close' && detail.reason === 'expired')")
    publish(front.site, stream, "after")
    page.until_data(["before", "after"])
    assert page.eval("document.querySelector('pgbus-stream-source').getAttribute('src')") == front.pages["/live/orders"]


ITEMS = ["tea <b>", "milk"]


@pytest.mark.parametrize(
    "guide",
    [
        "docs/bottle.md",
        pytest.param("docs/guides/datastar.md", marks=needs_datastar),
        "docs/guides/flask.md",
        "docs/guides/htmx.md",
        "docs/guides/turbo.md",
    ],
)
def test_the_application_of_a_guide_is_live_as_it_is_printed(
    guide: str, browser: Browser, pgbus_database: str, tmp_path: Path
) -> None:
    """Nothing is added to the text, so the table, the rows and the element's module have to be in it."""
    for block in blocks(guide):
        if not block.hidden and (
            name := block.value("file") or {"application": "shop.py"}.get(block.value("name") or "")
        ):
            (tmp_path / name).write_text(block.text, encoding="utf-8")
    (tmp_path / "assets").mkdir()
    for name in ("turbo.js", "htmx.js", "datastar.js"):
        if LIBRARIES[f"/lib/{name}"].exists():
            shutil.copy(LIBRARIES[f"/lib/{name}"], tmp_path / "assets" / name)
    with program("-m", "pgbus_gevent.serve", "shop:app", database_url=pgbus_database, cwd=tmp_path) as running:
        person = Profile(browser, running.url)
        one, other = person.open("/"), person.open("/")
        for count, item in enumerate(ITEMS, 1):
            for page in (one, other):
                page.until(
                    "[...document.querySelectorAll('pgbus-stream-source')].every(({ state }) => state == 'open')"
                )
            one.eval(f"void (document.querySelector('[name=item]').value = '{item}')")
            one.eval("void document.querySelector('form button').click()")
            shown = "[...document.querySelectorAll('li')].map((row) => row.textContent).join()"
            for page in (one, other, person.open("/")):
                page.until(f"{shown} == '{','.join(ITEMS[:count])}'")
                page.until(f"[...document.querySelectorAll('#count, b')].every((it) => it.textContent == '{count}')")
        assert person.errors == []
        person.close()
        assert running.stop() == 0
