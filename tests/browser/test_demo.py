"""The demo's two pages in a real browser."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from typing import Any

import gevent
import pytest
from browser_fixtures import PATIENT
from browser_parts import Browser, Page, Profile, close_idle, missing
from demo_parts import running_demo
from gevent.event import Event
from page_shape_parts import check_fit, listen, spoken, tab_through
from site_parts import Site
from support import holds, until

from pgbus_gevent import Bus
from pgbus_gevent.demo.answers import TOPICS, Writer
from pgbus_gevent.demo.departures import make_app
from pgbus_gevent.testing.databases import TestDatabases

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

AWAY = Bus("postgresql://127.0.0.1:1/nothing?connect_timeout=1", secret="a secret for tests alone", migrate=False)
OPEN = "document.getElementById('connection').dataset.state === 'open'"
WATCH = "window.broken = []; addEventListener('securitypolicyviolation', (e) => broken.push(e.blockedURI))"


@pytest.fixture(scope="module")
def site(pgbus_databases: TestDatabases) -> Iterator[Site]:
    with running_demo(pgbus_databases.make(), **PATIENT, presence_grace=0.5) as site:
        yield site


@contextmanager
def visiting(browser: Browser, site: Site) -> Iterator[Profile]:
    """Open a visitor's browser. No script may fail in it."""
    found = Profile(browser, site.url)
    try:
        yield found
        assert found.errors == []
    finally:
        found.close()


@pytest.fixture
def visitor(browser: Browser, site: Site) -> Iterator[Profile]:
    with visiting(browser, site) as found:
        yield found
    until(lambda: not (site.instance.registry or site.server.idle or site.server.new), "its connections are gone")


@pytest.fixture
def other(browser: Browser, site: Site) -> Iterator[Profile]:
    """The browser of another visitor."""
    with visiting(browser, site) as found:
        yield found


def arrive(visitor: Profile, path: str) -> Page:
    """Open one of the pages in a tab, and wait until it is live."""
    page = visitor.open(path, init=WATCH)
    page.until(OPEN, "it is live")
    return page


@pytest.fixture
def lab(visitor: Profile) -> Page:
    page = arrive(visitor, "/lab")
    page.until("document.querySelector('#bob .state').dataset.state === 'open'", "Bob is live")
    return page


def number(page: Page, id: str) -> int:
    return int(page.eval(f"Number(document.getElementById('{id}').textContent.replace(/\\D/g, ''))"))


def say(page: Page, text: str, *, audience: str = "", quiet: bool = False) -> int:
    """Publish by the form, and return the id that it shows."""
    fill = """([text, audience, quiet]) => {
      const form = document.getElementById("publish");
      form.elements.text.value = text;
      for (const choice of form.elements.audience) choice.checked = choice.value === audience;
      form.elements.quiet.checked = quiet;
      document.querySelector("#publish button").click();
    }"""
    page.eval(fill, [text, audience, quiet])
    page.until("document.getElementById('publish').elements.text.value === ''", "it is published")
    return int(page.eval("document.getElementById('sql').textContent.split('-- ')[1]"))


def feed(page: Page, user: str, kind: str = "") -> list[Any]:
    """Return the texts in a feed, or those of one kind."""
    return list(page.eval(f"[...document.querySelectorAll('#{user} li[data-id]{kind} p')].map((p) => p.textContent)"))


def until_shown(page: Page, user: str, text: str) -> None:
    until(lambda: text in feed(page, user), f"{user} has {text!r}")


def click(page: Page, selector: str) -> None:
    page.eval("(selector) => document.querySelector(selector).click()", selector)


def wait_for_the_answer(lab: Page) -> None:
    """Wait until no answer is being written: a visit begins one if there is none to show."""
    lab.until(
        "document.getElementById('words').className === '' && document.querySelector('#words span')", "it is whole"
    )


def hold_the_clock(site: Site, lease: str) -> None:
    with site.bus.transaction() as cursor:
        cursor.execute(f"update demo_clock set (owner, leased_until) = row({lease})")


def begin_anew(site: Site) -> None:
    """Fill the board, which may have come to its night during other tests."""
    with site.bus.transaction() as cursor:
        cursor.execute("update demo_clock set simulated = null")


