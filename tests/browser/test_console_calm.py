"""The console holds still while it is brought up to date, and can be read in all the ways in which people read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from browser_parts import MODULES, Browser, Page, missing
from console_parts import PATH, click, column, confirm_slowly, console_site, live, opened, text
from site_parts import Site
from support import until

from pgbus_gevent.testing.client import StreamClient
from pgbus_gevent.testing.databases import TestDatabases

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with console_site(pgbus_databases) as site:
        yield site


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    with live(browser, site) as page:
        yield page


@contextmanager
def watched(site: Site, *streams: str) -> Iterator[list[StreamClient]]:
    """Have a client for each stream."""
    with ExitStack() as stack:
        clients = [stack.enter_context(StreamClient(site.url, f"/pgbus/streams/{stream}")) for stream in streams]
        for client in clients:
            client.next("pgbus:connected")
        yield clients


MARK = "(table) => { for (const row of document.querySelectorAll(`#${table} tbody tr`)) row.mark = row.textContent.length; }"
MARKED = "(table) => [...document.querySelectorAll(`#${table} tbody tr`)].map((row) => row.mark !== undefined)"


# what a refresh must not disturb ---------------------------------------------------------------------------------------


def test_a_refresh_moves_rows_and_replaces_none(page: Page, site: Site) -> None:
    with watched(site, "demo:a", "demo:b", "demo:b", "demo:c"):
        until(lambda: len(column(page, "streams")) == 3, "all are listed")
        assert column(page, "streams")[0] == "demo:b"
        page.eval(MARK, "streams")
        page.do("await page.locator('#streams tr', { hasText: 'demo:b' }).locator('.link').first().focus()")
        with watched(site, "demo:c", "demo:c", "demo:d", "demo:d", "demo:d", "demo:d"):
            until(
                lambda: column(page, "streams") == ["demo:d", "demo:c", "demo:b", "demo:a"], "they are in a new order"
            )
            assert page.eval(MARKED, "streams") == [False, True, True, True]
            assert page.eval("document.activeElement.textContent") == "demo:b"
        until(lambda: column(page, "streams")[0] == "demo:b" and len(column(page, "streams")) == 3, "one has left")
        assert page.eval("document.activeElement.textContent") == "demo:b"


def test_a_refresh_keeps_selected_text_and_the_order_under_it(page: Page, site: Site) -> None:
    with watched(site, "demo:a", "demo:b", "demo:b"):
        until(lambda: column(page, "streams") == ["demo:b", "demo:a"], "both are listed")
        page.eval(
            """void getSelection().setBaseAndExtent(
              document.querySelector('#streams tbody tr td').firstChild.firstChild, 2,
              document.querySelector('#streams tbody tr:last-child td:nth-child(2)').firstChild, 1)"""
        )
        chosen = page.eval("getSelection().toString()")
        assert chosen.startswith("mo:b") and chosen.endswith("1")
        with watched(site, "demo:a", "demo:a", "demo:c"):
            until(lambda: len(column(page, "streams")) == 3, "the new stream is there")
            assert page.eval("getSelection().toString()") == chosen
            assert column(page, "streams") == ["demo:b", "demo:a", "demo:c"]
            page.eval("void getSelection().removeAllRanges()")
            until(lambda: column(page, "streams")[0] == "demo:a", "now they are sorted")


def test_the_focus_stays_near_when_its_row_has_gone(page: Page, site: Site) -> None:
    with watched(site, "demo:a", "demo:b") as clients:
        click(page, "#connections th[data-column=streams] button")
        until(lambda: column(page, "connections", 2) == ["demo:a", "demo:b"], "both are listed")
        confirm_slowly(page)
        for _ in range(2):
            page.do("await page.locator('#connections .end').first().press('Enter')")
        clients[0].next("pgbus:shutdown")
        until(lambda: column(page, "connections", 2) == ["demo:b"], "one has gone")
        assert page.eval("document.activeElement.className") == "end"
        assert page.eval("document.activeElement.closest('tr').children[1].textContent") == "demo:b"
    until(lambda: column(page, "connections") == [], "all have gone")
    assert page.eval("document.activeElement.id") == "connections-title"


def test_paging_keeps_the_focus_at_both_ends(page: Page, site: Site) -> None:
    with watched(site, *(f"demo:{n:02}" for n in range(11))):
        until(lambda: text(page, "#streams .pager span") == "page 1 of 2", "there are two pages")
        page.do("await page.focus('#streams .next'); await page.keyboard.press('Enter')")
        until(lambda: text(page, "#streams .pager span") == "page 2 of 2", "the second one")
        assert page.eval("document.activeElement.className") == "next"
        assert page.eval("document.activeElement.ariaDisabled") == "true"
        until(lambda: "page 2 of 2" in text(page, "#said"), "it is said")
        page.do("await page.keyboard.press('Enter')")
        page.do("await page.focus('#streams .back'); await page.keyboard.press('Enter')")
        until(lambda: text(page, "#streams .pager span") == "page 1 of 2", "the first one again")
        assert page.eval("[document.activeElement.className, document.activeElement.ariaDisabled]") == ["back", "true"]


def test_new_warnings_replace_no_old_ones(page: Page, site: Site) -> None:
    log = logging.getLogger("pgbus_gevent.shop")
    for n in range(30):
        log.warning("no bread %d", n)
    first = "document.querySelector('#warnings li')"
    page.until(f"{first}?.textContent.includes('no bread 29')", "they are there")
    page.eval(f"void ({first}.mark = 1, document.querySelector('#warnings .log').scrollTop = 200)")
    page.eval(f"void getSelection().selectAllChildren({first}.children[1])")
    chosen = page.eval("getSelection().toString()")
    log.warning("no wine")
    page.until("document.querySelector('#warnings').textContent.includes('no wine')")
    assert page.eval("getSelection().toString()") == chosen
    assert page.eval("[...document.querySelectorAll('#warnings li')].filter((item) => item.mark).length") == 1
    assert page.eval("document.querySelector('#warnings .log').scrollTop") >= 200


def test_choosing_a_stream_does_not_move_the_charts(page: Page, site: Site) -> None:
    with watched(site, "demo:a"):
        until(lambda: column(page, "streams") == ["demo:a"], "it is listed")
        place = "document.querySelector('#streams table').getBoundingClientRect().top + scrollY"
        before = page.eval(place)
        click(page, "#streams tbody .link")
        until(lambda: column(page, "connections"), "its connections are shown")
        assert page.eval(place) == before


SHIFTS = """
  window.shifts = [];
  new PerformanceObserver((list) => {
    for (const { hadRecentInput, value, sources } of list.getEntries())
      if (!hadRecentInput) shifts.push([value, sources.map(({ node }) => node?.id || node?.className || node?.nodeName)]);
  }).observe({ type: "layout-shift", buffered: true });
