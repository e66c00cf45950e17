"""Pages without some of the features that the element uses. Each then has its own connection, and gets its messages."""

from __future__ import annotations

import pytest
from browser_parts import Front, Profile, element, publish

pytestmark = pytest.mark.every_engine

REJECTED = "LockManager.prototype.request = () => Promise.reject(new DOMException('no', '{name}'));"
BLOCKED = {
    "there are no locks": "delete Navigator.prototype.locks",
    "there are no channels": "delete window.BroadcastChannel",
    "locks are insecure": REJECTED.replace("{name}", "SecurityError"),
    "locks are not supported": REJECTED.replace("{name}", "NotSupportedError"),
    "locks have no state": REJECTED.replace("{name}", "InvalidStateError"),
    "locks throw": "LockManager.prototype.request = () => { throw new Error('no'); };",
    "locks are null": "Object.defineProperty(Navigator.prototype, 'locks', { get: () => null });",
    "channels throw": "window.BroadcastChannel = class { constructor() { throw new DOMException('no', 'SecurityError'); } };",
    "channels throw something else": "window.BroadcastChannel = class { constructor() { throw new TypeError('no'); } };",
}


@pytest.mark.parametrize("what", BLOCKED)
def test_tabs_without_shared_features_have_a_connection_each(
    tabs: Profile, front: Front, stream: str, what: str
) -> None:
    path = front.page(element(stream))
    pages = [tabs.open(path, init=BLOCKED[what]) for _ in range(2)]
    for page in pages:
        page.until_open()
    front.until_live(2)
    publish(front.site, stream, "a")
    for page in pages:
        page.until_data(["a"])
    front.drop()
    publish(front.site, stream, "b")
    for page in pages:
        page.until_data(["a", "b"])


def test_a_page_that_may_not_connect_fires_close_and_keeps_trying(tabs: Profile, front: Front, stream: str) -> None:
    policy = """<meta http-equiv="Content-Security-Policy" content="connect-src 'none'">"""
    page = tabs.open(front.page(element(stream), head=policy))
    page.until("seen.some(([name]) => name === 'pgbus:close')")
    close = page.seen("pgbus:close")[0]
    assert (close["reason"], close["willRetry"], len(front.asked)) == ("network", True, 0)


MUTE = """
  const { fetch: real, setTimeout: later } = window;
  window.setTimeout = (act, ms) => later(act, ms === 15000 ? 50 : ms);
  window.fetch = (url, options) => options?.method !== "HEAD" ? real(url, options) : new Promise((_, fail) =>
    options.signal.addEventListener("abort", () => fail(options.signal.reason)));
"""
"""A network that answers no HEAD, and a page that waits for it for 0.05 s instead of 15 s."""


def test_an_element_follows_a_stream_if_the_server_does_not_answer_for_the_identity(
    tabs: Profile, front: Front, stream: str
) -> None:
    page = tabs.open(front.page(element(stream)), init=MUTE)
    page.until_open()
    publish(front.site, stream, "a")
    page.until_data(["a"])
