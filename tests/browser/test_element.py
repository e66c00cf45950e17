"""One element in a real browser: its messages, its state, and the loss and return of its connection."""

from __future__ import annotations

import pytest
from browser_fixtures import PATIENT
from browser_parts import Browser, Front, Page, Profile, element, profile, publish, says, status
from gevent.event import Event
from site_parts import running_site
from support import holds, until

from pgbus_gevent.testing.databases import TestDatabases

pytestmark = pytest.mark.every_engine

# messages ------------------------------------------------------------------------------------------------------------


def test_a_message_is_a_bubbling_event_with_all_its_details(page: Page, front: Front, stream: str) -> None:
    (id,) = publish(front.site, stream, "first\nsecond", event="order.paid")
    detail = {"id": id, "event": "order.paid", "data": "first\nsecond", "stream": stream}
    assert page.until_seen(1) == [detail]
    assert page.until_seen(1, "order.paid") == [detail]
    assert page.seen("message") == []


def test_a_message_without_an_event_is_a_message_event_like_an_eventsources(
    page: Page, front: Front, stream: str
) -> None:
    page.eval("source.addEventListener('message', (e) => (window.got = [e.data, e.lastEventId, e.constructor.name]))")
    (id,) = publish(front.site, stream, "é\u2028\ufeff🚀")
    page.until("window.got")
    assert page.eval("got") == ["é\u2028\ufeff🚀", str(id), "MessageEvent"]


def test_an_ephemeral_message_has_no_id_and_moves_no_cursor(page: Page, front: Front, stream: str) -> None:
    publish(front.site, stream, "stored")
    page.until_seen(1)
    before = page.eval("source.cursors")
    front.site.bus.stream(stream).broadcast("hint", ephemeral=True)
    assert "id" not in page.until_seen(2)[1]
    assert page.eval("source.cursors") == before


def test_the_state_is_an_attribute_and_a_property_and_opening_is_an_event(page: Page) -> None:
    assert page.eval("[source.getAttribute('state'), source.state]") == ["open", "open"]
    (opened,) = page.seen("pgbus:open")
    assert len(opened["connectionId"]) >= 16


@pytest.mark.parametrize("attribute", ["since", "since-id"])
def test_messages_since_the_page_was_made_arrive_too(tabs: Profile, front: Front, stream: str, attribute: str) -> None:
    (watermark,) = publish(front.site, stream, "on the page")
    publish(front.site, stream, "later")
    page = tabs.open(front.page(element(stream, f'{attribute}="{watermark}"')))
    page.until_data(["later"])


def test_the_tag_of_the_bus_works(tabs: Profile, front: Front, stream: str) -> None:
    publish(front.site, stream, "on the page")
    tag = front.site.bus.stream_tag(stream)
    publish(front.site, stream, "later")
    page = tabs.open(front.page(tag))
    page.until_data(["later"])


def test_stream_and_base_replace_src(tabs: Profile, front: Front, stream: str) -> None:
    body = f'<pgbus-stream-source stream="{stream}" base="/pgbus/streams" since="0"></pgbus-stream-source>'
    publish(front.site, stream, "a")
    tabs.open(front.page(body)).until_data(["a"])


def test_the_url_can_request_a_replay(tabs: Profile, front: Front, stream: str) -> None:
    publish(front.site, stream, "a", "b", "c")
    body = f'<pgbus-stream-source src="/pgbus/streams/{stream}?replay=2"></pgbus-stream-source>'
    tabs.open(front.page(body)).until_data(["b", "c"])


def test_other_parameters_are_sent_and_several_streams_still_share_a_connection(
    tabs: Profile, front: Front, stream: str
) -> None:
    src = f"/pgbus/streams?stream={stream}&since=0&stream={stream}b&since=0&as=ada"
    publish(front.site, stream, "a")
    publish(front.site, f"{stream}b", "b")
    page = tabs.open(front.page(f'<pgbus-stream-source src="{src}"></pgbus-stream-source>'))
    until(lambda: sorted(page.data()) == ["a", "b"], "both are there")
    (asked,) = front.asked
    assert asked.endswith("&as=ada") and front.live == 1


# the parser ----------------------------------------------------------------------------------------------------------

