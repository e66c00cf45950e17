"""Several logins in one browser: tabs share a connection only if the server has answered for the same subscriber."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from browser_parts import Browser, Front, Page, Profile, element, profile, publish
from login_parts import RECHECK, Logins, browser_site, log_in, logins, paths, whisper
from support import holds, until

pytestmark = pytest.mark.every_engine

__all__ = ["browser_site", "logins"]  # the fixtures


@pytest.fixture
def tabs(browser: Browser, front: Front) -> Iterator[Profile]:
    with profile(browser, front) as tabs:
        yield tabs
    front.until_live(0)


def arrive(tabs: Profile, front: Front, body: str) -> Page:
    page = tabs.open(front.page(body, path=f"/page{next(paths)}"))
    page.until_open()
    return page


@pytest.mark.parametrize("order", [("ada", "bob"), ("bob", "ada")])
@pytest.mark.parametrize("named", [True, False], ids=["owners", "contexts alone"])
@pytest.mark.parametrize("tagged", [True, False], ids=["tags", "elements by hand"])
def test_each_login_gets_exactly_the_messages_that_it_may_see(
    tabs: Profile, front: Front, logins: Logins, stream: str, order: tuple[str, str], named: bool, tagged: bool
) -> None:
    logins.named = named
    pages = {}
    for login in order:
        log_in(tabs, login)
        body = logins.tag(login, stream) if tagged else element(stream)
        pages[login] = [arrive(tabs, front, body) for _ in range(2)]
    whisper(front, stream, "for admins")
    publish(front.site, stream, "for all")
    for page in pages["ada"]:
        page.until_data(["for admins", "for all"])
    for page in pages["bob"]:
        page.until_data(["for all"])
    front.until_live(2)


def test_tabs_of_one_login_share_a_connection_with_or_without_tags(
    tabs: Profile, front: Front, logins: Logins, stream: str
) -> None:
    log_in(tabs, "ada")
    pages = [arrive(tabs, front, body) for body in (logins.tag("ada", stream), element(front.site.sign(stream)))]
    whisper(front, stream, "for admins")
    for page in pages:
        page.until_data(["for admins"])
    assert (front.live, len(front.heads)) == (1, 1)


@pytest.mark.parametrize("shared", ["tabs", "page"])
def test_a_page_made_for_another_login_shows_no_message_of_this_one(
    tabs: Profile, front: Front, logins: Logins, stream: str, shared: str
) -> None:
    log_in(tabs, "bob")
    body = logins.tag("ada", stream).replace(" id=", f' shared="{shared}" id=')
    publish(front.site, stream, "after the page was made")
    page = tabs.open(front.page(body))
    (close,) = page.until_seen(1, "pgbus:close")
    assert (close["reason"], close["willRetry"], page.state) == ("identity-changed", False, "closed")
    front.until_live(0)
    asked = list(front.asked)  # more than once, if the first answer took too long
    publish(front.site, stream, "for all")
    holds(lambda: front.asked == asked, f"it does not ask again: {asked}", 0.5)
    assert page.data() == []


@pytest.mark.parametrize("tagged", [True, False], ids=["tags", "elements by hand"])
def test_open_tabs_end_when_the_server_answers_for_another_login(
    tabs: Profile, front: Front, logins: Logins, stream: str, tagged: bool
) -> None:
    log_in(tabs, "bob")
    pages = [arrive(tabs, front, logins.tag("bob", stream) if tagged else element(stream)) for _ in range(2)]
    publish(front.site, stream, "before")
    for page in pages:
        page.until_data(["before"])
    log_in(tabs, "ada")
    front.drop()
    whisper(front, stream, "for admins")
    for page in pages:
        page.until("source.state == 'closed'")
        last = page.seen("pgbus:close")[-1]
        assert (last["reason"], last["willRetry"]) == ("identity-changed", False)
        assert page.data() == ["before"]
    new = arrive(tabs, front, element(stream, 'since="0"'))
    new.until_data(["before", "for admins"])
    front.until_live(1)


def test_a_follower_that_takes_over_ends_if_the_login_has_changed(
    tabs: Profile, front: Front, logins: Logins, stream: str
) -> None:
    log_in(tabs, "bob")
    first, second = (arrive(tabs, front, element(stream)) for _ in range(2))
    log_in(tabs, "ada")
    first.close()
    second.until("source.state == 'closed'")
    assert second.seen("pgbus:close")[-1]["reason"] == "identity-changed"


def test_a_login_with_a_new_role_continues_with_the_rights_of_that_role(
    tabs: Profile, front: Front, logins: Logins, stream: str
) -> None:
    log_in(tabs, "ada")
    pages = [arrive(tabs, front, logins.tag("ada", stream)) for _ in range(2)]
    logins.contexts["ada"] = {"admin": False}
    new = arrive(tabs, front, logins.tag("ada", stream))
    # After a recheck, the server has sent the new identity, and the tabs share a connection under it.
    front.until_live(1)
    whisper(front, stream, "for admins")
    publish(front.site, stream, "for all")
    for page in (*pages, new):
        page.until_data(["for all"])
        assert page.seen("pgbus:close") == []


def test_open_tabs_end_if_their_session_now_belongs_to_another_owner(
    tabs: Profile, front: Front, logins: Logins, stream: str
) -> None:
    """The cookie stays the same, but in a recheck the hook returns another owner for it."""
    log_in(tabs, "bob")
    pages = [arrive(tabs, front, element(stream)) for _ in range(2)]
    logins.owners["bob"] = "ada"
    logins.contexts["bob"] = {"admin": True}
    for page in pages:
        page.until("source.state == 'closed'")
        assert page.seen("pgbus:close")[-1]["reason"] == "identity-changed"
    whisper(front, stream, "for admins")
    holds(lambda: [page.data() for page in pages] == [[], []], "nothing is shown", 0.3)


@pytest.mark.parametrize("named", [True, False], ids=["owners", "contexts alone"])
def test_one_page_can_follow_streams_under_different_identities(
    tabs: Profile, front: Front, logins: Logins, stream: str, named: bool
) -> None:
    logins.named = named
    names = [f"{stream}:{number}" for number in range(4)]
    logins.open_to_all = {names[0], names[3]}
    log_in(tabs, "ada")
    both = element(names[0]) + element(names[1]).replace('id="source"', 'class="other"')
    pages = [arrive(tabs, front, both) for _ in range(2)]
    for number in (2, 3):
        page = pages[0]
        more = element(names[number]).replace('id="source"', 'class="more"')
        page.eval("(html) => document.body.insertAdjacentHTML('beforeend', html)", more)
        page.until(f"document.querySelectorAll('[state=open]').length == {number + 1}")
    front.drop()
    for name in names:
        whisper(front, name, name)
        publish(front.site, name, "for all")
    allowed = [name for name in names if name not in logins.open_to_all]
    until(lambda: sorted(pages[0].data()) == sorted([*allowed, *["for all"] * 4]), "the first has all that it may see")
    until(lambda: sorted(pages[1].data()) == sorted([names[1], *["for all"] * 2]), "the second has all that it may see")
    for page in pages:
        assert "identity-changed" not in [close["reason"] for close in page.seen("pgbus:close")]


def test_a_context_that_changes_with_every_request_is_live_and_shares_nothing(
    tabs: Profile, front: Front, logins: Logins, stream: str
) -> None:
    numbers = count()
    logins.contexts["ada"] = lambda: {"admin": True, "request": next(numbers)}
    log_in(tabs, "ada")
    pages = [arrive(tabs, front, logins.tag("ada", stream)) for _ in range(2)]
    until(lambda: front.live == 2, "each has a connection")
    asked = len(front.asked)
    holds(lambda: len(front.asked) == asked, "they stay with it", 2 * RECHECK)
    publish(front.site, stream, "for all")
    for page in pages:
        page.until_data(["for all"])


def test_subscribers_that_cannot_be_compared_share_nothing(
    tabs: Profile, front: Front, logins: Logins, stream: str
) -> None:
    log_in(tabs, "eve")
    pages = [arrive(tabs, front, element(stream)) for _ in range(2)]
    assert (front.live, len(front.asked)) == (2, 2)
    publish(front.site, stream, "for all")
    for page in pages:
        page.until_data(["for all"])
    log_in(tabs, "dan")
    front.drop()
    for page in pages:
        page.until("source.state == 'closed'")
        assert page.seen("pgbus:close")[-1]["reason"] == "identity-changed"


def test_tabs_with_another_version_of_the_element_share_nothing(
    tabs: Profile, front: Front, logins: Logins, stream: str
) -> None:
    page = arrive(tabs, front, element(stream))
    names = page.eval("navigator.locks.query().then(({ held }) => held.map(({ name }) => name))")
    assert len(names) == 2
    assert all(name.startswith("pgbus/") for name in names)


def test_a_page_from_the_back_forward_cache_ends_if_the_login_has_changed(
    tabs: Profile, front: Front, logins: Logins, stream: str
) -> None:
    log_in(tabs, "bob")
    page = arrive(tabs, front, logins.tag("bob", stream))
    page.goto("/other")
    front.until_live(0)
    log_in(tabs, "ada")
    whisper(front, stream, "for admins")
    publish(front.site, stream, "for all")
    page.back()
    page.until("document.querySelector('[state=closed]')")
    assert page.seen("pgbus:close")[-1]["reason"] == "identity-changed"
    assert page.data() == []


def test_an_identity_made_with_another_secret_does_not_count_as_another_login(
    tabs: Profile, front: Front, logins: Logins, stream: str
) -> None:
    """Such identities cannot be compared. The page was made before the secret was replaced, or by a worker with the new one."""
    log_in(tabs, "bob")
    former = 'identity="0ff1ce.0123456789abcdef.fedcba9876543210"'
    pages = [arrive(tabs, front, body) for body in (element(stream, former), element(stream))]
    publish(front.site, stream, "a")
    for page in pages:
        page.until_data(["a"])
        assert page.seen("pgbus:close") == []
    front.until_live(1)


def test_tabs_with_and_without_cookies_share_nothing(tabs: Profile, front: Front, logins: Logins, stream: str) -> None:
    logins.open_to_all.add(stream)
    pages = [arrive(tabs, front, element(stream, f'credentials="{each}"')) for each in ("omit", "same-origin", "omit")]
    publish(front.site, stream, "a")
    for page in pages:
        page.until_data(["a"])
    front.until_live(2)


@pytest.mark.parametrize("how", ["its connection is lost", "it takes the connection over"])
def test_only_the_stream_whose_identity_changed_ends(
    tabs: Profile, front: Front, logins: Logins, stream: str, how: str
) -> None:
    public, private = f"{stream}:public", f"{stream}:private"
    logins.open_to_all.add(public)
    log_in(tabs, "bob")
    body = element(public) + element(private).replace('id="source"', 'id="other"')
    first, second = (arrive(tabs, front, body) for _ in range(2))
    for page in (first, second):
        page.until("other.state == 'open'")
    log_in(tabs, "ada")
    if how == "its connection is lost":
        front.drop()
    else:
        first.close()
    second.until("other.state == 'closed' && source.state == 'open'")
    close = second.seen("pgbus:close")[-1]
    assert (close["reason"], close["streams"]) == ("identity-changed", [private])
    whisper(front, private, "for admins")
    publish(front.site, public, "a")
    second.until_data(["a"])
