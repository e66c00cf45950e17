"""The element among foreign code. If that throws, removes elements or moves them, no message is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser_parts import Browser, Front, Profile, element, missing, publish, says, status
from gevent.event import Event
from support import until

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture
def tabs(browser: Browser, front: Front) -> Iterator[Profile]:
    """A profile in which scripts may fail. Each test says which errors it expects."""
    found = Profile(browser, front.site.url)
    try:
        yield found
    finally:
        found.close()
    front.until_live(0)


THROWING = {
    "htmx": "window.htmx = { config: {}, find: document.querySelector.bind(document), swap() { throw new Error('foreign'); } };",
    "Turbo": "window.Turbo = { renderStreamMessage() { throw new Error('foreign'); } };",
    "listener": "addEventListener('message', () => { throw new Error('foreign'); }, true);",
    "zone": """
        const { dispatchEvent } = EventTarget.prototype;
        EventTarget.prototype.dispatchEvent = function (event) {
          dispatchEvent.call(this, event);
          if (event.type === 'message') throw new Error('foreign');
        };
    """,
    "attribute": """
        const { setAttribute } = Element.prototype;
        Element.prototype.setAttribute = function (name, value) {
          setAttribute.call(this, name, value);
          if (name === 'since') throw new Error('foreign');
        };
    """,
    "observer": """
        new MutationObserver(() => { throw new Error('foreign'); }).observe(document, { subtree: true, attributes: true });
    """,
    "attribute of a part": """
        const { getAttribute } = Element.prototype;
        window.htmx = {};
        Element.prototype.getAttribute = function (name) {
          if (name === 'sse-swap') throw new Error('foreign');
          return getAttribute.call(this, name);
        };
    """,
    "handler of errors": """
        window.reportError = () => { throw new Error('foreign'); };
        window.Turbo = { renderStreamMessage() { throw new Error('other'); } };
    """,
    "no handler of errors": """
        delete window.reportError;
        window.Turbo = { renderStreamMessage() { throw new Error('foreign'); } };
    """,
}


@pytest.mark.parametrize("what", THROWING)
def test_an_exception_of_foreign_code_is_reported_and_loses_no_message(
    tabs: Profile, front: Front, stream: str, what: str
) -> None:
    inside = '<p sse-swap="message"></p></pg'
    path = front.page(element(stream).replace("></pg", f">{inside}"))
    pages = [tabs.open(path, init=THROWING[what]), tabs.open(path)]
    for page in pages:
        page.until_open()
    data = [f"<turbo-stream>{number}</turbo-stream>" for number in range(3)]
    publish(front.site, stream, *data)
    for page in pages:
        page.until_data(data)
        assert page.seen("pgbus:close") == []
        assert page.eval("seen.filter(([name]) => name === 'message').length") == 3
    until(lambda: "foreign" in "".join(tabs.errors), "it is reported")
    assert (front.live, len(front.asked)) == (1, 1)


def test_an_event_that_cannot_be_constructed_loses_no_message(tabs: Profile, front: Front, stream: str) -> None:
    init = "window.MessageEvent = class { constructor() { throw new Error('foreign'); } };"
    page = tabs.open(front.page(element(stream)), init=init)
    page.until_open()
    ids = publish(front.site, stream, "a", "b")
    page.until_data(["a", "b"])
    page.until(f"source.getAttribute('since') == '{ids[-1]}'")
    assert len(front.asked) == 1


@pytest.mark.parametrize(
    "options",
    [
        "new Proxy({}, { get() { throw new Error('foreign'); } })",
        "{ src, get since() { throw new Error('foreign'); } }",
        "{ src, since: { valueOf() { throw new Error('foreign'); } } }",
        "{ streams: [src, { toString() { throw new Error('foreign'); } }] }",
        "{ src: { toString() { throw new Error('foreign'); } } }",
    ],
)
def test_options_that_throw_reject_only_the_call_of_connect(
    tabs: Profile, front: Front, stream: str, options: str
) -> None:
    page = tabs.open(front.page(element(stream)))
    page.until_open()
    told = page.eval(
        f"""(src) => import("/pgbus/pgbus.js").then(({{ connect }}) => connect({options})).then(
            () => "connected", ({{ message }}) => message)""",
        f"/pgbus/streams/{stream}",
    )
    assert told == "foreign"
    more = element(stream).replace('id="source"', 'class="more"')
    page.eval("(html) => document.body.insertAdjacentHTML('beforeend', html)", more)
    page.until("document.querySelectorAll('[state=open]').length == 2")
    publish(front.site, stream, "a")
    page.until_data(["a", "a"])
    front.until_live(1)


def test_cursors_given_as_text_are_compared_as_numbers(tabs: Profile, front: Front) -> None:
    """As text, 10 is less than 9. Both share a connection, which begins at the lower cursor."""
    hello = b'event: pgbus:connected\ndata: {"connectionId":"c","streams":[{"name":"x","lastId":10}]}\n\n'
    front.intercept = says(hello, b"data: ten\nid: 10\n\n", b"data: eleven\nid: 11\n\n", silence=0.3)
    page = tabs.open(front.page(""))
    page.eval(
        """
        async () => {
          const { connect } = await import("/pgbus/pgbus.js");
          window.got = {};
          for (const since of ["10", "9"]) {
            got[since] = [];
            const live = connect({ stream: "x", since, shared: "page" });
            live.addEventListener("message", ({ data }) => got[since].push(data));
          }
        }
        """,
        0,
    )
    page.until("got[9]?.length == 2")
    assert page.eval("got") == {"10": ["eleven"], "9": ["ten", "eleven"]}
    assert [asked for asked in front.asked if "since=9" in asked]


def test_an_invalid_target_does_not_prevent_the_swap_of_other_parts(tabs: Profile, front: Front, stream: str) -> None:
    inside = '<p sse-swap="message" hx-target="#1"></p><p id="good" sse-swap="message"></p></pg'
    path = front.page(element(stream).replace("></pg", f">{inside}"), '<script src="/lib/htmx.js"></script>')
    page = tabs.open(path)
    page.until_open()
    publish(front.site, stream, "<b>1</b>")
    page.until("good.innerHTML == '<b>1</b>'")
    page.until_data(["<b>1</b>"])


def test_the_cursor_moves_after_the_events_were_dispatched(tabs: Profile, front: Front, stream: str) -> None:
    (first,) = publish(front.site, stream, "on the page")
    page = tabs.open(front.page(element(stream, f'since="{first}"')))
    page.until_open()
    page.eval(
        "for (const name of ['pgbus:message', 'message']) source.addEventListener(name, () =>"
        " (window.at ??= []).push(source.getAttribute('since'), source.cloneNode().getAttribute('since')))"
    )
    (id,) = publish(front.site, stream, "a")
    page.until(f"source.getAttribute('since') == '{id}'")
    assert page.eval("at") == [str(first)] * 4


@pytest.mark.parametrize("kind", ["stored", "ephemeral"])
def test_an_element_moved_by_its_handler_gets_each_message_once(
    tabs: Profile, front: Front, stream: str, kind: str
) -> None:
    page = tabs.open(front.page(element(stream)))
    page.until_open()
    page.eval(
        "source.addEventListener('pgbus:message', () => { const it = source; it.remove(); document.body.append(it); })"
    )
    for data in ("a", "b", "c"):
        front.site.bus.stream(stream).broadcast(data, ephemeral=kind == "ephemeral")
        page.until(f"seen.some(([, detail]) => detail.data === '{data}')")
    page.until_data(["a", "b", "c"])
    assert len(page.seen("message")) == 3
    front.until_live(1)


def test_an_element_removed_by_its_handler_gets_no_more_and_none_twice(
    tabs: Profile, front: Front, stream: str
) -> None:
    page = tabs.open(front.page(element(stream)))
    page.until_open()
    page.eval("source.addEventListener('pgbus:message', () => (window.kept = source).remove(), { once: true })")
    page.eval("source.addEventListener('message', (event) => (window.got ??= []).push(event.data))")
    publish(front.site, stream, "a", "b")
    page.until("window.got")
    front.until_live(0)
    assert page.eval("got") == ["a"]
    page.eval("document.body.append(kept)")
    page.until("got.length == 2")
    assert page.eval("got") == ["a", "b"]


def test_an_element_closed_by_its_handler_has_the_cursor_after_that_message(
    tabs: Profile, front: Front, stream: str
) -> None:
    page = tabs.open(front.page(element(stream)))
    page.until_open()
    page.eval("source.addEventListener('pgbus:message', () => source.close(), { once: true })")
    first, _ = publish(front.site, stream, "a", "b")
    page.until_data(["a"])
    front.until_live(0)
    assert page.eval("source.getAttribute('since')") == str(first)


def test_an_element_made_by_a_handler_does_not_get_earlier_messages(tabs: Profile, front: Front, stream: str) -> None:
    page = tabs.open(front.page(element(stream)))
    page.until_open()
    more = element(stream).replace('id="source"', 'class="more"')
    page.eval(
        "(html) => source.addEventListener('pgbus:message', () => document.body.insertAdjacentHTML('beforeend', html),"
        " { once: true })",
        more,
    )
    front.site.bus.stream(stream).broadcast("hint", ephemeral=True)
    page.until("document.querySelectorAll('[state=open]').length == 2")
    publish(front.site, stream, "a")
    page.until_data(["hint", "a", "a"])


def test_leaving_a_page_fires_no_close(tabs: Profile, front: Front, stream: str) -> None:
    keep = "addEventListener('pgbus:close', ({ detail }) => (localStorage.closed = JSON.stringify(detail)))"
    page = tabs.open(front.page(element(stream)), init=keep)
    page.until_open()
    other = front.page("", path="/elsewhere")
    page.do(
        f"await Promise.all([page.waitForURL('**{other}'), page.evaluate(() => void setTimeout(() => (location = '{other}')))])"
    )
    front.until_live(0)
    assert page.eval("localStorage.closed ?? null") is None


def test_a_connection_ended_just_before_pagehide_fires_no_close(tabs: Profile, front: Front, stream: str) -> None:
    """Firefox ends connections before it fires pagehide. The test imitates that order."""
    init = """
      const { fetch: real } = window;
      window.fetch = (url, options) => (window.asked = real(url, options)).then((response) =>
        options?.method === 'HEAD' ? response : Object.defineProperty(response, 'body', { value: {
          getReader: () => ({ read: () => new Promise((_, fail) => (window.fail = fail)) }), cancel: async () => {} } }));
    """
    page = tabs.open(front.page(element(stream)), init=init)
    page.until("window.fail")
    page.eval("{ fail(new TypeError('NetworkError')); dispatchEvent(new PageTransitionEvent('pagehide')) }")
    page.eval("new Promise((done) => setTimeout(done, 600))")
    assert page.seen("pgbus:close") == []


# time ----------------------------------------------------------------------------------------------------------------

NO_TIMERS = "window.stopTimers = () => (window.setTimeout = window.setInterval = () => 1);"
"""Timers of a hidden tab are late. In this page they never fire."""


def test_a_new_tab_waits_for_no_timer_of_a_hidden_tab(tabs: Profile, front: Front, stream: str) -> None:
    first = tabs.open(front.page(element(f"{stream}a"), path="/a"), init=NO_TIMERS)
    first.until_open()
    first.eval("stopTimers()")
    second = tabs.open(front.page(element(f"{stream}b"), path="/b"), init=f"{NO_TIMERS} stopTimers();")
    second.until_open()
    publish(front.site, f"{stream}b", "a")
    second.until_data(["a"])
    front.until_live(1)
    second.eval("stopTimers()")
    first.close()
    publish(front.site, f"{stream}b", "b")
    second.until_data(["a", "b"])


def test_a_tab_that_becomes_visible_makes_the_leader_try_again_at_once(
    tabs: Profile, front: Front, stream: str
) -> None:
    first, second = (tabs.open(front.page(element(stream))) for _ in range(2))
    for page in (first, second):
        page.until_open()
    front.intercept = status("503 No", ("retry-after", "600"))
    front.drop()
    second.until("seen.some(([name, detail]) => name === 'pgbus:close' && detail.status === 503)")
    front.intercept = lambda environ, start: None
    second.eval("document.dispatchEvent(new Event('visibilitychange'))")
    for page in (first, second):
        page.until_open()


WAITS = """
  window.waits = [];
  Math.random = () => 0.999;
  const { setTimeout: real } = window;
  const ours = (ms) => ![15, 250, 3000, 15000, 30000].includes(ms);
  window.setTimeout = (act, ms) => (ours(ms) && waits.push(Math.round(ms)), real(act, Math.min(ms, 20)));
