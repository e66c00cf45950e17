"""Tabs of two logins open, close and crash, with one connection per login, while messages come all the time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import gevent
import pytest
from browser_parts import Browser, Front, Page, Profile, element, publish
from gevent.event import Event
from login_parts import Logins, browser_site, log_in, logins, paths, whisper
from support import until

pytestmark = pytest.mark.every_engine

__all__ = ["browser_site", "logins"]  # the fixtures

STEPS = 8
BUSY = "void setTimeout(() => { const end = performance.now() + 300; while (performance.now() < end); })"
SEEN = (
    "typeof seen === 'undefined' ? [] : seen.filter(([name]) => name === 'pgbus:message').map(([, { data }]) => data)"
)


@contextmanager
def talk(front: Front, stream: str) -> Iterator[list[str]]:
    """Publish messages for all, and every third one for admins alone."""
    sent: list[str] = []
    over = Event()

    def send() -> None:
        # Not killed, because what is cut off in the middle of publishing may never come.
        for number in count():
            if over.wait(0.01):
                return
            sent.append(f"for {'admins' if number % 3 == 0 else 'all'} {number}")
            (whisper if number % 3 == 0 else publish)(front if number % 3 == 0 else front.site, stream, sent[-1])

    talker = gevent.spawn(send)
    try:
        yield sent
    finally:
        over.set()
        talker.join()


class Crowd:
    """The open tabs, each with its login."""

    def __init__(self, tabs: Profile, front: Front, logins: Logins, stream: str, rng: random.Random) -> None:
        self.pages: list[tuple[str, Page]] = []
        self._tabs, self._front, self._logins, self._stream, self._rng = tabs, front, logins, stream, rng

    def arrive(self, login: str | None = None) -> None:
        login = login or self._rng.choice(["ada", "bob"])
        log_in(self._tabs, login)
        body = self._rng.choice([self._logins.tag(login, self._stream), element(self._stream)])
        page = self._tabs.open(self._front.page(body, path=f"/page{next(paths)}"))
        settle(page)
        self.pages.append((login, page))

    def leave(self) -> None:
        self.pages.pop(self._rng.randrange(len(self.pages)))[1].close()
        self.arrive()

    def crash(self) -> None:
        self.pages.pop(0)[1].crash()
        self.arrive()

    def go_and_return(self) -> None:
        login, page = self._rng.choice(self.pages)
        log_in(self._tabs, login)
        page.goto("/other")
        page.back()
        settle(page)

    def stand_still(self) -> None:
        self._rng.choice(self.pages)[1].eval(BUSY)

    def log_in(self) -> None:
        log_in(self._tabs, self._rng.choice(["ada", "bob"]))

    def drop(self) -> None:
        self._front.drop()


@pytest.mark.parametrize("seed", [1, 4])
def test_each_remaining_tab_has_all_messages_that_it_may_see_once_and_in_order(
    browser: Browser, tabs: Profile, front: Front, logins: Logins, stream: str, seed: int
) -> None:
    rng = random.Random(seed)
    crowd = Crowd(tabs, front, logins, stream, rng)
    # Firefox has at most four processes for all tabs of a site, and WebKit's driver ends all tabs if one crashes.
    crash = crowd.crash if browser.engine == "chromium" else crowd.leave
    acts = [crowd.arrive, crowd.leave, crash, crowd.go_and_return, crowd.stand_still, crowd.log_in, crowd.drop]
    with talk(front, stream) as sent:
        for login in ("ada", "bob", "ada", "bob"):
            crowd.arrive(login)
        for act in rng.choices(acts, k=STEPS):
            act()
            gevent.sleep(rng.random() * 0.2)
    for login, page in crowd.pages:
        visible = [data for data in sent if login == "ada" or data.startswith("for all")]
        until(lambda: is_done(page, visible[-1]), f"{login} has all, or has ended because the login changed")  # noqa: B023
        got = page.eval(SEEN)
        if got:
            begin = visible.index(got[0])
            assert got == visible[begin : begin + len(got)], login


def settle(page: Page) -> None:
    """Wait, because an element without an identity belongs to the login at the time of its first request."""
    page.until("document.querySelector('[state=open], [state=closed]') !== null")


def is_done(page: Page, last: str) -> bool:
    if page.eval("document.querySelector('[state=closed]') !== null"):
        return bool(page.seen("pgbus:close")[-1]["reason"] == "identity-changed")
    return bool(page.eval(SEEN)[-1:] == [last])
