"""Shared parts of the browser tests: a real Chromium, its pages, and a server with streams to watch and to disturb."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from site_parts import Site
from support import PATIENCE, until

from pgbus_gevent.web.responses import STREAM_HEADERS

HERE = Path(__file__).parents[1] / "browser"
MODULES = HERE / "node_modules"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

LIBRARIES = {
    "/lib/turbo.js": MODULES / "@hotwired/turbo/dist/turbo.es2017-esm.js",
    "/lib/htmx.js": MODULES / "htmx.org/dist/htmx.min.js",
    "/lib/htmx-sse.js": MODULES / "htmx-ext-sse/dist/sse.min.js",
}

PAGE = """<!doctype html>
<meta charset="utf-8">
<link rel="icon" href="data:,">
<title>A page</title>
<script>
  const seen = [];
  // A tab takes the connection over if the leading one has not answered within three seconds, which it may not on a busy machine.
  let patient = true;
  {
    const { setTimeout: start } = window;
    window.setTimeout = (act, ms, ...more) => start(act, patient && ms === 3000 ? 30_000 : ms, ...more);
  }
  for (const name of ["pgbus:open", "pgbus:message", "pgbus:gap", "pgbus:close", "message", "order.paid"])
    document.addEventListener(name, (event) =>
      seen.push([name, event.detail, event.target.id, event.target.state, performance.now()]));
</script>
HEAD
<script type="module" src="/pgbus/pgbus.js"></script>
<body>
BODY
"""


def missing() -> str:
    """Return why browser tests cannot run here, or an empty text if they can."""
    if CHROMIUM is None:
        return "no Chromium is installed: apt-get install chromium"
    if shutil.which("node") is None:
        return "node is not installed: apt-get install nodejs npm"
    if not (MODULES / "playwright-core").exists():
        return "the libraries are not installed: npm ci --prefix tests/browser"
    return ""


def element(stream: str, attributes: str = "") -> str:
    return f'<pgbus-stream-source id="source" src="/pgbus/streams/{stream}" {attributes}></pgbus-stream-source>'


def publish(site: Site, stream: str, *data: str, event: str | None = None) -> list[int]:
    return [site.bus.stream(stream).broadcast(text, event=event) or 0 for text in data]


class Browser:
    """A Chromium, driven through a separate program. ``command`` starts that, if it is to run elsewhere or with more flags."""

    def __init__(self, command: list[str] | None = None) -> None:
        self._process: Any = subprocess.Popen(
            command or ["node", "driver.mjs", str(CHROMIUM)],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._number = 0
        self._read(0)

    def run(self, code: str, arg: Any = None) -> Any:
        """Run a function of ``(browser, kept, arg)`` with this body, and return its result."""
        self._number += 1
        self._process.stdin.write(json.dumps({"id": self._number, "code": code, "arg": arg}) + "\n")
        self._process.stdin.flush()
        return self._read(self._number)

    def _read(self, number: int) -> Any:
        with gevent.Timeout(PATIENCE * 2, AssertionError("the browser does not answer")):
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
        """Open a page in a new tab. ``init`` runs before any script of the page."""
        number = self._browser.run(
            """
            const { context, errors } = kept.profiles[arg.profile];
            const page = await context.newPage();
            page.setDefaultTimeout(35_000);
            page.on("pageerror", (error) => errors.push(String(error)));
            if (arg.init) await page.addInitScript(arg.init);
            await page.goto(arg.url);
            return kept.pages.push(page) - 1;
            """,
            {"url": self._url + path, "init": init, "profile": self._number},
        )
        return Page(self._browser, number)

    def offline(self, off: bool) -> None:
        self._browser.run("await kept.profiles[arg[0]].context.setOffline(arg[1])", [self._number, off])

    def cookie(self, name: str, value: str) -> None:
        """Set a cookie of the site."""
        cookie = {"name": name, "value": value, "url": self._url}
        self._browser.run("await kept.profiles[arg[0]].context.addCookies([arg[1]])", [self._number, cookie])

    @property
    def errors(self) -> list[str]:
        """Return the errors of the scripts on the pages."""
        return list(self._browser.run("return kept.profiles[arg].errors", self._number))

    def close(self) -> None:
        self._browser.run("await kept.profiles[arg].context.close()", self._number)


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

    def do(self, code: str) -> Any:
        """Let the tab itself do something. ``page`` in ``code`` is Playwright's."""
        return self._browser.run(f"const page = kept.pages[arg]; {code}", self._number)

    def close(self) -> None:
        self.do("await page.close()")


