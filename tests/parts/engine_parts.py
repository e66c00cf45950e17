"""The engines that the browser tests run in, and their tabs: Chromium, Firefox and WebKitGTK, each driven by a program of its own.

Chromium and Firefox are driven by Playwright, Firefox over WebDriver BiDi. ``tests/browser/webkit.mjs`` has the part of
Playwright's interface that the tests use, over the WebDriver of WebKitGTK. So ``driver.mjs`` and the classes here are the same for
all.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import gevent
from support import PATIENCE, START, until

HERE = Path(__file__).parents[1] / "browser"
MODULES = HERE / "node_modules"


class Engine(NamedTuple):
    """Where an engine is, and the packages of Debian that it and its driver come from. Any program of each group will do."""

    programs: tuple[tuple[str, ...], ...]
    packages: str

    @property
    def absent(self) -> str:
        """Return the names of the first group of which no program is installed, or an empty text."""
        return next((" or ".join(names) for names in self.programs if not any(map(shutil.which, names))), "")

    @property
    def program(self) -> str | None:
        return next(filter(None, map(shutil.which, self.programs[0])), None)


ENGINES = {
    "chromium": Engine((("chromium", "chromium-browser", "google-chrome"),), "chromium"),
    "firefox": Engine((("firefox-esr", "firefox"),), "firefox-esr"),
    "webkit": Engine((("WebKitWebDriver",), ("Xvfb",)), "webkit2gtk-driver xvfb"),
}

CHROMIUM = ENGINES["chromium"].program


def missing(engine: str = "chromium") -> str:
    """Return why tests in this engine cannot run here, or an empty text if they can."""
    if absent := ENGINES[engine].absent:
        return f"{absent} is not installed: apt-get install {ENGINES[engine].packages}"
    if shutil.which("node") is None:
        return "node is not installed: apt-get install nodejs npm"
    if not (MODULES / "playwright-core").exists():
        return "the libraries are not installed: npm ci --prefix tests/browser"
    return ""


INITS: list[str] = []
"""Scripts that the front puts into a page before all others, as WebKit's driver cannot. The page's URL has ``init=NUMBER``."""


class Browser:
    """A browser, driven through a separate program. ``command`` starts that, if it is to run elsewhere or with more flags."""

    def __init__(self, engine: str = "chromium", command: list[str] | None = None) -> None:
        self.engine = engine
        self._process: Any = subprocess.Popen(
            command or ["node", "driver.mjs", engine, str(ENGINES[engine].program)],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._number = 0
        self.version = str(self._read(0, 2 * START))

    def run(self, code: str, arg: Any = None) -> Any:
        """Run a function of ``(browser, kept, arg)`` with this body, and return its result."""
        self._number += 1
        self._process.stdin.write(json.dumps({"id": self._number, "code": code, "arg": arg}) + "\n")
        self._process.stdin.flush()
        return self._read(self._number)

    def _read(self, number: int, timeout: float = 4 * PATIENCE) -> Any:
        with gevent.Timeout(timeout, AssertionError("the browser does not answer")):
            while True:
                line = self._process.stdout.readline()
                assert line, "the browser's driver has ended"
                answer = json.loads(line)
                if answer["id"] == number:
                    assert "error" not in answer, answer["error"]
                    return answer.get("value")

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(PATIENCE)
        self._process.stdout.close()


class Profile:
    """The browser of one person. Its tabs share storage, locks and connections, and share nothing with other profiles."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._url = url
        self._number = browser.run(
            """
            kept.context = await browser.newContext();
            kept.pages ??= [];
            kept.profiles ??= [];
            return kept.profiles.push({ context: kept.context, errors: [] }) - 1;
            """
        )

    def open(self, path: str, init: str = "") -> Page:
        """Open a page in a new tab. ``init`` runs before any script of the page; in WebKit, that has to be a page of a front."""
        if init and self._browser.engine == "webkit":
            INITS.append(init)
            path, init = f"{path}{'&' if '?' in path else '?'}init={len(INITS) - 1}", ""
        number = self._browser.run(
            """
            const { context, errors } = kept.profiles[arg.profile];
            const page = await context.newPage();
            page.setDefaultTimeout(35_000);
            // Firefox tells of what a policy has blocked in the same way.
            const policy = "Content-Security-Policy: ";
            page.on("pageerror", (error) => String(error).startsWith(policy) || errors.push(String(error)));
            if (arg.init) await page.addInitScript(arg.init);
            await page.goto(arg.url);
            return kept.pages.push(page) - 1;
            """,
            {"url": self._url + path, "init": init, "profile": self._number},
        )
        return Page(self._browser, number)

    def open_behind(self, path: str) -> Page:
        """Open a page in a tab behind another one. In Chromium it has a profile of its own, until it is closed."""
        code = "return kept.pages.push(await kept.openBehind(kept.profiles[arg[0]].context, arg[1])) - 1"
        return Page(self._browser, self._browser.run(code, [self._number, self._url + path]))

    def offline(self, off: bool) -> None:
        """Cut the network. In WebKit, the pages only get the event: its driver cannot cut anything."""
        self._browser.run("await kept.profiles[arg[0]].context.setOffline(arg[1])", [self._number, off])

    def cookie(self, name: str, value: str) -> None:
        """Set a cookie of the site."""
        cookie = {"name": name, "value": value, "url": self._url}
        self._browser.run("await kept.profiles[arg[0]].context.addCookies([arg[1]])", [self._number, cookie])

    @property
    def errors(self) -> list[str]:
        """Return the errors of the scripts on the pages. WebKit's driver tells of none, but a page of a front tells that."""
        return list(self._browser.run("return kept.profiles[arg].errors", self._number))

    def close(self) -> None:
        self._browser.run("await kept.profiles[arg].context.close()", self._number)


