"""Shared parts of the browser tests: pages, and a server with streams to watch and to disturb. The browsers are in engine_parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

import gevent
import pytest
from engine_parts import CHROMIUM, HERE, INITS, MODULES, Browser, Page, Profile, missing
from gevent.event import Event
from site_parts import Site
from support import PATIENCE, until

from pgbus_gevent.web.responses import STREAM_HEADERS

__all__ = [
    "CHROMIUM", "HERE", "LIBRARIES", "MODULES", "Browser", "Front", "Page", "Profile",
    "element", "missing", "profile", "publish", "says", "status",
]  # fmt: skip

LIBRARIES = {
    "/lib/turbo.js": MODULES / "@hotwired/turbo/dist/turbo.es2017-esm.js",
    "/lib/htmx.js": MODULES / "htmx.org/dist/htmx.min.js",
    "/lib/hx-sse.js": MODULES / "htmx.org/dist/ext/hx-sse.min.js",
    "/lib/htmx-2.js": MODULES / "htmx-2/dist/htmx.min.js",
    "/lib/htmx-2-sse.js": MODULES / "htmx-ext-sse/dist/sse.min.js",
    # Datastar 1.0.1. npm has no Datastar 1, so it is from the wheel of StarHTML, which changes two things in it: how it finds
    # elements in shadow trees, and clicks outside of an element. Its client of event streams is unchanged.
    "/lib/datastar.js": HERE / "wheels/starhtml/static/js/datastar-core.js",
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
  // Not all drivers tell of errors.
  for (const name of ["error", "unhandledrejection"])
    addEventListener(name, ({ reason, message }) => navigator.sendBeacon("/failed", `${reason ?? message}`));
</script>
HEAD
<script type="module" src="/pgbus/pgbus.js"></script>
<body>
BODY
"""


needs_datastar = pytest.mark.skipif(
    not LIBRARIES["/lib/datastar.js"].exists(), reason="Datastar is not installed: .venv/bin/nox -s browser"
)


def element(stream: str, attributes: str = "") -> str:
    return f'<pgbus-stream-source id="source" src="/pgbus/streams/{stream}" {attributes}></pgbus-stream-source>'


def publish(site: Site, stream: str, *data: str, event: str | None = None) -> list[int]:
    return [site.bus.stream(stream).broadcast(text, event=event) or 0 for text in data]


class Front:
    """A server in front of a site: it serves pages, records the streams that are requested, and can disturb them.

    ``intercept(environ, start_response)`` is called for each connection to a stream; None lets it through. ``heads`` has the
    HEAD requests for streams. A path in ``gates`` is answered once its event is set. ``failures`` has the errors of scripts on
    the pages.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.streams = site.app
        self.pages: dict[str, str] = {}
        self.asked: list[str] = []
        self.heads: list[str] = []
        self.gates: dict[str, Event] = {}
        self.failures: list[str] = []
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
        until(lambda: self.live == count, f"{count} open streams")

    @contextmanager
    def standing_still(self, page: Page) -> Iterator[None]:
        """Block the thread of a tab, as an alert does. The tab handles no event meanwhile."""
        self.gates["/held"] = gate = Event()
        # WebKit ends a request after ten seconds, and needs a moment to answer the call that starts this.
        ask = "const ask = new XMLHttpRequest(); ask.open('GET', '/held', false); ask.send(); return;"
        ask = f"for (let n = 0; n < 12; n++) try {{ {ask} }} catch {{}}"
        page.eval(f"void setTimeout(() => {{ {ask} }}, 300)")
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

    @contextmanager
    def away(self, cut: Callable[[], None]) -> Iterator[None]:
        """Cut all connections, and let the next ones wait until the end of the block. It begins once one is waiting."""
        before, gate = len(self.asked), Event()

        def wait(environ: Any, start_response: Any) -> None:
            gate.wait(3 * PATIENCE)

        original, self.intercept = self.intercept, wait
        try:
            cut()
            until(lambda: len(self.asked) > before, "a client connects again")
            yield
        finally:
            self.intercept = original
            gate.set()

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
            page = _with_init(self.pages[path], environ["QUERY_STRING"])
            return _whole(start_response, "text/html; charset=utf-8", page.encode())
        if path == "/failed":
            self.failures.append(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode())
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


def _with_init(page: str, query: str) -> str:
    """Return the page with the script that ``init`` in the query names, before all others."""
    number = parse_qs(query).get("init")
    if number is None:
        return page
    doctype, _, rest = page.partition("\n")
    return f"{doctype}\n<script>{INITS[int(number[0])]}</script>\n{rest}"


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


def close_idle(site: Site) -> None:
    """Close the idle connections of a browser whose tabs are closed. Only Chromium does so itself."""
    gevent.killall([*site.server.idle, *site.server.new])


@contextmanager
def profile(browser: Browser, front: Front) -> Iterator[Profile]:
    """A profile for one test, in which no script may fail."""
    found = Profile(browser, front.site.url)
    try:
        yield found
        assert found.errors == [], found.errors
        assert front.failures == [], front.failures
    finally:
        found.close()
        close_idle(front.site)
