"""The connection moves between tabs while messages are on the way: no message is lost, and none comes twice."""

from __future__ import annotations

import pytest
from browser_parts import Front, Page, Profile, element, publish, says
from gevent.event import Event
from support import PATIENCE, until

pytestmark = pytest.mark.every_engine


def open_tabs(tabs: Profile, front: Front, stream: str, number: int) -> list[Page]:
    path = front.page(element(stream))
    pages = []
    for _ in range(number):
        pages.append(tabs.open(path))
        pages[-1].until_open()
    return pages


def ephemeral(front: Front, stream: str, data: str) -> None:
    front.site.bus.stream(stream).broadcast(data, ephemeral=True)


LOOK = "{ patient = false; document.dispatchEvent(new Event('visibilitychange')); }"


def test_a_leader_that_wakes_up_sends_nothing_to_tabs_with_another_leader(
    tabs: Profile, front: Front, stream: str
) -> None:
    first, second, third = open_tabs(tabs, front, stream, 3)
    ephemeral(front, stream, "before")
    for page in (first, second, third):
        page.until_data(["before"])
    with front.standing_still(first):
        with front.site.watch(stream) as witness:
            witness.next("pgbus:connected", timeout=PATIENCE)
            ephemeral(front, stream, "for the first alone")
            witness.next(timeout=PATIENCE)
        asked = len(front.asked)
        second.eval(LOOK)
        until(lambda: len(front.asked) > asked, "the second has taken over")
        publish(front.site, stream, "stored")
        for page in (second, third):
            page.until_data(["before", "stored"])
        ephemeral(front, stream, "meanwhile")
        for page in (second, third):
            page.until_data(["before", "stored", "meanwhile"])
    first.until("seen.some(([, detail]) => detail.data === 'stored')")
    publish(front.site, stream, "after")
    for page in (second, third):
        page.until_data(["before", "stored", "meanwhile", "after"])
        assert page.seen("pgbus:close") == []
    first.until("seen.some(([, detail]) => detail.data === 'after')")
    got = first.data()
    assert [data for data in got if data in ("stored", "after")] == ["stored", "after"]
    assert len({*got}) == len(got)


def test_tabs_ignore_messages_of_a_former_leader(tabs: Profile, front: Front, stream: str) -> None:
    """It does not matter how or when a former leader sends something."""
    first, second = open_tabs(tabs, front, stream, 2)
    publish(front.site, stream, "a")
    second.until_data(["a"])
    first.eval(
        """
        async (key) => {
          const names = (await navigator.locks.query()).held.map(({ name }) => name).sort((a, b) => a.length - b.length);
          const stale = { t: "frame", from: "a former one", keys: [key], detail: { event: "", data: "stale" } };
          new BroadcastChannel(names[0]).postMessage(stale);
        }
        """,
        stream,
    )
    publish(front.site, stream, "b")
    second.until_data(["a", "b"])


def test_a_leader_that_ends_in_the_middle_of_a_message_loses_and_doubles_nothing(
    tabs: Profile, front: Front, stream: str
) -> None:
    first, second = open_tabs(tabs, front, stream, 2)
    (before,) = publish(front.site, stream, "before")
    for page in (first, second):
        page.until_data(["before"])
    hello = (
        f'event: pgbus:connected\ndata: {{"connectionId":"c0ffee00c0ffee00","streams":[{{"name":"{stream}","lastId":{before}}}]}}'
        "\n\n"
    )
    (id,) = publish(front.site, stream, "whole")
    over = Event()
    front.intercept = says(hello.encode(), f"data: whole\nid: {id}\n".encode(), silence=20, over=over)
    asked = len(front.asked)
    front.drop()
    until(lambda: len(front.asked) > asked, "half of it is there")
    second.until_open()
    first.close()
    over.set()
    second.until_data(["before", "whole"])
    publish(front.site, stream, "after")
    second.until_data(["before", "whole", "after"])