"""
"""A page that draws the longest waits, records them, and shortens them."""


def test_the_first_attempts_are_as_quick_as_an_eventsources_and_then_slow_down(
    tabs: Profile, front: Front, stream: str
) -> None:
    page = tabs.open(front.page(element(stream)), init=WAITS)
    page.until_open()
    front.intercept = lambda environ, start: (start("503 No", [("content-length", "0")]), [b""])[1]
    front.drop()
    page.until("waits.length >= 14")
    waits = page.eval("waits.slice(0, 14)")
    assert waits[:9] == [300, 300, 300, 300, 799, 1599, 3197, 6394, 12787]
    assert all(20_000 < wait <= 30_000 for wait in waits[9:])
    front.intercept = lambda environ, start: None
    page.until_open()


SKEW = """
  window.skew = 0;
  const { now } = Performance.prototype;
  Performance.prototype.now = function () { return now.call(this) + skew; };
"""


def test_the_watchdog_uses_the_heartbeat_that_the_server_announces(tabs: Profile, front: Front, stream: str) -> None:
    told = b'{"connectionId":"c0ffee00c0ffee00","heartbeat":60,"streams":[{"name":"x","lastId":0}]}'
    over = Event()
    front.intercept = says(b"retry: 100\nevent: pgbus:connected\ndata: " + told + b"\n\n", silence=60, over=over)
    page = tabs.open(front.page(element(stream, 'shared="page"')), init=SKEW)
    page.until_open()
    page.eval("void (skew = 150_000)")
    page.eval("new Promise((done) => setTimeout(done, 3500))")
    assert (page.seen("pgbus:close"), page.state) == ([], "open")
    page.eval("void (skew = 400_000)")
    (close,) = page.until_seen(1, "pgbus:close")
    over.set()
    assert (close["reason"], close["willRetry"]) == ("timeout", True)
    page.until_open()


def test_a_tab_that_was_frozen_keeps_a_live_connection(tabs: Profile, front: Front, stream: str) -> None:
    """Bytes that arrived meanwhile are not read yet, so the time of the last bytes is not known."""
    page = tabs.open(front.page(element(stream)), init=SKEW)
    page.until_open()
    page.eval("{ skew = 20_000; document.dispatchEvent(new Event('visibilitychange')); }")
    publish(front.site, stream, "a")
    page.until_data(["a"])
    assert (page.seen("pgbus:close"), len(front.asked)) == ([], 1)


def test_a_wall_clock_that_is_set_back_ends_no_connection(tabs: Profile, front: Front, stream: str) -> None:
    """It is set back by an hour, as by a time server. A jump forward counts as a sleep of the machine (next test)."""
    page = tabs.open(
        front.page(element(stream)), init="window.skew = 0; { const { now } = Date; Date.now = () => now() + skew }"
    )
    page.until_open()
    page.eval("void (skew = -3_600_000)")
    page.eval("new Promise((done) => setTimeout(done, 4000))")
    assert (page.seen("pgbus:close"), len(front.asked)) == ([], 1)


def test_the_connection_is_renewed_after_the_machine_slept(tabs: Profile, front: Front, stream: str) -> None:
    page = tabs.open(
        front.page(element(stream)), init="window.skew = 0; { const { now } = Date; Date.now = () => now() + skew }"
    )
    page.until_open()
    page.eval("void (skew = 3_600_000)")
    page.until_seen(1, "pgbus:close")
    page.until_open()


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream ; charset=utf-8", True),
        ("text/event-streaming", False),
        ("text/event-stream-x", False),
        ("text/event-stream.x; a=b", False),
        ("application/text/event-stream", False),
        ("text/html", False),
    ],
)
def test_only_the_exact_content_type_is_a_stream(
    tabs: Profile, front: Front, stream: str, kind: str, taken: bool
) -> None:
    hello = b'event: pgbus:connected\ndata: {"connectionId":"c0ffee00c0ffee00","streams":[{"name":"x","lastId":0}]}\n\n'
    front.intercept = lambda environ, start: (
        start("200 OK", [("content-type", kind), ("connection", "close")]),
        [hello],
    )[1]
    page = tabs.open(front.page(element(stream, 'shared="page"')))
    page.until("seen.some(([name]) => name === 'pgbus:close')")
    close = page.seen("pgbus:close")[0]
    # It comes back, so there may be more by now.
    names = page.eval("seen.map(([name]) => name)")
    assert names[: names.index("pgbus:close")] == ["pgbus:open"] * taken
    assert (close["reason"], close["willRetry"]) == (("ended", True) if taken else ("content-type", False))
