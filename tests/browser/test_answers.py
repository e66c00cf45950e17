"""The element with all kinds of answers from a server, or from a proxy in front of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from email.utils import formatdate
from time import monotonic, time
from typing import Any

import pytest
from browser_parts import Front, Profile, element, missing, publish, says, status
from gevent.event import Event
from support import holds, until

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

WAITS = """
  window.waits = [];
  Math.random = () => 0;
  const { setTimeout: real } = window;
  const ours = (ms) => ![15, 250, 3000, 15000, 30000].includes(ms);
  window.setTimeout = (act, ms) => (ours(ms) && waits.push(Math.round(ms)), real(act, Math.min(ms, 20)));
"""
"""A page that draws the shortest waits, records them, and shortens them."""

SOON = 2000
"""The wait of the element in ms if the server gave no time."""

HELLO = b'event: pgbus:connected\ndata: {"connectionId":"c0ffee00c0ffee00","streams":[{"name":"x","lastId":0}]}\n\n'


QUIET = "window.reported = []; window.reportError = (error) => void reported.push(error);"


@pytest.mark.parametrize(
    ("told", "waits"),
    [
        ("7", 7000),
        (" 7 ", 7000),
        ("0", SOON),
        ("-7", SOON),
        ("soon", SOON),
        ("", SOON),
        ("99999999999999999999", 3_600_000),
        ("Thu, 01 Jan 1970 00:00:00 GMT", SOON),
        ("Fri, 01 Jan 9999 00:00:00 GMT", 3_600_000),
    ],
)
def test_retry_after_is_understood_in_all_its_forms(
    tabs: Profile, front: Front, stream: str, told: str, waits: int
) -> None:
    front.intercept = status("503 No", ("retry-after", told), times=1)
    page = tabs.open(front.page(element(stream, 'shared="page"')), init=WAITS)
    page.until_open()
    assert page.eval("waits") == [waits]


@pytest.mark.parametrize("skew", [-3600, 0, 3600])
def test_a_date_in_retry_after_is_compared_with_the_servers_clock(
    tabs: Profile, front: Front, stream: str, skew: int
) -> None:
    """The clock of the browser may be wrong."""
    original, front.intercept = front.intercept, in_a_minute
    init = f"{WAITS} {{ const {{ now }} = Date; Date.now = () => now() + {skew} * 1000 }}"
    page = tabs.open(front.page(element(stream, 'shared="page"')), init=init)
    page.until("waits.length")
    front.intercept = original
    page.until_open()
    assert all(30_000 < waits <= 60_000 for waits in page.eval("waits"))


def in_a_minute(environ: Any, start_response: Any) -> list[bytes]:
    told = ("retry-after", formatdate(time() + 60, usegmt=True))
    start_response("503 No", [("content-type", "text/plain"), ("content-length", "0"), told])
    return [b""]


def redirects(place: str, code: str = "302 Found") -> Callable[[Any, Any], Iterable[bytes] | None]:
    return status(code, ("location", place), times=1)


@pytest.mark.parametrize("code", ["301 Moved", "302 Found", "303 See Other", "307 Elsewhere", "308 Elsewhere"])
def test_a_redirect_to_a_stream_is_followed(tabs: Profile, front: Front, stream: str, code: str) -> None:
    front.intercept = redirects(f"/pgbus/streams/{stream}?since=0", code)
    publish(front.site, stream, "a")
    page = tabs.open(front.page(element(stream)))
    page.until_data(["a"])


def test_a_redirect_to_a_login_page_ends_the_stream(tabs: Profile, front: Front, stream: str) -> None:
    front.pages["/login"] = "<p>who are you?</p>"
    front.intercept = redirects("/login")
    page = tabs.open(front.page(element(stream)))
    (close,) = page.until_seen(1, "pgbus:close")
    assert (close["reason"], close["status"], close["willRetry"]) == ("content-type", 200, False)


def test_an_answer_without_content_ends_the_stream(tabs: Profile, front: Front, stream: str) -> None:
    front.intercept = status("204 No Content")
    page = tabs.open(front.page(element(stream)))
    (close,) = page.until_seen(1, "pgbus:close")
    assert (close["status"], close["willRetry"], page.state) == (204, False, "closed")
    holds(lambda: len(front.asked) == 1, "it does not ask again", 0.5)


@pytest.mark.parametrize("greeted", [True, False], ids=["greeted", "not greeted"])
def test_a_retry_of_zero_does_not_cause_a_rush(tabs: Profile, front: Front, stream: str, greeted: bool) -> None:
    body = b"retry: 0\n" + (HELLO if greeted else b"\n")
    times: list[float] = []
    front.intercept = lambda environ, start: (
        times.append(monotonic()),
        start("200 OK", [("content-type", "text/event-stream"), ("connection", "close")]),
        [body],
    )[2]
    page = tabs.open(front.page(element(stream, 'shared="page"')))
    until(lambda: len(times) > 4, "the element comes back")
    assert times[4] - times[0] >= 0.3
    front.intercept = lambda environ, start: None
    page.until_open()


def test_an_excessive_retry_counts_as_an_hour(tabs: Profile, front: Front, stream: str) -> None:
    front.intercept = says(b"retry: 99999999999999999999999\n" + HELLO)
    page = tabs.open(front.page(element(stream, 'shared="page"')), init=WAITS)
    page.until("waits.length")
    assert page.eval("waits") == [3_600_000]


def test_a_malformed_control_frame_loses_no_message(tabs: Profile, front: Front, stream: str) -> None:
    odd = b"event: pgbus:gap-detected\ndata: {not JSON\n\n"
    over = Event()
    front.intercept = says(HELLO, odd, b"data: a\nid: 9\n\n", silence=20, over=over)
    page = tabs.open(front.page(element(stream, 'shared="page"')), init=QUIET)
    page.until_data(["a"])
    assert (page.seen("pgbus:close"), len(front.asked)) == ([], 1)
    assert page.eval("reported.length") == 1
    over.set()


def test_only_elements_that_missed_messages_get_a_gap_event(tabs: Profile, front: Front, stream: str) -> None:
    gap = b'event: pgbus:gap-detected\ndata: {"stream":"x","requestedId":5,"oldestId":90,"lastId":120,"reason":"expired"}\n\n'
    over = Event()
    front.intercept = says(HELLO, gap, b"data: a\nid: 120\n\n", silence=20, over=over)
    behind, near = (element(stream, f'shared="page" since="{since}"') for since in (5, 95))
    page = tabs.open(front.page(behind + near.replace('id="source"', 'id="other"')))
    page.until_data(["a", "a"])
    assert page.eval("seen.filter(([name]) => name === 'pgbus:gap').map(([, , id]) => id)") == ["source"]
    over.set()


def test_a_replay_that_is_cut_off_before_its_first_message_is_requested_again(
    tabs: Profile, front: Front, stream: str
) -> None:
    """The second request begins where the replay began, even if there are newer messages by then."""
    front.intercept = says(HELLO[:-1] + b"id: 5\n\n")
    src = f"/pgbus/streams/{stream}?replay=2"
    page = tabs.open(front.page(f'<pgbus-stream-source src="{src}" shared="page"></pgbus-stream-source>'))
    page.until_seen(1, "pgbus:close")
    page.until_open()
    assert "since=5" in front.asked[1]


CUTTING = """
  window.cut = [];
  window.fetch = async (url, { signal } = {}) => {
    const at = new URL(url, document.baseURI), n = +at.pathname.split("/").pop(), since = +at.searchParams.get("since");
    const frame = (id) => `event: e\\ndata: ${id}\\ndata: é🚀\\nid: ${id}\\n\\n`;
    const hello = { connectionId: "c0ffee00c0ffee00", streams: [{ name: "x", lastId: 0 }] };
    const text = `retry: 100\\nevent: pgbus:connected\\ndata: ${JSON.stringify(hello)}\\nid: ${since}\\n\\n`
      + [1, 2, 3].filter((id) => id > since).map(frame).join("");
    const bytes = new TextEncoder().encode(text), first = !cut[n];
    window.whole ??= bytes.length;
    cut[n] = true;
    const start = (it) => {
      signal?.addEventListener("abort", () => { try { it.error(signal.reason); } catch {} });
      it.enqueue(first ? bytes.slice(0, n) : bytes);
      if (first) END;
    };
    return new Response(new ReadableStream({ start }), { headers: { "content-type": "text/event-stream" } });
  };
"""
"""A network that cuts each stream's first connection after the number of bytes in the stream's name."""


@pytest.mark.parametrize("end", ["it.close()", "setTimeout(() => it.error(new TypeError('reset')), 20)"])
def test_every_message_comes_once_and_in_order_wherever_the_connection_is_cut(
    tabs: Profile, front: Front, end: str
) -> None:
    page = tabs.open(front.page(""), init=CUTTING.replace("END", end))
    page.eval(
        """
        async (most) => {
          const { connect } = await import("/pgbus/pgbus.js");
          window.got = [];
          for (let n = 0; n <= most; n++) {
            got.push([]);
            const live = connect({ stream: `${n}`, since: 0, shared: "none" });
            live.addEventListener("e", ({ data, lastEventId }) => got[n].push(`${lastEventId} ${data}`));
          }
        }
        """,
        300,
    )
    page.until("got.every((messages) => messages.length >= 3)")
    assert 150 < page.eval("whole") < 300
    assert page.eval("[...new Set(got.map(String))]") == ["1 1\né🚀,2 2\né🚀,3 3\né🚀"]