# the board -----------------------------------------------------------------------------------------------------------


def test_the_board_is_live_and_a_reload_shows_the_committed_state(visitor: Profile, site: Site) -> None:
    page = arrive(visitor, "/")
    begin_anew(site)
    page.until("document.querySelectorAll('#rows tr:not([hidden])').length > 5", "flights are there")
    page.until("Number(document.getElementById('messages').textContent) > 3", "flights move")
    page.do("await page.reload()")
    page.until(OPEN)
    page.until("Number(document.getElementById('messages').textContent) > 3", "flights move")
    hold_the_clock(site, "'the test', now() + interval '1 min'")
    head = site.bus.stream("demo:departures").last_id()
    until(lambda: number(page, "last-id") == head, "it has everything")
    same = """async () => {
      const answer = await (await fetch("demo/board.json")).json();
      const rows = new Map(answer.rows.map((row) => [String(row.id), `${row.status} ${row.expected}`]));
      const shown = [...document.querySelectorAll("#rows tr")].map(({ dataset }) => dataset);
      return shown.length && shown.every(({ id, status, expected }) => rows.get(id) === `${status} ${expected}`);
    }"""
    until(lambda: page.eval(f"({same})()"), "the messages have led to the committed state of the board")
    hold_the_clock(site, "null, null")
    assert page.eval("broken") == []


def test_the_board_shows_a_message_to_its_stream(visitor: Profile, site: Site) -> None:
    site.bus.stream("demo:hello").broadcast("before")
    page = arrive(visitor, "/")
    site.bus.stream("demo:hello").broadcast("<i>now</i>")
    texts = "[...document.querySelectorAll('#greetings span')].map((span) => span.textContent)"
    until(lambda: page.eval(texts)[:2] == ["<i>now</i>", "before"], "both are there, the newest first")


def greetings(page: Page) -> list[str]:
    return list(page.eval("[...document.querySelectorAll('#greetings span')].map((span) => span.textContent)"))


@pytest.mark.parametrize("name", ["sql", "program", "http", "follow"])
def test_a_copied_command_does_in_a_shell_what_it_says(
    visitor: Profile, browser: Browser, site: Site, tmp_path: Path, name: str
) -> None:
    page = arrive(visitor, "/")
    page.do(f"await page.context().grantPermissions(['clipboard-read', 'clipboard-write'], {{ origin: '{site.url}' }})")
    click(page, f"#command-{name} [data-copy]")
    page.until(f"document.querySelector('#command-{name} b').textContent === 'Copied'")
    command = page.eval("navigator.clipboard.readText()")
    assert command == page.eval(f"document.querySelector('#command-{name} code').textContent")
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PGBUS_", "DATABASE_"))}
    shell: Any = Popen(["bash", "-c", command], stdout=PIPE, stderr=STDOUT, cwd=tmp_path, env=own)
    try:
        if name == "follow":
            begin_anew(site)
            with gevent.Timeout(60):
                while b"event: flight" not in shell.stdout.readline():
                    pass
        else:
            until(lambda: shell.poll() is not None, "it ends", 60)
            assert shell.returncode == 0, shell.stdout.read()
            word = {"sql": "SQL", "program": "the shell", "http": "curl"}[name]
            until(lambda: greetings(page)[:1] == [f"Hello from {word}"], "it is on the page")
    finally:
        shell.kill()
        shell.wait(10)
        shell.stdout.close()


def test_a_visitor_publishes_with_the_keyboard_and_sees_how_long_it_took(visitor: Profile) -> None:
    page = arrive(visitor, "/")
    page.do(
        "await page.focus('#say input'); await page.keyboard.type('<b>mine</b>'); await page.keyboard.press('Enter')"
    )
    until(lambda: greetings(page)[:1] == ["<b>mine</b>"], "it is there")
    page.until("/^Published. It was on this screen \\d+ ms after/.test(document.getElementById('said').textContent)")
    page.until("/^\\d+ ms$/.test(document.querySelector('#greetings time').textContent)")
    assert page.eval("document.querySelector('#say input').value") == ""
    page.do("await page.fill('#say input', 'x'.repeat(400)); await page.keyboard.press('Enter')")
    until(lambda: greetings(page)[:1] == ["x" * 280], "no more than is allowed")


