"""Many elements and many tabs in a real browser: they share one connection, which moves between tabs."""

from __future__ import annotations

from itertools import count

import gevent
import pytest
from browser_parts import Browser, Front, Page, Profile, element, publish, says, status
from gevent.event import Event
from support import holds, until

pytestmark = pytest.mark.every_engine


def open_tabs(tabs: Profile, front: Front, body: str, number: int) -> list[Page]:
    """Open ``number`` tabs with the same page, and wait until all are connected."""
    path = front.page(body)
    pages = [tabs.open(path) for _ in range(number)]
    for page in pages:
        page.until_open()
    return pages


# elements of one page ------------------------------------------------------------------------------------------------


def test_elements_of_one_stream_share_its_connection(tabs: Profile, front: Front, stream: str) -> None:
    page = tabs.open(front.page(element(stream) + element(stream).replace('id="source"', 'id="other"')))
    page.until("document.querySelectorAll('[state=open]').length == 2")
    publish(front.site, stream, "a")
    page.until_data(["a", "a"])
    assert len(front.asked) == 1


def test_elements_of_several_streams_share_one_connection_and_each_gets_its_own(
    tabs: Profile, front: Front, stream: str
) -> None:
    page = tabs.open(front.page(element(f"{stream}a") + element(f"{stream}b").replace('id="source"', 'id="other"')))
    page.until("document.querySelectorAll('[state=open]').length == 2")
    publish(front.site, f"{stream}a", "a")
    publish(front.site, f"{stream}b", "b")
    page.until("seen.filter(([name]) => name === 'message').length == 2")
    got = page.eval("seen.filter(([name]) => name === 'message').map(([, detail, id]) => [detail.data, id])")
    assert sorted(got) == [["a", "source"], ["b", "other"]]
    assert (front.live, len(front.asked)) == (1, 1)


def test_a_frame_without_an_id_belongs_to_the_stream_that_its_comment_names(
    tabs: Profile, front: Front, stream: str
) -> None:
    both = ",".join(f'{{"name":"{stream}{letter}","lastId":1}}' for letter in "ab")
    hello = f'event: pgbus:connected\ndata: {{"connectionId":"c","streams":[{both}]}}\n\n'
    front.intercept = says(hello.encode(), b": stream 1\nevent: order.paid\ndata: hint\n\n", silence=0.5)
    one, other = (element(f"{stream}{letter}", 'shared="page"') for letter in "ab")
    page = tabs.open(front.page(one + other.replace('id="source"', 'id="other"')))
    (detail,) = page.until_seen(1, "order.paid")
    assert detail == {"event": "order.paid", "data": "hint", "stream": f"{stream}b"}
    assert page.eval("seen.filter(([name]) => name === 'order.paid').map(([, , id]) => id)") == ["other"]


@pytest.mark.parametrize("form", ["streams", "src"])
def test_an_element_of_several_streams_loses_and_doubles_nothing(
    tabs: Profile, front: Front, stream: str, form: str
) -> None:
    one, two = f"{stream}:1", f"{stream}:2"
    (first,) = publish(front.site, one, "seen already")
    publish(front.site, one, "1a")
    publish(front.site, two, "2a")
    given = {
        "streams": f'base="/pgbus/streams" streams="{one} {two}" since="{first} 0"',
        "src": f'src="/pgbus/streams?stream={one}&since={first}&stream={two}&since=0"',
    }[form]
    page = tabs.open(front.page(f'<pgbus-stream-source id="source" {given}></pgbus-stream-source>'))
    page.until("seen.filter(([name]) => name === 'message').length >= 2")
    front.drop()
    publish(front.site, two, "2b")
    publish(front.site, one, "1b")
    page.until("seen.filter(([name]) => name === 'message').length >= 4")
    got = [(detail["stream"], detail["data"]) for detail in page.seen("message")]
    assert [data for name, data in got if name == one] == ["1a", "1b"]
    assert [data for name, data in got if name == two] == ["2a", "2b"]
    assert len(got) == 4
    assert [int(id) for id in page.eval("source.getAttribute('since')").split()] == [
        front.site.bus.stream(name).last_id() for name in (one, two)
    ]


