"""Whether everybody can use a page: by keyboard, with large or widely spaced text, with forced colours, with a screen reader.

:func:`faults_of` makes all checks of one page. What the browser itself is asked is in browser/accessibility.js.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, NamedTuple

import gevent
from browser_parts import HERE, MODULES, Page, Profile
from raw_http import Answer

LIBRARY = (HERE / "accessibility.js").read_text(encoding="utf-8")

STOPS = 90
"""The most stops of the Tab key that a walk takes."""

BUSY = 6.0
"""Seconds for which a page is listened to while messages come."""

WALK = """
  const faults = [];
  await page.evaluate("a11y.start()");
  for (let n = 0; n < STOPS; n++) {
    await page.keyboard.press("Tab");
    const found = await page.evaluate("a11y.stop()");
    if (found === null) break;
    faults.push(...found);
    if (n === 2) {
      // Back and forth again: neither key is caught.
      const here = await page.evaluateHandle("document.activeElement");
      await page.keyboard.press("Shift+Tab");
      const moved = await here.evaluate((one) => one !== document.activeElement);
      await page.keyboard.press("Tab");
      if (!moved || !(await here.evaluate((one) => one === document.activeElement))) faults.push("Shift+Tab does not go back");
    }
  }
  return [...faults, ...(await page.evaluate("a11y.finish()"))];
"""

NAMELESS = """
  const session = await page.context().newCDPSession(page);
  const { nodes } = await session.send("Accessibility.getFullAXTree");
  await session.detach();
  const value = (node, name) => node.properties?.find((one) => one.name === name)?.value.value;
  return nodes
    .filter((node) => !node.ignored && value(node, "focusable") && node.role.value !== "RootWebArea")
    .filter((node) => !node.name?.value.trim() || ["generic", "none", "GenericContainer"].includes(node.role.value))
    .map((node) => `a ${node.role.value} with the name “${node.name?.value ?? ""}”`);
"""

AXE = """async () => {
  const rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"];
  const found = await axe.run(document, { runOnly: rules, resultTypes: ["violations"] });
  return found.violations.map((one) => `${one.id}: ${one.nodes.slice(0, 3).map((node) => node.html.slice(0, 120)).join(" ")}`);
}"""


class Subject(NamedTuple):
    """A page to look at. ``ready`` is an expression that is true once it shows what it has.

    ``stir`` publishes something that the page shows, and is called ten times a second; None for a page that never changes.
    """

    path: str
    ready: str = "document.readyState === 'complete'"
    stir: Callable[[], Any] | None = None
    cookie: tuple[str, str] | None = None
    """The name and the value of a cookie, of somebody who has logged in."""


def cookie_of(login: Answer) -> tuple[str, str]:
    """Return the cookie that the answer to a login sets."""
    name, _, value = login.headers["set-cookie"].partition(";")[0].partition("=")
    return name, value


class Look:
    """One page in a tab, under changing conditions."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def media(self, **options: str) -> None:
        """Emulate these media features, and the usual ones otherwise."""
        given = {"colorScheme": "light", "forcedColors": "none", "reducedMotion": "no-preference", **options}
        self.page.do(f"await page.emulateMedia({json.dumps(given)})")

    def size(self, width: int, height: int) -> None:
        self.page.do(f"await page.setViewportSize({{ width: {width}, height: {height} }})")
        # Two frames, so that what reacts to the size has done so.
        self.page.eval("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))")

    def ask(self, check: str) -> list[str]:
        """Return the faults that a function of the library finds."""
        return list(self.page.eval(f"a11y.{check}"))

    def walk(self) -> list[str]:
        """Go through the page with the Tab key, and return the faults."""
        return list(self.page.do(WALK.replace("STOPS", str(STOPS))))

    def nameless(self) -> list[str]:
        """Return what can have the focus and has no name or no role in the accessibility tree."""
        return list(self.page.do(NAMELESS))

    def axe(self) -> list[str]:
        """Return what axe-core finds under the rules of WCAG 2.2 A and AA."""
        if not self.page.eval("'axe' in window"):
            self.page.eval((MODULES / "axe-core/axe.min.js").read_text(encoding="utf-8") + "; void 0")
        return list(self.page.eval(f"({AXE})()"))

    def chatter(self, stir: Callable[[], Any]) -> list[str]:
        """Return what says too much to a screen reader while messages come."""
        self.page.eval("void a11y.listen()")
        deadline = monotonic() + BUSY
        while monotonic() < deadline:
            stir()
            gevent.sleep(0.1)
        return self.ask("chatter()")


def faults_of(tabs: Profile, subject: Subject) -> dict[str, list[str]]:
    """Make all checks of a page. Return the faults by check; a good page has none."""
    if subject.cookie is not None:
        tabs.cookie(*subject.cookie)
    page = tabs.open(subject.path, init=LIBRARY)
    page.until(subject.ready, "the page is there")
    found = dict(_checks(Look(page), subject))
    page.close()
    return {check: sorted(set(faults)) for check, faults in found.items() if faults}


def written(faults: dict[str, list[str]]) -> str:
    """Return the faults as a text for a failed test."""
    return "\n".join(f"{check}: {fault}" for check, found in faults.items() for fault in found)


def _checks(look: Look, subject: Subject) -> Iterator[tuple[str, list[str]]]:
    yield "frame", look.ask(f"frame({str(subject.stir is not None).lower()})")
    yield "names", look.nameless()
    if subject.stir is not None:
        look.media(reducedMotion="reduce")
        yield "announcements", look.chatter(subject.stir)
        yield "movement", look.ask("moving()")
    for scheme in ("light", "dark"):
        look.size(1280, 1024)
        look.media(colorScheme=scheme, reducedMotion="reduce")
        yield f"axe, {scheme}", look.axe()
        yield f"keyboard, {scheme}", look.walk()
        look.media(colorScheme=scheme, forcedColors="active", reducedMotion="reduce")
        yield f"forced colours, {scheme}", [*look.ask("states()"), *look.ask("drawings()"), *look.walk()]
    look.media(reducedMotion="reduce")
    yield "text spacing", look.ask("spaced()")
    # A window of 1280 by 1024 pixels at 400 %.
    look.size(320, 256)
    yield "400 %", [*look.ask("wide()"), *look.ask("cut()"), *look.walk()]
    look.size(320, 640)
    yield "text spacing on a phone", look.ask("spaced()")