def test_what_cannot_be_published_is_said(visitor: Profile) -> None:
    page = arrive(visitor, "/")
    page.eval("void (document.querySelector('#say input').maxLength = 500)")
    page.do("await page.fill('#say input', 'x'.repeat(300)); await page.keyboard.press('Enter')")
    page.until("document.getElementById('said').textContent.startsWith('Not published: the text must have')")
    assert page.eval("document.querySelector('#say input').value.length") == 300, "what was typed is kept"


def test_the_board_shows_the_milliseconds_from_the_commit_to_the_screen(visitor: Profile, site: Site) -> None:
    """The figure is right although the clock of the browser is wrong by an hour."""
    wrong = "{ const now = performance.timeOrigin + 3_600_000; Object.defineProperty(performance, 'timeOrigin', { value: now }); }"
    page = visitor.open("/", init=wrong)
    page.until(OPEN)
    begin_anew(site)
    figure = "document.getElementById('latency').textContent"
    page.until(f"/^(\\d+ ms ± \\d+|under \\d+ ms)$/.test({figure})")
    assert max(page.eval(f"{figure}.match(/\\d+/g).map(Number)")) < 60_000, "neither an hour nor a day"
    assert "clock" in page.eval("document.getElementById('latency').parentElement.title")


def test_a_board_that_is_held_stands_still_and_misses_nothing(visitor: Profile, site: Site) -> None:
    page = arrive(visitor, "/")
    begin_anew(site)
    page.until("document.querySelectorAll('#rows tr').length > 5")
    page.do("await page.emulateMedia({ reducedMotion: 'reduce' })")  # no flap is turning still
    settled = (
        "[...document.querySelectorAll('.flap[data-text]')].every((flap) => flap.dataset.text === flap.textContent)"
    )
    page.until(settled)
    click(page, "#hold")
    rows = page.eval("document.getElementById('rows').innerHTML")
    before = number(page, "messages")
    until(lambda: number(page, "messages") > before + 3, "messages come")
    page.until("/^[1-9]\\d* waiting$/.test(document.getElementById('held').textContent)")
    assert page.eval("document.getElementById('rows').innerHTML") == rows
    click(page, "#hold")
    page.until(f"document.getElementById('rows').innerHTML !== {json.dumps(rows)}", "it goes on")


@pytest.mark.parametrize("path", ["/", "/lab", "/docs/README.md"])
def test_a_page_is_light_by_day_dark_by_night_and_fits_any_window(visitor: Profile, path: str) -> None:
    page = visitor.open(path, init=WATCH)
    if "docs" not in path:
        page.until(OPEN, "it is live")
    brightness = "Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number))"
    for scheme in ("light", "dark"):
        page.do(f"await page.emulateMedia({{ colorScheme: '{scheme}' }})")
        assert (page.eval(brightness) > 128) is (scheme == "light")
    check_fit(page)
    hosts = "new Set(performance.getEntriesByType('resource').map(({ name }) => new URL(name).host))"
    assert page.eval(f"[...{hosts}].join()") == page.eval("location.host")
    assert page.eval("broken") == []


def test_the_pages_lead_to_the_documentation_the_lab_and_the_console(visitor: Profile, site: Site) -> None:
    page = arrive(visitor, "/")
    links = page.eval("[...document.querySelectorAll('.about a')].map(({ textContent, href }) => [textContent, href])")
    assert [name for name, _ in links] == ["Docs", "Lab", "Console"]
    status = "async (url) => { const answer = await fetch(url); return [answer.status, (await answer.text()).length > 200]; }"
    assert [page.eval(status, href) for _, href in links[:2]] == [[200, True]] * 2
    assert page.eval(status, links[2][1])[0] in (200, 401, 403), "it is there, for those who have the token"