FRAMES = (
    "\ufeff: comment\r\n"
    "retry: 12\r\n"
    "retry: x1\n"
    "id: 7\r"
    "event: a\r\n"
    "data: é🚀\n"
    "data\n"
    "data:  two\n"
    ": in between\n"
    "\r\n"
    "id: no\0ne\n"
    "data:x\r"
    "\r"
    "event: nothing\n"
    "\n"
    "unknown: field\n"
    "data: last\n"
    "\n"
    "data: unfinished\n"
).encode()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_parser_handles_bytes_that_are_cut_anywhere(page: Page, size: int) -> None:
    found = page.eval(
        """
        async ([bytes, size]) => {
          const { parser } = await import("/pgbus/pgbus.js");
          const frames = [], retries = [];
          const feed = parser((f) => frames.push([f.id ?? null, f.event, f.data]), (ms) => retries.push(ms));
          for (let i = 0; i < bytes.length; i += size) feed(new Uint8Array(bytes.slice(i, i + size)));
          return [frames, retries];
        }
        """,
        [list(FRAMES), size],
    )
    assert found == [
        [["7", "a", "é🚀\n\n two"], [None, "", "x"], [None, "", "last"]],
        [12],
    ]


def test_frames_reach_the_page_in_any_chunks(tabs: Profile, front: Front) -> None:
    hello = b'event: pgbus:connected\ndata: {"connectionId":"c0ffee00c0ffee00","streams":[{"name":"x","lastId":0}]}\n\n'
    frame = "id: 1\ndata: é\n\n".encode()
    front.intercept = says(hello[:30], hello[30:] + frame[:12], frame[12:], silence=0.3)
    tabs.open(front.page(element("x", 'shared="page"'))).until_data(["é"])


# the connection ends -------------------------------------------------------------------------------------------------


def test_nothing_is_lost_or_doubled_when_the_connection_is_lost(page: Page, front: Front, stream: str) -> None:
    expected = []
    for turn in range(3):
        publish(front.site, stream, f"{turn} live")
        page.until_seen(2 * turn + 1)
        front.drop()
        publish(front.site, stream, f"{turn} away")
        expected += [f"{turn} live", f"{turn} away"]
        page.until_seen(2 * turn + 2)
    assert page.data() == expected
    closes = page.seen("pgbus:close")
    assert len(closes) == 3
    assert all(close["willRetry"] for close in closes)


def test_a_page_without_a_cursor_loses_no_message_before_its_first(page: Page, front: Front, stream: str) -> None:
    front.intercept = status("503 Not now", times=1)
    front.drop()
    page.until_seen(1, "pgbus:close")
    publish(front.site, stream, "away")
    page.until_data(["away"])


def test_an_element_comes_back_after_temporary_refusals(tabs: Profile, front: Front, stream: str) -> None:
    # On new connections, because Chromium itself repeats a request that is answered with 408 on one that it has used before.
    replies = iter([status(f"{code} No", ("connection", "close")) for code in (503, 429, 502, 408)])
    original = front.intercept

    def intercept(environ: object, start_response: object) -> object:
        return next(replies, original)(environ, start_response)

    front.intercept = intercept  # type: ignore[assignment]
    page = tabs.open(front.page(element(stream)), init=HASTY)
    page.until_open()
    assert [(close["status"], close["willRetry"]) for close in page.seen("pgbus:close")] == [
        (503, True),
        (429, True),
        (502, True),
        (408, True),
    ]


HASTY = "Math.random = ((random) => () => random() / 100)(Math.random);"
"""A page that always draws the shortest wait."""


def test_the_element_waits_as_long_as_retry_after_says(tabs: Profile, front: Front, stream: str) -> None:
    front.intercept = status("503 No", ("retry-after", "4"), times=1)
    page = tabs.open(front.page(element(stream)), init=HASTY)
    page.until_open()
    (state, closed), (_, opened) = page.seen_first("pgbus:close"), page.seen_first("pgbus:open")
    assert state == "waiting"
    assert opened - closed > 3000


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_the_element_stops_after_a_final_refusal(tabs: Profile, front: Front, stream: str, code: int) -> None:
    front.intercept = status(f"{code} No")
    page = tabs.open(front.page(element(stream)))
    (close,) = page.until_seen(1, "pgbus:close")
    assert (close["status"], close["willRetry"], page.state) == (code, False, "closed")
    holds(lambda: len(front.asked) == 1, "it does not ask again", 0.5)


def test_an_answer_that_is_no_stream_closes_the_element(tabs: Profile, front: Front, stream: str) -> None:
    front.intercept = status("200 OK", times=1)
    page = tabs.open(front.page(element(stream)))
    (close,) = page.until_seen(1, "pgbus:close")
    assert (close["reason"], close["willRetry"], page.state) == ("content-type", False, "closed")
    holds(lambda: len(front.asked) == 1, "it does not ask again", 0.5)


