"""The examples in a real browser show what their pages promise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser_parts import MODULES, Browser, Page, Profile, missing
from page_shape_parts import check_fit, listen, spoken, tab_through
from program_parts import ROOT, Program, program
from support import until

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

TURBO = str(MODULES / "@hotwired/turbo/dist/turbo.es2017-esm.js")


@contextmanager
def site(
    browser: Browser, name: str, url: str, cwd: Path, *arguments: str, **env: Any
) -> Iterator[tuple[Program, Profile]]:
    """Run an example, and open a browser in which no script may fail."""
    with program(str(ROOT / "examples" / name), *arguments, database_url=url, cwd=cwd, **env) as example:
        tabs = Profile(browser, example.url)
        try:
            yield example, tabs
            assert tabs.errors == []
        finally:
            tabs.close()


def somebody_else(browser: Browser, url: str) -> Page:
    """Open a tab of another person, without the cookies of the first."""
    number = browser.run(
        """
        const page = await (await browser.newContext()).newPage();
        page.on("pageerror", (error) => kept.profiles.at(-1).errors.push(String(error)));
        await page.goto(arg);
        return kept.pages.push(page) - 1;
        """,
        url,
    )
    return Page(browser, number)


def text(page: Page, selector: str) -> list[str]:
    """Return the texts of all matching elements."""
    return list(page.eval("(given) => [...document.querySelectorAll(given)].map((one) => one.textContent)", selector))


def until_text(page: Page, selector: str, expected: list[str]) -> None:
    until(lambda: text(page, selector) == expected, f"{selector}: {expected}", pause=0.03)


# the chat ------------------------------------------------------------------------------------------------------------


def test_the_chat(browser: Browser, pgbus_database: str, tmp_path: Path) -> None:
    """Two people in a room see each other come, type, speak and go. Each message appears once, earlier ones too."""
    with site(browser, "chat.py", pgbus_database, tmp_path) as (example, tabs):
        ada = tabs.open("/garden")
        ada.until_open()
        welcome = "HostWelcome to the garden. Come with a second browser, and talk."
        until_text(ada, "#log p", [welcome])
        ada.do("await page.fill('nav [name=name]', 'Ada'); await page.click('nav button')")
        until_text(ada, "#names li", ["Ada (you)"])
        bob = somebody_else(browser, f"{example.url}/garden")
        bob.until_open()
        bob.do("await page.fill('nav [name=name]', 'Bob'); await page.click('nav button')")
        # For a moment, the guest that Bob was before still counts.
        until_text(ada, "#names li", ["Ada (you)", "Bob"])
        until_text(bob, "#names li", ["Ada", "Bob (you)"])

        typing = "document.getElementById('typing')"
        note = f"new MutationObserver(() => typed.push({typing}.textContent)).observe({typing}, {{ childList: true }})"
        bob.eval(f"(window.typed = [], void {note})")
        ada.do("await page.type('#text', 'Hello')")
        bob.until("typed.includes('Ada is typing …')")
        ada.do("await page.press('#text', 'Enter')")
        until_text(bob, "#log p", ["AdaHello", welcome])
        until_text(bob, "#typing", [""])
        bob.do("await page.fill('#text', '<b>hi</b>'); await page.press('#text', 'Enter')")
        # The newest is first in the document, and is displayed last.
        until_text(ada, "#log p", ["Bob<b>hi</b>", "AdaHello", welcome])
        assert text(bob, "#log p") == ["Bob<b>hi</b>", "AdaHello", welcome], "no echo"
        for page in (ada, bob):
            # What was typed before a message may be told after it.
            until_text(page, "#typing", [""])

        second = tabs.open("/garden")
        until_text(second, "#log p", ["Bob<b>hi</b>", "AdaHello", welcome])
        until_text(second, "#names li", ["Ada (you)", "Bob"])
        ada.do("await page.fill('#text', 'again'); await page.press('#text', 'Enter')")
        for page in (ada, second, bob):
            until_text(page, "#log p", ["Adaagain", "Bob<b>hi</b>", "AdaHello", welcome])
        second.close()
        check_fit(ada)
        reached = tab_through(ada)
        assert {"garden", "name", "Rename", "log", "text", "Say it"} <= {*reached}, reached
        bob.do("await page.context().close()")
        until_text(ada, "#names li", ["Ada (you)"])


# the assistant -------------------------------------------------------------------------------------------------------

AWAY = """
  addEventListener("pgbus:message", () => {
    if (words < 60 || window.away || performance.getEntriesByType("navigation")[0].type !== "reload") return;
    window.away = source;
    source.remove();
  });