# without a mouse, without colours, without a screen ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "reached"),
    [
        ("/", ["Docs", "hold", "more", "text", "Publish", "Copy the command: SQL"]),
        ("/lab", ["Docs", "text", "event", "audience", "quiet", "cut", "cut-for", "reload"]),
    ],
)
def test_everything_can_be_reached_by_keyboard_and_the_focus_is_seen(
    visitor: Profile, site: Site, path: str, reached: list[str]
) -> None:
    page = arrive(visitor, path)
    if path == "/":
        begin_anew(site)
        page.until("!document.getElementById('more').hidden")
    names = tab_through(page)
    assert [name for name in reached if name not in names] == [], names


def test_the_focus_stays_where_the_visitor_is(lab: Page, visitor: Profile, site: Site) -> None:
    """A button that cannot be used for the moment keeps the focus."""
    wait_for_the_answer(lab)
    for button in ("#cut", "[data-topic=sea]"):
        lab.do(f"await page.focus('{button}'); await page.keyboard.press('Enter')")
        assert lab.eval(f"document.activeElement.matches('{button}')")
    lab.do("await page.focus('#cut'); await page.keyboard.press('Enter')")
    lab.until("!document.getElementById('verdict').hidden")
    assert lab.eval("document.activeElement.id") == "cut"
    lab.until("document.querySelector('[data-topic=sea]').ariaDisabled === 'true'", "the answer is being written")
    board = arrive(visitor, "/")
    begin_anew(site)
    board.until("!document.getElementById('more').hidden")
    board.do("await page.focus('#more'); await page.keyboard.press('Enter')")
    assert board.eval("document.activeElement.id") == "board-title"


def test_without_colours_a_choice_is_seen_by_its_border(lab: Page, visitor: Profile) -> None:
    board = arrive(visitor, "/")
    look = """([one, other]) => [one, other].map((selector) => {
      const { borderTopColor, borderTopWidth, outlineStyle } = getComputedStyle(document.querySelector(selector));
      return [borderTopColor, borderTopWidth, outlineStyle].join();
    })"""
    for page, pair in (
        (board, ["[data-airport=''][aria-pressed=true]", "[data-airport='JFK']"]),
        (board, [".pages [aria-current]", ".pages a:not([aria-current])"]),
        (lab, [".choice input:checked + span", ".choice input:not(:checked) + span"]),
    ):
        page.do("await page.emulateMedia({ forcedColors: 'active' })")
        one, other = page.eval(look, pair)
        assert one != other, pair
    borders = "[...document.querySelectorAll('button')].map((one) => getComputedStyle(one).borderTopStyle).join()"
    for page in (board, lab):
        assert set(page.eval(borders).split(",")) == {"solid"}, "each button has an edge"


def told(page: Page, pattern: str) -> int:
    """Return of how many messages a page has told screen readers: each sentence is of one message, or has their number."""
    return sum(int(more or 1) for _, sentence in spoken(page) for _, more in re.findall(pattern, sentence))


def test_screen_readers_are_told_a_summary_and_not_each_change(lab: Page, visitor: Profile, site: Site) -> None:
    board = arrive(visitor, "/")
    pages = (board, lab)
    wait_for_the_answer(lab)
    for page in pages:
        listen(page)
    for n in range(20):
        for name in ("hello", "lab"):
            site.bus.stream(f"demo:{name}").broadcast(f"number {n}")
    for page in pages:
        page.until("document.body.textContent.includes('number 19')")
    until(lambda: told(board, r"New message: ()|(\d+) new messages\.") == 20, "it is told of all")
    until(lambda: told(lab, r"Ada: ()|Ada got (\d+) messages\.") == 20, "it is told of all that Ada got")
    until(lambda: told(lab, r"Bob: ()|Bob got (\d+) messages\.") == 20, "it is told of all that Bob got")
    for page in pages:
        times = [at for at, _ in spoken(page)]
        # However slow this machine is, the pauses are never shorter.
        assert all(later - earlier > 4000 for earlier, later in pairwise(times)), spoken(page)


# the lab -------------------------------------------------------------------------------------------------------------


def test_a_published_message_appears_with_its_id(lab: Page, site: Site) -> None:
    id = say(lab, "<b>hello</b>")
    for user in ("ada", "bob"):
        until_shown(lab, user, "<b>hello</b>")
        assert lab.eval(f"document.querySelector('#{user} [data-id=\"{id}\"] .id').textContent") == f"#{id}"
    other = site.bus.stream("demo:lab").broadcast("from elsewhere")
    until_shown(lab, "ada", "from elsewhere")
    assert number(lab, "last-id") == other