def test_a_refused_stream_does_not_close_another(tabs: Profile, front: Front, stream: str) -> None:
    page = tabs.open(front.page(element(stream) + element("secret").replace('id="source"', 'id="other"')))
    page.until("source.state == 'open' && other.state == 'closed'")
    (close,) = page.seen("pgbus:close")
    assert (close["status"], close["willRetry"], close["streams"]) == (404, False, ["secret"])
    publish(front.site, stream, "a")
    page.until_data(["a"])


def test_streams_get_separate_connections_if_the_server_refuses_to_combine_them(
    tabs: Profile, front: Front, stream: str
) -> None:
    refuse = status("400 Too many")
    front.intercept = lambda environ, start: ("&stream=" in environ["QUERY_STRING"] and refuse(environ, start)) or None
    page = tabs.open(
        front.page(element(f"{stream}a", 'since="0"') + element(f"{stream}b").replace('id="source"', 'id="other"'))
    )
    publish(front.site, f"{stream}a", "a")
    page.until("document.querySelectorAll('[state=open]').length == 2")
    publish(front.site, f"{stream}b", "b")
    page.until_seen(2)
    assert (front.live, page.seen("pgbus:close")) == (2, [])


def test_an_element_may_have_its_own_connection(tabs: Profile, front: Front, stream: str) -> None:
    alone = 'shared="false"'
    page = tabs.open(front.page(element(stream, alone) + element(stream, alone).replace('id="source"', 'id="other"')))
    page.until("document.querySelectorAll('[state=open]').length == 2")
    front.until_live(2)


def test_a_second_element_with_an_older_cursor_causes_no_repeat_for_the_first(
    tabs: Profile, front: Front, stream: str
) -> None:
    page = tabs.open(front.page(element(stream)))
    page.until_open()
    publish(front.site, stream, "a", "b")
    page.until_data(["a", "b"])
    other = element(stream, 'since="0"').replace('id="source"', 'id="other"')
    page.eval("(html) => document.body.insertAdjacentHTML('beforeend', html)", other)
    page.until("seen.filter(([name, , id]) => name == 'message' && id == 'other').length == 2")
    publish(front.site, stream, "c")
    page.until("seen.filter(([name]) => name == 'message').length == 6")
    for id in ("source", "other"):
        assert page.eval("(id) => seen.filter((e) => e[0] == 'message' && e[2] == id).map((e) => e[1].data)", id) == [
            "a",
            "b",
            "c",
        ]
    front.until_live(1)


def test_an_element_stays_open_when_another_one_needs_a_new_connection(
    tabs: Profile, front: Front, stream: str
) -> None:
    page = tabs.open(front.page(element(stream)))
    page.until_open()
    watch = "new MutationObserver(() => states.push(source.state)).observe(source, { attributeFilter: ['state'] })"
    page.eval(f"(window.states = [], {watch})")
    other = element(f"{stream}b").replace('id="source"', 'id="other"')
    page.eval("(html) => document.body.insertAdjacentHTML('beforeend', html)", other)
    page.until("other.state === 'open'")
    assert len(front.asked) == 2
    assert page.eval("states") == []


def test_more_streams_than_fit_on_a_connection_are_spread_over_several(
    tabs: Profile, front: Front, stream: str
) -> None:
    names = [f"{stream}:{number}" for number in range(40)]
    body = f'<pgbus-stream-source id="source" base="/pgbus/streams" streams="{" ".join(names)}"></pgbus-stream-source>'
    page = tabs.open(front.page(body))
    page.until_open()
    front.until_live(2)
    for name in names:
        publish(front.site, name, name)
    page.until("seen.filter(([name]) => name === 'message').length == 40")
    assert sorted(detail["stream"] for detail in page.seen("message")) == sorted(names)


# tabs ----------------------------------------------------------------------------------------------------------------