"""


def test_nothing_moves_while_the_page_loads(browser: Browser, site: Site) -> None:
    with watched(site, *(f"demo:{n:02}" for n in range(12))), opened(browser, site) as (profile, first):
        first.do("await page.goto('about:blank')")
        page = profile.open(PATH, SHIFTS)
        for width in (1440, 768, 390):
            # The page loaded in a window of another size before.
            page.do(f"await page.setViewportSize({{ width: {width}, height: 900 }}); await page.reload()")
            until(lambda: len(column(page, "connections")) == 10, "the tables are filled")
            page.until("document.getElementById('fact-database').textContent !== '–'", "the slow facts are there")
            page.until("document.querySelector('#fleet tbody tr')", "the workers too", 30)
            shifts = page.eval("shifts")
            assert sum(value for value, _ in shifts) < 0.02, (width, shifts)


# the ways in which people read -----------------------------------------------------------------------------------------

CONTRASTS = """() => {
  const channels = (color) => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const white = matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0] : [255, 255, 255];
  // What is behind the text of an element, and how opaque the text is with all its ancestors.
  const ground = (element) => element
    ? over([...channels(getComputedStyle(element).backgroundColor)], ground(element.parentElement)) : white;
  const opacity = (element) => element ? Number(getComputedStyle(element).opacity) * opacity(element.parentElement) : 1;
  const ratio = (element, color) => {
    const behind = ground(element);
    const [r, g, b, a] = channels(color);
    const [x, y] = [light(over([r, g, b, a * opacity(element)], behind)), light(behind)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const found = {};
  const note = (element, color, text) => {
    const { fontSize, fontWeight } = getComputedStyle(element);
    const large = parseFloat(fontSize) >= 24 || (parseFloat(fontSize) >= 18.66 && Number(fontWeight) >= 700);
    const is = ratio(element, color);
    if (is < (large ? 3 : 4.5)) found[`${element.localName}.${element.className} ${text}`] = Math.round(is * 100) / 100;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let texts = 0;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility({ visibilityProperty: true }) || element.closest(".sr")) continue;
    texts += 1;
    note(element, getComputedStyle(element).color, node.data.trim().slice(0, 30));
  }
  for (const input of document.querySelectorAll("input[placeholder]"))
    note(input, getComputedStyle(input, "::placeholder").color, "placeholder");
  return { texts, found };
}"""


@contextmanager
def everything_shown(page: Page, site: Site) -> Iterator[None]:
    """Fill the page: rows with zeros, a stream with its messages, pages, warnings, trouble, a button that asks."""
    logging.getLogger("pgbus_gevent.shop").error("no wine")
    logging.getLogger("pgbus_gevent.shop").warning("no bread")
    site.bus.stream("demo:00").broadcast("x" * 5000, event="order.paid", visible_to="admins")
    site.bus.stream("demo:00").broadcast("y")
    with watched(site, *(f"demo:{n:02}" for n in range(11)), "demo:00"):
        until(lambda: len(column(page, "streams")) == 10, "they are listed")
        click(page, "#streams tbody .link")
        until(lambda: len(column(page, "messages")) >= 2, "the messages are shown")
        page.until("document.querySelector('#fleet tbody tr') && document.querySelectorAll('#warnings li').length > 1")
        confirm_slowly(page)
        click(page, "#connections .end")
        page.eval(
            "void (document.getElementById('notice').hidden = false, document.getElementById('notice').textContent = 'x')"
        )
        yield


def test_every_text_has_enough_contrast_and_axe_finds_no_fault(page: Page, site: Site) -> None:
    rules = json.dumps(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"])
    audit = f"return await page.evaluate(() => axe.run({{ runOnly: {rules}, resultTypes: ['violations'] }}))"
    box = "document.getElementById('publish-box')"
    with everything_shown(page, site):
        page.eval(f"void {(MODULES / 'axe-core/axe.min.js').read_text()}")
        for scheme in ("light", "dark"):
            page.do(f"await page.emulateMedia({{ colorScheme: '{scheme}' }})")
            for opening in (f"{box}.close()", f"{box}.showModal()"):
                page.eval(f"void {opening}")
                shown = page.eval(f"({CONTRASTS})()")
                assert shown["found"] == {} and shown["texts"] > 200, scheme
                faults = [
                    (each["id"], [node["html"][:120] for node in each["nodes"]])
                    for each in page.do(audit)["violations"]
                ]
                assert faults == [], scheme
        # A text that is too faint would be found, also if it is so by opacity.
        page.eval("void (document.querySelector('td.zero').style.opacity = 0.6)")
        assert len(page.eval(f"({CONTRASTS})()")["found"]) == 1


SPACED = """document.querySelectorAll("*").forEach(({ style }) =>
  Object.assign(style ?? {}, { lineHeight: "1.5", letterSpacing: "0.12em", wordSpacing: "0.16em" }))"""
"""The spacing that success criterion 1.4.12 of WCAG names."""

CUT = """[...document.querySelectorAll("h1, h2, .value, .note, .facts dt, .facts dd, td, button, label, .pill, #worker")]
  .filter((each) => each.checkVisibility({ visibilityProperty: true }) && !each.matches(".unseen"))
  .filter((each) => each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).overflowX !== "visible")
  .map((each) => each.id || each.textContent)"""


def test_nothing_is_wider_than_the_screen_even_with_wide_spacing(page: Page, site: Site) -> None:
    wide = "document.documentElement.scrollWidth"
    with watched(site, f"demo:{'a-long-name-' * 15}"):
        until(lambda: column(page, "streams"), "it is listed")
        click(page, "#streams tbody .link")
        until(lambda: column(page, "connections"), "so is its connection")
        for spacing in ("0", SPACED):
            page.eval(f"void {spacing}")
            for width in (320, 390, 768, 1440):
                page.do(f"await page.setViewportSize({{ width: {width}, height: 800 }})")
                page.eval(f"void {spacing}")
                assert page.eval(wide) <= width
                assert page.eval(CUT) == [], width
                page.eval("void document.getElementById('publish-box').showModal()")
                assert page.eval("document.getElementById('publish-box').getBoundingClientRect().right") <= width
                page.eval("void document.getElementById('publish-box').close()")


def test_a_table_that_scrolls_can_be_scrolled_by_the_keyboard(page: Page, site: Site) -> None:
    focusable = "document.querySelector('#streams .scroll').tabIndex"
    page.do("await page.setViewportSize({ width: 1440, height: 800 })")
    page.until(f"{focusable} === -1", "there is nothing to scroll")
    page.do("await page.setViewportSize({ width: 390, height: 800 })")
    page.until(f"{focusable} === 0", "there is")
    page.do("await page.focus('#streams .scroll'); await page.keyboard.press('ArrowRight')")
    page.until("document.querySelector('#streams .scroll').scrollLeft > 0")


PLOT = "document.querySelector('#chart-connections .plot')"


def test_arrow_keys_read_a_chart_and_nothing_is_said_unasked(page: Page, site: Site) -> None:
    with watched(site, "demo:a"):
        page.until("document.querySelector('#chart-connections .value').textContent === '1'")
        page.until(
            "document.querySelector('#chart-connections .line').getAttribute('d').split('L').length > 3", "some points"
        )
        page.do("await page.focus('#chart-connections .plot')")
        assert page.eval(f"{PLOT}.getAttribute('aria-valuetext')") == "now: 1 connections"
        page.eval(
            f"""void (window.said = 0, new MutationObserver(() => said += 1).observe({PLOT},
              {{ attributeFilter: ["aria-valuetext", "aria-valuenow"] }}))"""
        )
        newest = page.eval("document.querySelector('#chart-connections .line').getAttribute('d')")
        page.until(
            f"document.querySelector('#chart-connections .line').getAttribute('d') !== {newest!r}", "time passes"
        )
        assert page.eval("said") == 0
        page.do("await page.keyboard.press('ArrowLeft')")
        told = page.eval(f"{PLOT}.getAttribute('aria-valuetext')")
        assert " s ago: " in told
        # All charts show the same time.
        assert "s ago" in text(page, "#chart-messages .when")
        page.do("await page.keyboard.press('Escape')")
        assert text(page, "#chart-messages .when") == "now"
        assert page.eval(f"{PLOT}.role") == "slider" and page.eval(f"{PLOT}.ariaValueMax") == "0"


def test_a_finger_reads_a_chart(page: Page, site: Site) -> None:
    page.until(
        "document.querySelector('#chart-connections .line').getAttribute('d').split('L').length > 2", "some points"
    )
    touch = """(kind) => {
      const { left, top, width } = PLOT.querySelector('svg').getBoundingClientRect();
      const at = { clientX: left + width / 2, clientY: top + 5 };
      PLOT.dispatchEvent(new PointerEvent(kind, { pointerType: 'touch', bubbles: true, ...at }));
    }""".replace("PLOT", PLOT)
    page.eval(touch, "pointerdown")
    page.until("document.querySelector('#chart-connections .when').textContent.includes(' ago')")
    for kind in ("pointerup", "pointerleave"):
        page.eval(touch, kind)
    assert " ago" in text(page, "#chart-connections .when")
    assert page.eval(f"getComputedStyle({PLOT}).touchAction") == "pan-y"
    page.do("await page.click('h1')")
    assert text(page, "#chart-connections .when") == "now"


def test_a_summary_is_given_when_it_is_asked_for(page: Page, site: Site) -> None:
    assert text(page, "#said") == ""
    with watched(site, "demo:a"):
        page.until("document.querySelector('#chart-connections .value').textContent === '1'")
        page.until("document.getElementById('fact-database').textContent.startsWith('in ')")
        page.do("await page.focus('#summarise'); await page.keyboard.press('Enter')")
        until(lambda: text(page, "#said").startswith("serving. 1 connection to 1 stream. "), "it is said")
    regions = """[...document.querySelectorAll("[aria-live], [role=status], [role=alert], [role=log]")]
      .map((each) => each.id || each.className)"""
    assert sorted(page.eval(regions)) == sorted(["said", "notice", "empty", "published"])


def test_a_state_is_said_once_it_has_lasted(page: Page) -> None:
    place = "document.getElementById('said')"
    note = f"new MutationObserver(() => heard.push({place}.textContent)).observe({place}, {{ childList: true }})"
    page.eval(f"void (window.heard = [], {note})")
    page.until("document.getElementById('status').textContent === 'serving'")
    click(page, "#pause")
    until(lambda: page.eval("heard") == ["this worker: paused"], "it is said")
    click(page, "#pause")
    page.until("document.getElementById('status').textContent === 'serving'")
    until(
        lambda: page.eval("heard") == ["this worker: paused", "this worker: serving"],
        "it is said, without the time between",
    )


def test_everything_is_reached_by_the_keyboard_and_the_focus_is_seen(page: Page, site: Site) -> None:
    with watched(site, "demo:a"):
        until(lambda: column(page, "streams") and column(page, "connections"), "the tables are filled")
        reached: list[Any] = []
        for _ in range(80):
            page.do("await page.keyboard.press('Tab')")
            now = page.eval(
                """(() => { const each = document.activeElement; if (each === document.body) return null;
                const { outlineStyle, outlineWidth } = getComputedStyle(each);
                const name = each.id || each.getAttribute("aria-label") || each.textContent;
                return [name, outlineStyle !== "none" && parseFloat(outlineWidth) >= 2]; })()"""
            )
            if now is None or (reached and now[0] == reached[0][0]):
                break
            reached.append(now)
        names = [name for name, _ in reached]
        assert [name for name, seen in reached if not seen] == []
        assert names[:3] == ["summarise", "publish", "pause"]
        assert sum("move through the past" in name for name in names) == 9
        assert "demo:a" in names and any(name.startswith("End connection") for name in names)


def test_forced_colours_keep_lines_states_and_focus_visible(page: Page, site: Site) -> None:
    with watched(site, "demo:a"):
        until(lambda: column(page, "connections"), "it is listed")
        page.do("await page.emulateMedia({ forcedColors: 'active', colorScheme: 'dark' })")
        stroke = "getComputedStyle(document.querySelector('#chart-passes .line')).stroke"
        assert page.eval(f"{stroke} === getComputedStyle(document.body).color"), page.eval(stroke)
        ground = "getComputedStyle(document.querySelector('#window [aria-pressed=true]')).outlineStyle"
        assert page.eval(ground) == "solid"
        dot = "getComputedStyle(document.querySelector('#connections td.state'), '::before').borderTopStyle"
        assert page.eval(dot) == "solid"