def test_messages_during_a_cut_are_replayed_in_order(lab: Page) -> None:
    say(lab, "before")
    until_shown(lab, "ada", "before")
    click(lab, "#cut")
    lab.until("document.getElementById('connection').dataset.state === 'cut'")
    say(lab, "one")
    say(lab, "two")
    until_shown(lab, "bob", "two")
    assert not {"one", "two"} & set(feed(lab, "ada"))
    click(lab, "#cut")
    lab.until("!document.getElementById('verdict').hidden", "there is a verdict")
    assert lab.eval("document.getElementById('verdict').textContent") == "2 missed, 2 replayed, in order. Live again."
    say(lab, "three")
    until_shown(lab, "ada", "three")
    assert feed(lab, "ada", ".replayed") == ["one", "two"]
    assert feed(lab, "ada")[-4:] == ["before", "one", "two", "three"]


def test_a_cut_connection_recovers_by_itself(lab: Page) -> None:
    # The cut lasts five seconds, or longer, until the message is published.
    lab.eval(
        """{
          const later = setTimeout;
          const held = (act) => function go() { window.said ? act() : later(go, 20); };
          window.setTimeout = (act, ms) => later(ms === 5000 ? held(act) : act, ms);
        }"""
    )
    click(lab, "#cut-for")
    say(lab, "meanwhile")
    lab.eval("void (window.said = true)")
    lab.until("!document.getElementById('verdict').hidden", "there is a verdict")
    assert feed(lab, "ada", ".replayed") == ["meanwhile"]


def test_bob_does_not_see_messages_for_admins(lab: Page) -> None:
    id = say(lab, "for admins", audience="admins")
    say(lab, "for all")
    until_shown(lab, "ada", "for admins")
    until_shown(lab, "bob", "for all")
    assert "for admins" not in feed(lab, "bob")
    # The page shows only that there was a message, not the message.
    assert lab.eval(f"document.querySelector('#bob [data-id=\"{id}\"]')") is None
    assert lab.eval("document.querySelectorAll('#bob .ghost').length") == 1


def test_a_browser_without_an_echo_gets_none_live_and_none_later(visitor: Profile, other: Profile, lab: Page) -> None:
    elsewhere = arrive(other, "/lab")
    say(lab, "no echo", quiet=True)
    say(lab, "echo")
    until_shown(lab, "ada", "echo")
    until_shown(lab, "bob", "no echo")
    until_shown(elsewhere, "ada", "no echo")
    assert "no echo" not in feed(lab, "ada")
    lab.do("await page.reload()")
    until_shown(lab, "ada", "echo")
    assert "no echo" not in feed(lab, "ada")
    assert "no echo" not in feed(arrive(visitor, "/lab"), "ada")