def test_two_tabs_have_one_connection(tabs: Profile, front: Front, stream: str) -> None:
    pages = open_tabs(tabs, front, element(stream), 2)
    publish(front.site, stream, "a", "b")
    for page in pages:
        page.until_data(["a", "b"])
    front.until_live(1)


def test_tabs_with_different_streams_have_one_connection_and_each_gets_its_own(
    tabs: Profile, front: Front, stream: str
) -> None:
    pages = [tabs.open(front.page(element(f"{stream}{letter}"), path=f"/{letter}")) for letter in "ab"]
    for page in pages:
        page.until_open()
    for letter in "ab":
        publish(front.site, f"{stream}{letter}", letter)
    pages[0].until_data(["a"])
    pages[1].until_data(["b"])
    front.until_live(1)
    pages[0].close()
    publish(front.site, f"{stream}b", "more")
    pages[1].until_data(["b", "more"])


def test_a_closed_tab_hands_over_the_connection_without_loss_or_repetition(
    tabs: Profile, front: Front, stream: str
) -> None:
    """Tabs are closed one after the other while messages come all the time."""
    pages = open_tabs(tabs, front, element(stream), 4)
    sent: list[str] = []
    numbers = count()

    over = Event()

    def talk() -> None:
        # Not killed, because what is cut off in the middle of publishing may never come.
        while not over.wait(0.005):
            sent.append(str(next(numbers)))
            publish(front.site, stream, sent[-1])

    talker = gevent.spawn(talk)
    try:
        for page in pages[:3]:
            until(lambda: len(pages[3].data()) > 20, "messages arrive")
            page.close()
            before = len(sent)
            until(lambda before=before: len(pages[3].data()) > before + 20, "messages still arrive")  # type: ignore[misc]
    finally:
        over.set()
        talker.join()
    pages[3].until_data(sent)
    front.until_live(1)


def test_a_tab_that_navigates_away_hands_over_and_returns_as_a_follower(
    tabs: Profile, front: Front, stream: str
) -> None:
    first, second = open_tabs(tabs, front, element(stream, 'since="0"'), 2)
    publish(front.site, stream, "a")
    first.until_data(["a"])
    first.goto("/other")
    publish(front.site, stream, "b")
    second.until_data(["a", "b"])
    first.back()
    # The page from the cache has these already. One that is loaded again gets them again.
    first.until("typeof seen !== 'undefined'")
    first.until_data(["a", "b"])
    publish(front.site, stream, "c")
    for page in (first, second):
        page.until_data(["a", "b", "c"])
    front.until_live(1)


def test_a_tab_that_crashes_hands_over_too(tabs: Profile, front: Front, stream: str) -> None:
    first, second = open_tabs(tabs, front, element(stream), 2)
    publish(front.site, stream, "a")
    second.until_data(["a"])
    first.crash()
    publish(front.site, stream, "b")
    second.until_data(["a", "b"])
    front.until_live(1)


def test_the_stream_of_a_crashed_tab_is_no_longer_followed(tabs: Profile, front: Front, stream: str) -> None:
    first, second = (tabs.open(front.page(element(f"{stream}{letter}"), path=f"/{letter}")) for letter in "ab")
    for page in (first, second):
        page.until_open()
    until(lambda: front.followed == {f"{stream}a", f"{stream}b"}, "both are followed")
    second.crash()
    until(lambda: front.followed == {f"{stream}a"}, "only the first is followed")


def test_the_connection_keeps_its_id_when_it_moves_to_another_tab(tabs: Profile, front: Front, stream: str) -> None:
    """So a page that excludes itself from its own broadcasts stays excluded."""
    first, second = open_tabs(tabs, front, element(stream), 2)
    (opened,) = first.seen("pgbus:open")
    first.close()
    until(lambda: len(front.asked) == 2, "the second asks")
    assert f"connection={opened['connectionId']}" in front.asked[1]
    front.site.bus.stream(stream).broadcast("its own", exclude=opened["connectionId"])
    publish(front.site, stream, "a")
    second.until_data(["a"])


