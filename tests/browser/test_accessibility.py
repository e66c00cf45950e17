"""Everybody can use the pages of the package: by keyboard, at 400 %, with forced colours and wide spacing, with a screen reader."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from accessibility_parts import LIBRARY, Look, Subject, cookie_of, faults_of, written
from browser_fixtures import PATIENT
from browser_parts import Browser, Front, Profile, element, missing, publish
from demo_parts import running_demo
from page_parts import block_of
from raw_http import ask
from site_parts import Site

import pgbus_gevent
from pgbus_gevent.bus import Bus
from pgbus_gevent.demo.departures import make_app
from pgbus_gevent.testing.databases import TestDatabases

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.slow]

FORM = "application/x-www-form-urlencoded"
TOKEN = "operator-token-of-the-site"
LIVE = "document.getElementById('connection')?.dataset.state === 'open'"
numbers = count()


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_demo(pgbus_databases.make(), **PATIENT, operator_token=TOKEN) as site:
        yield site


def subject(name: str, site: Site) -> Subject:
    """Return a page of the package by the name of its file."""

    def say(stream: str) -> None:
        site.bus.stream(stream).broadcast(f"message {next(numbers)}")

    found = {
        "console-login": Subject("/pgbus/console"),
        "console": Subject(
            "/pgbus/console",
            "document.getElementById('status')?.dataset.state === 'good'",
            lambda: say("demo:hello"),
            cookie_of(ask(site.port, "/pgbus/console/login", "POST", f"token={TOKEN}", Content_Type=FORM)),
        ),
        "departures": Subject(
            "/", f"{LIVE} && document.querySelectorAll('#rows tr').length > 5", lambda: say("demo:hello")
        ),
        "lab": Subject("/lab", LIVE, lambda: say("demo:lab")),
        "manual": Subject("/docs/docs/concepts/delivery.md"),
    }
    return found[name]


PAGES = ["console-login", "console", "departures", "lab", "manual"]


@pytest.mark.parametrize("name", PAGES)
def test_everybody_can_use_the_page(browser: Browser, site: Site, name: str) -> None:
    tabs = Profile(browser, site.url)
    try:
        faults = faults_of(tabs, subject(name, site))
        assert not faults, written(faults)
        assert tabs.errors == []
    finally:
        tabs.close()


def test_no_page_of_the_package_is_left_out() -> None:
    """A page is a file with an ``html`` element; the other templates are parts of pages."""
    files = Path(pgbus_gevent.__file__).parent.rglob("*.html")
    assert sorted(path.stem for path in files if "<html" in path.read_text(encoding="utf-8")) == sorted(PAGES)


def test_everybody_can_use_the_page_that_says_that_the_database_is_away(tabs: Profile, front: Front) -> None:
    bus = Bus("postgresql://127.0.0.1:1/nothing?connect_timeout=1", secret="a secret for tests alone", migrate=False)
    front.site.app = make_app(bus)
    faults = faults_of(tabs, Subject("/", "document.querySelector('h1').textContent === 'The board is dark'"))
    assert not faults, written(faults)


BAD = """
<style>
  body { margin: 0 } :focus-visible { outline: none } .bar { position: fixed; inset: 0 0 auto; height: 120px; background: #ddd }
  .tight { font-family: monospace; width: 6ch; overflow: hidden; white-space: nowrap } .wide { width: 700px }
  .moves { animation: moves 1s infinite } @keyframes moves { to { transform: translateX(9px) } } .plain button { all: unset }
</style>
<div class="bar">A bar that covers the page</div>
<div class="plain"><button></button><button aria-pressed="true">on</button> <button aria-pressed="false">off</button></div>
<p class="tight">abcdef</p><p class="wide">Wider than a phone</p><p class="moves">It moves</p>
<span onclick="void 0">no button</span>
<svg width="40" height="40"><path d="M0 20H40" fill="none" stroke="#eee"/></svg>
<ol aria-live="polite" id="log"></ol>
<script>addEventListener("pgbus:message", () => document.getElementById("log").append(document.createElement("li")))</script>
"""


def test_each_check_finds_a_fault_of_a_bad_page(tabs: Profile, front: Front, stream: str) -> None:
    path = front.page(f"{BAD}{element(stream)}")
    faults = faults_of(tabs, Subject(path, "source.state === 'open'", lambda: publish(front.site, stream, "news")))
    found = written(faults)
    for words in (
        "frame: 0 × main", "no control of the browser", "names: a button", "announcements: ol#log changes", "movement: p.moves",
        "axe, dark: button-name", "keyboard, light: focus on button", "no outline", "it is covered by div.bar",
        "looks like button", "nothing of svg", "text spacing: p.tight", "400 %: the page is 7",
    ):  # fmt: skip
        assert words in found, found


def test_the_summary_of_the_guide_is_calm(tabs: Profile, front: Front, stream: str) -> None:
    code = block_of("docs/guides/accessibility.md", "summary")
    quickly = "{ const often = setInterval; window.setInterval = (act, ms) => often(act, ms / 4); }"
    page = tabs.open(front.page(f"<main><h1>Orders</h1>{code}</main>{element(stream)}"), init=f"{quickly}\n{LIBRARY}")
    page.until_open()
    look = Look(page)
    assert look.chatter(lambda: publish(front.site, stream, "an order")) == []
    page.until("document.getElementById('summary').textContent.match(/^\\d+ new orders, \\d+ in all$/)")