def test_the_browsers_that_are_present_are_counted(
    visitor: Profile, other: Profile, lab: Page, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = "document.getElementById('tabs').textContent"
    lab.until(f"{here} === '1 visitor here'")
    arrive(visitor, "/").until(f"{here} === '1 visitor here'", "tabs of one browser count once")
    board = arrive(other, "/")
    lab.until(f"{here} === '2 visitors here'")
    board.until(f"{here} === '2 visitors here'")
    names = "[...document.querySelectorAll('#members li')].map((item) => item.textContent).join()"
    before = lab.eval(names)
    note = f"new MutationObserver(() => lists.push({names})).observe(document.getElementById('members'), {{ childList: true }})"
    lab.eval(f"(window.lists = [], void {note})")
    with monkeypatch.context() as patch:
        # However long the reload takes here. The lease of the connection that the reload ends lasts as long, so not for ever.
        patch.setattr(site.instance.presence, "_grace", 10.0)
        board.do("await page.reload()")
        board.until(OPEN)
        holds(lambda: lab.eval(f"lists.every((list) => list === {before!r})"), "a reload is no event", 1.0)
    board.close()
    lab.until(f"{here} === '1 visitor here'", timeout=40)


def test_the_list_of_visitors_is_asked_for_again_if_it_could_not_be_had(visitor: Profile) -> None:
    init = """
      const { fetch: real } = window;
      window.asked = 0;
      window.fetch = (url, options) =>
        String(url).includes("here.json") && !asked++ ? Promise.resolve(new Response("", { status: 503 })) : real(url, options);
    """
    page = visitor.open("/lab", init=init)
    page.until("document.getElementById('tabs').textContent === '1 visitor here'")
    assert page.eval("asked") > 1


@pytest.mark.parametrize("path", ["/", "/lab"])
def test_eight_tabs_are_all_live_and_the_ninth_loads(visitor: Profile, site: Site, path: str) -> None:
    """Over HTTP/1.1, a browser opens at most six connections to an origin."""
    first = arrive(visitor, path)
    if path == "/":
        hold_the_clock(
            site, "'the test', now() + interval '10 min'"
        )  # eight boards in motion would occupy this machine
    try:
        pages = [first, *(arrive(visitor, path) for _ in range(7))]
        site.bus.stream("demo:lab" if path == "/lab" else "demo:hello").broadcast("to all eight")
        for page in pages:
            page.until("document.body.textContent.includes('to all eight')")
        assert first.eval("fetch('demo/board.json').then(({ status }) => status)") == 200
        connections = 2 if path == "/lab" else 1
        until(lambda: len(site.instance.registry) == connections, f"all eight have {connections} together")
    finally:
        if path == "/":
            hold_the_clock(site, "null, null")


def test_the_demo_comes_back_when_its_connections_are_lost(lab: Page, site: Site) -> None:
    # It does not wait for long, so the page notes its states.
    lab.eval(
        """{
          window.states = [];
          const connection = document.getElementById("connection");
          const note = new MutationObserver(() => states.push(connection.dataset.state));
          note.observe(connection, { attributeFilter: ["data-state"] });
        }"""
    )
    for client in site.instance.registry.clients():
        site.instance.clients.end(client, "error")
    lab.until("states[0] === 'waiting' && states.at(-1) === 'open'", "it has waited, and is open again")
    lab.until(OPEN)
    say(lab, "back")
    for user in ("ada", "bob"):
        until_shown(lab, user, "back")


def test_an_answer_continues_after_a_reload_without_a_gap(lab: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    reloaded = Event()
    step, numbers = Writer.step, count()

    def step_but_wait_for_the_reload(writer: Writer) -> bool:
        if next(numbers) == 20:
            reloaded.wait(60)
        return step(writer)

    wait_for_the_answer(lab)
    monkeypatch.setattr(Writer, "step", step_but_wait_for_the_reload)
    click(lab, "[data-topic=woods]")
    lab.until(
        "document.querySelector('#words.writing') && document.querySelectorAll('#words span').length > 10", "words come"
    )
    lab.do("await page.reload()")
    lab.until(OPEN)
    lab.until("document.querySelector('#words.writing') !== null", "it is being written still")
    reloaded.set()
    lab.until(f"document.querySelectorAll('#words span').length === {len(TOPICS['woods'].words)}", "it is whole")
    assert lab.eval("document.getElementById('words').textContent.trim()") == " ".join(TOPICS["woods"].words)
    assert lab.eval("document.querySelectorAll('#words .again').length") > 10
    lab.until("document.querySelector('#words.writing') === null", "it has ended")


def test_the_page_without_a_database_waits_and_shows_the_board_once_there_is_one(browser: Browser, site: Site) -> None:
    app, site.app = site.app, make_app(AWAY)
    try:
        with visiting(browser, site) as visitor:
            page = visitor.open("/")
            page.until("document.querySelector('h1').textContent === 'The board is dark'")
            site.app = app
            page.until(OPEN.replace(").dataset", ")?.dataset"), "the board is shown")
    finally:
        site.app = app


@pytest.mark.every_engine
@pytest.mark.parametrize("path", ["/", "/lab"])
def test_a_page_is_live_in_each_engine(browser: Browser, site: Site, path: str) -> None:
    try:
        with visiting(browser, site) as visitor:
            page = visitor.open(path)
            page.until(OPEN, "it is live")
            page.until("!/\\b(undefined|NaN|null)\\b/.test(document.body.innerText)", "all values are shown")
    finally:
        close_idle(site)