def test_twelve_tabs_are_all_live_and_can_still_load_other_things(tabs: Profile, front: Front, stream: str) -> None:
    pages = open_tabs(tabs, front, element(stream), 12)
    publish(front.site, stream, "a")
    for page in pages:
        page.until_data(["a"])
        assert page.eval("fetch('/something').then((response) => response.text())") == "hello"
    front.until_live(1)


def test_a_blocked_tab_loses_the_connection_and_follows_when_it_continues(
    tabs: Profile, front: Front, stream: str
) -> None:
    first, second = open_tabs(tabs, front, element(stream), 2)
    with front.standing_still(first):
        publish(front.site, stream, "a")
        second.eval("{ patient = false; document.dispatchEvent(new Event('visibilitychange')); }")
        publish(front.site, stream, "b")
        second.until_data(["a", "b"])
    first.until_data(["a", "b"])
    publish(front.site, stream, "c")
    for page in (first, second):
        page.until_data(["a", "b", "c"])
    front.until_live(1)


def test_a_tab_with_a_dialog_hands_over_to_one_that_is_looked_at(tabs: Profile, front: Front, stream: str) -> None:
    """In Firefox, a tab with a dialog still gets what other tabs say, but nothing from its connection."""
    first, second = open_tabs(tabs, front, element(stream), 2)
    first.do("kept.dialog = new Promise((shown) => page.once('dialog', shown))")
    first.eval("void setTimeout(() => { confirm('Delete it?'); window.answered = true; }, 300)")
    first.do("await kept.dialog")
    second.eval("{ patient = false; document.dispatchEvent(new Event('visibilitychange')); }")
    publish(front.site, stream, "a", "b")
    second.until_data(["a", "b"])
    first.do("await (await kept.dialog).accept()")
    first.until("window.answered")
    first.until_data(["a", "b"])
    front.until_live(1)


DEAF = """
const { set } = Object.getOwnPropertyDescriptor(BroadcastChannel.prototype, "onmessage");
window.missed = 0;
const first = ({ t, keys }) => t === "frame" && keys.length && !missed++;
const missing = (take) => (event) => (first(event.data) ? undefined : take(event));
Object.defineProperty(BroadcastChannel.prototype, "onmessage", { set(take) { set.call(this, missing(take)); } });
"""
"""A tab that misses the first message that another tab passes to it. One about no stream only shows that a tab lives."""


def test_a_message_that_a_tab_missed_is_fetched(tabs: Profile, front: Front, stream: str) -> None:
    path = front.page(element(stream))
    first = tabs.open(path)
    first.until_open()
    second = tabs.open(path, init=DEAF)
    second.until_open()
    publish(front.site, stream, "a")
    first.until_data(["a"])
    second.until("missed == 1")
    publish(front.site, stream, "b")
    for page in (second, first):
        page.until_data(["a", "b"])
    front.until_live(1)


def test_a_lost_connection_loses_nothing_for_any_tab(tabs: Profile, front: Front, stream: str) -> None:
    pages = open_tabs(tabs, front, element(stream), 3)
    publish(front.site, stream, "a")
    front.drop()
    publish(front.site, stream, "b")
    for page in pages:
        page.until_data(["a", "b"])
        assert len(page.seen("pgbus:close")) == 1
    front.until_live(1)


def test_a_refusal_closes_the_element_in_every_tab(tabs: Profile, front: Front, stream: str) -> None:
    pages = open_tabs(tabs, front, element(stream), 2)
    front.intercept = status("403 No")
    front.drop()
    for page in pages:
        page.until("source.state == 'closed'")
        assert [(close["status"], close["willRetry"]) for close in page.seen("pgbus:close")][-1] == (403, False)
    holds(lambda: front.live == 0, "no tab connects", 0.5)


def test_profiles_share_nothing(tabs: Profile, browser: Browser, front: Front, stream: str) -> None:
    page = tabs.open(front.page(element(stream)))
    page.until_open()
    other = Profile(browser, front.site.url)
    other.open("/page").until_open()
    front.until_live(2)
    other.close()