"""
"""A page that takes its element out in the middle of the answer, if it was reloaded."""


def test_an_answer_survives_a_reload(browser: Browser, pgbus_database: str, tmp_path: Path) -> None:
    """It also survives a cut connection, and everyone with the URL can see it."""
    with site(browser, "assistant.py", pgbus_database, tmp_path, PAUSE="0.04") as (_, tabs):
        page = tabs.open("/", AWAY)
        page.until_open()
        page.until("document.querySelector('.answer.done')", "it has introduced itself")
        first, said = page.eval("words"), len(text(page, ".answer")[0].split())
        assert first == said > 20
        check_fit(page)
        assert {"Why live in the woods?", "reload", "cut"} <= {*tab_through(page)}
        page.do("await page.click('text=Why live in the woods?')")
        page.until(f"words > {first + 5}")
        page.do("await page.reload()")
        page.until("window.away")
        before = page.eval("words")
        other = tabs.open(page.eval("location.pathname"))
        other.until(f"words > {before + 5}")
        page.eval("document.body.append(away)")
        for tab in (page, other):
            tab.until("document.querySelectorAll('.answer.done').length === 2")
            _, answer = text(tab, ".answer")
            assert answer.startswith("I went to the woods") and answer.endswith("Walden (1854)")
            assert tab.eval("[words, missing, repeated]") == [said + len(answer.split()), 0, 0]


# the bakery ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [TURBO, "none"], ids=["with Turbo", "without"])
def test_the_bakery(library: str, browser: Browser, pgbus_database: str, pgbus_bus: Any, tmp_path: Path) -> None:
    """A window that is open and one that was loading show each change once, without a reload."""
    with site(browser, "orders_turbo.py", pgbus_database, tmp_path, "--turbo", library) as (example, tabs):
        one = tabs.open("/")
        one.until_open()
        assert text(one, "li b") == ["ordered", "baking", "done"] and text(one, "#count") == ["2 open"]
        check_fit(one)
        assert {"item", "Order", "bake a rye bread"} <= {*tab_through(one)}
        with pgbus_bus.transaction() as cursor:
            cursor.execute("truncate bakery restart identity")
        one.do("await page.reload()")
        one.until_open()
        assert one.eval("'Turbo' in window") == (library == TURBO)
        one.eval("window.kept = true")
        one.do("await page.fill('input', '<b>rye</b>'); await page.click('form button')")
        until_text(one, "li span", ["<b>rye</b>"])
        assert one.eval("document.querySelector('input').value") == ""

        # The page of the second window is made before these changes, and arrives after them.
        one.do(
            """
            const later = await kept.context.newPage();
            kept.later = later.goto(new URL("/?slow=1", page.url()).href).then(() => kept.pages.push(later) - 1);
            await page.waitForTimeout(400);
            """
        )
        assert example.post("/orders", item="wheat").status == 204
        one.do("await page.click('#order-1 button')")
        until_text(one, "li b", ["ordered", "baking"])
        other = Page(browser, browser.run("return await kept.later"))
        for page in (one, other):
            until_text(page, "li span", ["wheat", "<b>rye</b>"])
            until_text(page, "li b", ["ordered", "baking"])
            until_text(page, "#count", ["2 open"])
        one.do("await page.click('#order-1 button')")
        for page in (one, other):
            until_text(page, "li b", ["ordered", "done"])
            until_text(page, "#count", ["1 open"])
        assert one.eval("kept") is True


# the table -----------------------------------------------------------------------------------------------------------


def test_the_table(browser: Browser, pgbus_database: str, pgbus_bus: Any, tmp_path: Path) -> None:
    """The changes of a separate session appear on the page, row by row."""
    with site(browser, "table_feed.py", pgbus_database, tmp_path) as (_, tabs):
        page = tabs.open("/")
        page.until_open()
        assert text(page, "#rows td:nth-child(2)") == ["coffee", "sugar", "rice"]
        check_fit(page)
        assert "log" in tab_through(page), "the changes can be scrolled by keyboard"
        listen(page)
        with pgbus_bus.transaction() as cursor:
            cursor.execute("update stock set quantity = 3 where item = 'sugar'; delete from stock where item = 'rice'")
            cursor.execute("insert into stock (item, price) values ('<b>tea</b>', 4)")
        until_text(page, "#rows td:nth-child(2)", ["coffee", "sugar", "<b>tea</b>"])
        assert text(page, "#rows td:nth-child(4)") == ["5", "3", "5"]
        assert [words.split()[0] for words in text(page, "#log li")] == ["insert", "delete", "update"]
        page.do("await page.click('text=update stock set price')")
        until_text(page, "#rows td:nth-child(3)", ["8.25", "1.10", "4.00"])
        with pgbus_bus.transaction() as cursor:
            cursor.execute("truncate stock")
        until_text(page, "#rows td", [])
        until(lambda: spoken(page), "screen readers are told", 20)
        assert all("changes, the last: " in words for _, words in spoken(page))


# the wall and the shop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"), [("bottle_app.py", "ul li:first-child"), ("bottle_orders.py", "ol li:first-child span")]
)
def test_the_wall_and_the_shop(browser: Browser, pgbus_database: str, tmp_path: Path, name: str, shown: str) -> None:
    """They open with something to see, and what one person says appears to another, who can do without a mouse."""
    with site(browser, name, pgbus_database, tmp_path) as (example, tabs):
        page = tabs.open("/")
        page.until_open()
        until(lambda: len(text(page, shown)) == 1 and text(page, shown) != [""], "there is something")
        check_fit(page)
        other = somebody_else(browser, f"{example.url}/")
        other.until_open()
        listen(other)
        page.do("await page.focus('input'); await page.keyboard.type('<b>new</b>'); await page.keyboard.press('Enter')")
        until(lambda: text(other, shown) == ["<b>new</b>"], "it is there")
        until(lambda: any("<b>new</b>" in words for _, words in spoken(other)), "screen readers are told", 20)
        assert tab_through(other)[-1] in ("Say it", "Pay")