def test_a_farewell_gives_the_reason_and_the_time_to_come_back(page: Page, front: Front) -> None:
    front.end("restart", 1.5)
    (close,) = page.until_seen(1, "pgbus:close")
    assert close["reason"] == "restart"
    page.until_seen(2, "pgbus:open")
    state, closed = page.seen_first("pgbus:close")
    assert state == "waiting"
    assert page.eval("seen.findLast(([name]) => name === 'pgbus:open')[4]") - closed > 1000


def test_an_expired_signature_ends_the_stream(tabs: Profile, front: Front) -> None:
    page = tabs.open(front.page(""))
    # Only two requests lie between the signature and the start of the stream, so that it has started before the right expires.
    page.eval("(html) => document.body.insertAdjacentHTML('beforeend', html)", element(front.site.sign("secret", 6.0)))
    (close,) = page.until_seen(1, "pgbus:close")
    assert (close["reason"], close["status"], close["willRetry"], page.state) == ("expired", 403, False, "closed")
    holds(lambda: len(front.asked) == 1, "it does not come back", 0.5)


def test_the_element_continues_if_an_expired_right_was_renewed(page: Page, front: Front, stream: str) -> None:
    front.end("expired")
    (close,) = page.until_seen(1, "pgbus:close")
    assert (close["reason"], close["willRetry"]) == ("expired", True)
    publish(front.site, stream, "a")
    page.until_data(["a"])


def test_a_gap_is_an_event(tabs: Profile, front: Front, stream: str) -> None:
    publish(front.site, stream, "a", "b")
    page = tabs.open(front.page(element(stream, f'since="{2**52}"')))
    (gap,) = page.until_seen(1, "pgbus:gap")
    assert (gap["reason"], gap["requestedId"], gap["stream"]) == ("ahead", 2**52, stream)
    page.until_data(["a", "b"])


STANDING_CLOCK = """
  window.clock = 1_000_000;
  performance.now = () => clock;
  Date.now = () => clock;
  window.looks = window.chunks = 0;
  const { setInterval: real } = window;
  window.setInterval = (act, ms) => real(() => { act(); looks++; }, Math.min(ms, 50));
  const { read } = ReadableStreamDefaultReader.prototype;
  ReadableStreamDefaultReader.prototype.read = function () {
    return read.call(this).then((got) => (chunks++, got));
  };
"""
"""A page whose clock the test moves. It looks at its connections all the time, and counts its looks and the bytes that come."""


def advance(page: Page, ms: int) -> None:
    """Move the clock of a page, and wait until the page has looked at its connections."""
    looks = page.eval(f"(clock += {ms}, looks)")
    page.until(f"looks > {looks + 1}", "it looks")


def test_a_connection_that_has_gone_silent_is_dropped(
    browser: Browser, pgbus_databases: TestDatabases, stream: str
) -> None:
    told = b'{"connectionId":"c0ffee00c0ffee00","heartbeat":1,"streams":[{"name":"x","lastId":0}]}'
    hello = b"retry: 100\nevent: pgbus:connected\ndata: " + told + b"\n\n"
    with running_site(pgbus_databases.make(), **{**PATIENT, "heartbeat": 1.0}) as site:
        site.app = front = Front(site)
        over = Event()
        front.intercept = says(hello, silence=60, over=over)
        with profile(browser, front) as tabs:
            page = tabs.open(front.page(element(stream, 'shared="page"')), init=STANDING_CLOCK)
            page.until_open()
            advance(page, 2900)
            assert page.seen("pgbus:close") == []
            advance(page, 200)
            (close,) = page.until_seen(1, "pgbus:close")
            over.set()
            assert (close["reason"], close["willRetry"]) == ("timeout", True)
            publish(site, stream, "alive")
            page.until_data(["alive"])
            for _ in range(3):
                chunks = page.eval("chunks")
                page.until(f"chunks > {chunks}", "a heartbeat comes")
                advance(page, 2000)
            assert len(page.seen("pgbus:close")) == 1, "heartbeats keep it"
        front.until_live(0)


# the page ------------------------------------------------------------------------------------------------------------

SLOW = ("retry-after", "600")


def test_the_element_comes_back_at_once_when_the_page_becomes_visible(tabs: Profile, front: Front, stream: str) -> None:
    front.intercept = status("503 No", SLOW, times=1)
    page = tabs.open(front.page(element(stream)))
    page.until_seen(1, "pgbus:close")
    page.eval("document.dispatchEvent(new Event('visibilitychange'))")
    page.until_open()


