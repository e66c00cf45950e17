"""The shape of a page in a browser: that it fits, that nothing is cut off, and what keyboards and screen readers find."""

from __future__ import annotations

from typing import Any

from browser_parts import Page

CUT_OFF = """() => [...document.querySelectorAll("body *")].filter((one) => {
  const style = getComputedStyle(one);
  if (!one.checkVisibility() || style.clipPath !== "none" || !one.clientWidth) return false;
  const hides = (overflow) => overflow === "hidden" || overflow === "clip";
  const after = parseFloat(style.letterSpacing) || 0; // the space after the last letter
  return (hides(style.overflowX) && one.scrollWidth > one.clientWidth + 1 + after)
    || (hides(style.overflowY) && one.scrollHeight > one.clientHeight + 1);
}).map((one) => one.outerHTML.slice(0, 120))"""
"""The elements whose contents are cut off, and cannot be scrolled to."""

WIDER = """() => [...document.querySelectorAll("body, body *")]
  .filter((one) => Math.max(one.getBoundingClientRect().right, one.getBoundingClientRect().left + one.scrollWidth)
    > document.documentElement.clientWidth)
  .map((one) => one.outerHTML.slice(0, 120)).slice(0, 5)"""

SPACING = """() => {
  const rule = "* { line-height: 1.5 !important; letter-spacing: .12em !important; word-spacing: .16em !important }";
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(`${rule} p { margin-bottom: 2em !important }`);
  document.adoptedStyleSheets = [sheet];
}"""
"""The spacing of text that a page must bear (WCAG 2.2, 1.4.12), as a style that no policy of the page keeps out."""

FOCUSED = """() => {
  const one = document.activeElement;
  const shown = one.matches("input[type=radio]") ? one.nextElementSibling : one;
  const { outlineStyle, outlineWidth } = getComputedStyle(shown);
  const words = one.getAttribute("aria-label") || one.textContent.trim().slice(0, 30);
  const name = one.id || (one.matches("input") ? one.name : words);
  return [name, outlineStyle !== "none" && parseFloat(outlineWidth) > 0, one === document.body];
}"""


def check_fit(page: Page, *widths: int) -> None:
    """The page has no more width than the window, at 400 % zoom too (320 px), and with more space between letters and lines."""
    for spacing in (False, True):
        if spacing:
            page.eval(f"({SPACING})()")
        for width in widths or (1440, 768, 390, 320):
            page.do(f"await page.setViewportSize({{ width: {width}, height: 800 }})")
            over = page.eval("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert over <= 0, (width, spacing, page.eval(f"({WIDER})()"))
            cut = page.eval(f"({CUT_OFF})()")
            assert cut == [], (width, spacing, cut)
    page.eval("void (document.adoptedStyleSheets = [])")
    page.do("await page.setViewportSize({ width: 1280, height: 800 })")


def tab_through(page: Page, limit: int = 60) -> list[str]:
    """Press Tab until the focus has left the page, and return what had it. Each time, the focus must be visible."""
    names: list[str] = []
    inside = not page.eval("document.activeElement === document.body")
    for _ in range(limit):
        page.do("await page.keyboard.press('Tab')")
        name, visible, nothing = page.eval(f"({FOCUSED})()")
        if nothing and not inside:
            return names
        if nothing:  # the focus had begun somewhere on the page; now it comes to the first element
            inside, names = False, []
            continue
        assert visible, f"the focus on {name!r} is not visible"
        names.append(name)
    raise AssertionError(f"the focus does not leave the page: {names}")


LISTEN = """() => {
  window.spoken = [];
  const live = "[aria-live=polite], [aria-live=assertive], [role=status], [role=alert], [role=log], output";
  for (const region of document.querySelectorAll(live)) {
    if (region.closest("[aria-live=off]")) continue;
    new MutationObserver(() => region.textContent.trim() && spoken.push([performance.now(), region.textContent.trim()]))
      .observe(region, { childList: true, characterData: true, subtree: true });
  }
}"""


def listen(page: Page) -> None:
    """Note from now on what the page tells screen readers; see :func:`spoken`."""
    page.eval(f"({LISTEN})()")


def spoken(page: Page) -> list[Any]:
    """Return the milliseconds and the sentence of each time that the page has told something."""
    return list(page.eval("spoken"))