_marks = count()

EVALUATE = """
  for (let n = 1; ; n++) {
    try {
      return await kept.pages[arg[0]].evaluate(arg[1]);
    } catch (error) {
      if (n === 5 || !String(error).includes("context was destroyed")) throw error;
    }
  }
"""
"""If the page changes to another document in the middle of this, the other one is asked."""


class Page:
    """A tab. Its document keeps the events that bubble up to it in ``seen``. With ``patient = false`` it takes over soon.

    Each is ``[name, detail, id of the target, state of the target, milliseconds]``, as they were at that moment.
    """

    def __init__(self, browser: Browser, number: int) -> None:
        self._browser = browser
        self._number = number

    def eval(self, expression: str, arg: Any = None) -> Any:
        """Return the value of an expression on the page, or the result of a function ``(arg) => …`` there."""
        if arg is not None:
            expression = f"({expression})({json.dumps(arg)})"
        return self._browser.run(EVALUATE, [self._number, expression])

    def until(self, expression: str, what: str = "", timeout: float = PATIENCE) -> Any:
        """Wait until an expression is true on the page."""
        return until(lambda: self.eval(f"!!({expression})"), what or expression, timeout, pause=0.03)

    def seen(self, name: str = "pgbus:message") -> list[Any]:
        """Return the details of the events of that name."""
        return list(self.eval("(name) => seen.filter(([given]) => given === name).map(([, detail]) => detail)", name))

    def seen_first(self, name: str) -> tuple[str, float]:
        """Return the state of the element at the first event of that name, and when that was, in milliseconds of the page."""
        state, at = self.eval("(name) => seen.find(([given]) => given === name).slice(3)", name)
        return str(state), float(at)

    def until_seen(self, count: int, name: str = "pgbus:message") -> list[Any]:
        """Wait for ``count`` events of that name, and return their details. Fail if there are more."""
        found = until(lambda: (got := self.seen(name))[count - 1 :] and got, f"{count} of {name}", pause=0.03)
        assert len(found) == count, found
        return list(found)

    def until_open(self) -> None:
        self.until("document.querySelector('pgbus-stream-source[state=open]') !== null", "the element is open")

    @property
    def state(self) -> str:
        return str(self.eval("document.querySelector('pgbus-stream-source').state"))

    def data(self) -> list[str]:
        return [str(detail["data"]) for detail in self.seen()]

    def until_data(self, expected: Iterable[str]) -> None:
        """Wait until these messages have arrived, and no others."""
        expected = list(expected)
        until(lambda: len(self.data()) >= len(expected), f"{len(expected)} messages", pause=0.03)
        assert self.data() == expected

    def goto(self, path: str) -> None:
        """Load another page of the site in this tab."""
        self._act("await page.goto(new URL(arg, await page.evaluate('location.href')).href)", path)

    def back(self) -> None:
        """Go back in the history of the tab, and wait until the page there is the current one, which may come from the cache."""
        mark = next(_marks)
        self.eval(f"void (window.left = {mark})")
        # Playwright's goBack does not notice a page that comes from the cache of Firefox.
        self.eval("void setTimeout(() => history.back())")
        self.until(f"window.left !== {mark}", "there is another page")

    def reload(self) -> None:
        self._act("await page.reload()")

    def crash(self) -> None:
        """End the process of the tab, as the system does when memory is short."""
        self._act("await kept.crash(page)")

    def fill(self, selector: str, text: str) -> None:
        """Replace the text of a field."""
        self._act("await page.fill(arg[0], arg[1])", [selector, text])

    def type(self, selector: str, text: str) -> None:
        """Press a key for each character, in a field."""
        self._act("await page.type(arg[0], arg[1])", [selector, text])

    def press(self, selector: str, key: str) -> None:
        self._act("await page.press(arg[0], arg[1])", [selector, key])

    def click(self, selector: str) -> None:
        """Click on an element. ``text=…`` is the one with this text."""
        self._act("await page.click(arg)", selector)

    def close(self) -> None:
        self._act("await page.close()")

    def do(self, code: str) -> Any:
        """Let the tab itself do something. ``page`` in ``code`` is Playwright's, so not for WebKit."""
        return self._act(code)

    def _act(self, code: str, arg: Any = None) -> Any:
        code = f"const page = kept.pages[arg[0]]; return await (async (arg) => {{ {code} }})(arg[1]);"
        return self._browser.run(code, [self._number, arg])