def test_the_element_comes_back_at_once_with_the_network(tabs: Profile, front: Front, stream: str) -> None:
    front.intercept = status("503 No", SLOW, times=1)
    page = tabs.open(front.page(element(stream)))
    page.until_seen(1, "pgbus:close")
    tabs.offline(True)
    tabs.offline(False)
    page.until_open()


def test_an_element_that_is_moved_keeps_its_connection(page: Page, front: Front, stream: str) -> None:
    publish(front.site, stream, "before")
    page.until_seen(1)
    page.eval("{ const kept = source; kept.remove(); document.body.append(kept); }")
    publish(front.site, stream, "after")
    page.until_data(["before", "after"])
    assert (front.live, len(front.asked)) == (1, 1)


def test_an_element_that_was_removed_continues_from_its_cursor(page: Page, front: Front, stream: str) -> None:
    publish(front.site, stream, "before")
    page.until_seen(1)
    page.eval("{ window.kept = source; kept.remove(); }")
    front.until_live(0)
    assert page.eval("kept.state") == "closed"
    publish(front.site, stream, "away")
    page.eval("document.body.append(kept)")
    page.until_data(["before", "away"])
    front.until_live(1)


def test_another_src_is_another_stream(page: Page, front: Front, stream: str) -> None:
    page.eval(
        "(src) => { source.removeAttribute('since'); source.setAttribute('src', src) }", f"/pgbus/streams/{stream}x"
    )
    until(lambda: len(front.asked) == 2, "the element asks again")
    page.until_open()
    publish(front.site, stream, "old")
    publish(front.site, f"{stream}x", "new")
    page.until_data(["new"])


def test_a_copy_of_the_element_has_its_current_cursor(page: Page, front: Front, stream: str) -> None:
    (id,) = publish(front.site, stream, "a")
    page.until_seen(1)
    assert page.eval("source.cloneNode().getAttribute('since')") == str(id)


def test_a_morph_to_an_older_page_gets_the_messages_since_then_again(page: Page, front: Front, stream: str) -> None:
    first, _ = publish(front.site, stream, "a", "b")
    page.until_data(["a", "b"])
    page.eval("(cursor) => source.setAttribute('since', cursor)", str(first))
    page.until_data(["a", "b", "b"])
    front.until_live(1)


def test_an_invalid_cursor_is_refused(tabs: Profile, front: Front, stream: str) -> None:
    page = tabs.open(front.page(element(stream, 'since="yesterday"')))
    (close,) = page.until_seen(1, "pgbus:close")
    assert (close["status"], close["willRetry"]) == (400, False)


# elsewhere -----------------------------------------------------------------------------------------------------------


def test_a_page_of_a_configured_origin_can_follow_a_stream(tabs: Profile, front: Front, pgbus_database: str) -> None:
    with running_site(pgbus_database, **PATIENT, cors_origins=(front.site.url,)) as site:
        head = f'<script type="module" src="{site.url}/pgbus/pgbus.js"></script>'
        tag = f'<pgbus-stream-source src="{site.url}/pgbus/streams/NAME" credentials="include"></pgbus-stream-source>'
        page = tabs.open(front.page(tag.replace("NAME", "demo:far") + tag.replace("NAME", "secret"), head))
        page.until_open()
        publish(site, "demo:far", "a")
        page.until_data(["a"])
        (close,) = page.until_seen(1, "pgbus:close")
        assert close["status"] == 404
        page.close()


def test_the_element_works_under_a_strict_content_security_policy(tabs: Profile, front: Front, stream: str) -> None:
    policy = "default-src 'none'; script-src 'self'; connect-src 'self'"
    front.pages["/strict"] = f"""<!doctype html><meta http-equiv="Content-Security-Policy" content="{policy}">
        <script type="module" src="/pgbus/pgbus.js"></script>{element(stream)}"""
    page = tabs.open("/strict")
    page.until_open()
    (id,) = publish(front.site, stream, "a")
    page.until(f"source.getAttribute('since') == '{id}'")


# without an element --------------------------------------------------------------------------------------------------


def test_connect_works_on_pages_without_elements(tabs: Profile, front: Front, stream: str) -> None:
    page = tabs.open(front.page(""))
    page.eval(
        """
        async (src) => {
          const { connect } = await import("/pgbus/pgbus.js");
          window.live = connect({ src, since: 0 });
          window.got = [];
          live.addEventListener("order.paid", (event) => got.push(event.data));
        }
        """,
        f"/pgbus/streams/{stream}",
    )
    publish(front.site, stream, "a", event="order.paid")
    page.until("got.length == 1 && live.state == 'open'")
    page.eval("live.close()")
    front.until_live(0)
    assert page.eval("live.state") == "closed"
