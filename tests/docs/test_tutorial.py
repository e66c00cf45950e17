"""The application that the tutorial ends with does in a browser what the tutorial says. ``test_pages`` takes its steps."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from browser_parts import Browser, Page, Profile, missing
from page_parts import blocks

from pgbus_gevent.testing.servers import RunningServer

pytestmark = [pytest.mark.skipif(bool(missing()), reason=missing()), pytest.mark.docs]

TUTORIAL = "docs/start/tutorial.md"


@pytest.fixture
def site(
    pgbus_database: str, pgbus_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunningServer]:
    for block in blocks(TUTORIAL):
        if name := block.value("file"):
            (tmp_path / name).write_text(block.text, encoding="utf-8")  # a later step replaces the file
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PGBUS_DATABASE_URL", pgbus_database)
    monkeypatch.setenv("PGBUS_SECRET", "only for these tests")
    todo = importlib.import_module("todo")
    pgbus_server.app = todo.app
    yield pgbus_server
    todo.app.close()
    del sys.modules["todo"]


@pytest.fixture
def person(browser: Browser, site: RunningServer) -> Iterator[Profile]:
    person = Profile(browser, site.url)
    yield person
    assert person.errors == []
    person.close()


def until_shown(page: Page, *texts: str) -> None:
    shown = "[...document.querySelectorAll('#todos li')].map((row) => row.firstChild.textContent.trim())"
    page.until(f"JSON.stringify({shown}) == JSON.stringify({json.dumps(texts)})")


def test_two_windows_show_each_change_also_after_an_absence(site: RunningServer, person: Profile) -> None:
    first, second = person.open("/"), person.open("/")
    for page in (first, second):
        page.until("document.querySelector('pgbus-stream-source').state == 'open'")

    first.eval("void (document.querySelector('[name=text]').value = 'tea <b>')")
    first.eval("void document.querySelector('[action=\"/todos\"] button').click()")
    until_shown(second, "tea <b>")
    until_shown(first, "tea <b>")

    person.offline(True)
    with urlopen(f"{site.url}/todos", urlencode({"text": "milk"}).encode()):
        pass
    person.offline(False)
    until_shown(second, "tea <b>", "milk")
    until_shown(first, "tea <b>", "milk")

    second.eval("void document.querySelector('#todos button').click()")
    until_shown(first, "milk")
    until_shown(second, "milk")


def test_a_page_that_was_away_for_too_long_loads_itself_again(site: RunningServer, person: Profile) -> None:
    page = person.open("/")
    page.until("document.querySelector('pgbus-stream-source').state == 'open'")
    page.eval("void (window.before = true)")
    gap = "new CustomEvent('pgbus:gap', { bubbles: true })"  # test_element shows when the element fires it
    page.eval(f"void document.querySelector('pgbus-stream-source').dispatchEvent({gap})")
    page.until("!window.before")
    page.until("document.querySelector('pgbus-stream-source').state == 'open'")