class Front:
    """A server in front of a site: it serves pages, records the streams that are requested, and can disturb them.

    ``intercept(environ, start_response)`` is called for each connection to a stream; None lets it through. ``heads`` has the
    HEAD requests for streams. A path in ``gates`` is answered once its event is set.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.streams = site.app
        self.pages: dict[str, str] = {}
        self.asked: list[str] = []
        self.heads: list[str] = []
        self.gates: dict[str, Event] = {}
        self.waiting = 0
        self.intercept: Callable[[Any, Any], Iterable[bytes] | None] = lambda environ, start_response: None

    def page(self, body: str, head: str = "", path: str = "/page") -> str:
        """Add a page, and return its path."""
        self.pages[path] = PAGE.replace("HEAD", head).replace("BODY", body)
        return path

    @property
    def live(self) -> int:
        """Return how many streams are open."""
        return len(self.site.instance.registry)

    def until_live(self, count: int) -> None:
        until(lambda: self.live == count, f"{count} streams are open, not {self.live}")

    @contextmanager
    def standing_still(self, page: Page) -> Iterator[None]:
        """Block the thread of a tab, as an alert does. The tab handles no event meanwhile."""
        self.gates["/held"] = gate = Event()
        ask = "const ask = new XMLHttpRequest(); ask.open('GET', '/held', false); ask.send();"
        page.eval(f"void setTimeout(() => {{ {ask} }})")
        try:
            until(lambda: self.waiting, "the tab is blocked")
            yield
        finally:
            gate.set()

    @property
    def followed(self) -> set[str]:
        """Return the streams that have a connection."""
        return {each.log.name for client in self.site.instance.registry.clients() for each in client.subscriptions}

    def drop(self) -> None:
        """End all connections without a farewell."""
        for client in self.site.instance.registry.clients():
            self.site.instance.clients.end(client, "error")

    def end(self, reason: str, retry: float | None = None) -> None:
        """End all connections, with a farewell."""
        for client in self.site.instance.registry.clients():
            self.site.instance.clients.end(client, reason, retry)

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path.startswith("/pgbus/streams") and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._stream(environ, start_response)
        if path.startswith("/pgbus"):
            return self.streams(environ, start_response)  # type: ignore[no-any-return]
        if path in self.gates:
            self.waiting += 1
            self.gates[path].wait(3 * PATIENCE)
            self.waiting -= 1
        if path in LIBRARIES:
            return _whole(start_response, "text/javascript", LIBRARIES[path].read_bytes())
        if path in self.pages:
            return _whole(start_response, "text/html; charset=utf-8", self.pages[path].encode())
        return _whole(start_response, "text/plain", b"hello")

    def _stream(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        query = environ["QUERY_STRING"]
        asks = environ["REQUEST_METHOD"] == "HEAD"
        (self.heads if asks else self.asked).append(environ["PATH_INFO"] + ("?" + query if query else ""))
        if asks:
            return self.streams(environ, start_response)  # type: ignore[no-any-return]
        answer = self.intercept(environ, start_response)
        if answer is not None:
            return answer
        return self.streams(environ, start_response)  # type: ignore[no-any-return]


def _whole(start_response: Any, kind: str, body: bytes) -> list[bytes]:
    start_response("200 OK", [("content-type", kind), ("content-length", str(len(body)))])
    return [body]


def status(
    code: str, *headers: tuple[str, str], times: int = 1_000_000
) -> Callable[[Any, Any], Iterable[bytes] | None]:
    """Return an ``intercept`` that answers the first ``times`` requests with a status."""
    left = [times]

    def intercept(environ: Any, start_response: Any) -> Iterable[bytes] | None:
        left[0] -= 1
        if left[0] < 0:
            return None
        start_response(code, [("content-type", "text/plain"), ("content-length", "0"), *headers])
        return [b""]

    return intercept


def says(
    *chunks: bytes, silence: float = 0.0, over: Event | None = None
) -> Callable[[Any, Any], Iterable[bytes] | None]:
    """Return an ``intercept`` that answers the first request with these bytes, chunk by chunk.

    It ends after ``silence`` seconds, or once ``over`` is set.
    """
    left = [1]

    def body() -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            gevent.sleep(0.02)
        (over or Event()).wait(silence)

    def intercept(environ: Any, start_response: Any) -> Iterable[bytes] | None:
        left[0] -= 1
        if left[0] < 0:
            return None
        start_response("200 OK", [*STREAM_HEADERS, ("connection", "close")])
        return body()

    return intercept


@contextmanager
def profile(browser: Browser, front: Front) -> Iterator[Profile]:
    """A profile for one test, in which no script may fail."""
    found = Profile(browser, front.site.url)
    try:
        yield found
        assert found.errors == []
    finally:
        found.close()
