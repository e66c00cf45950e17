"""The engines themselves: all are there, hidden tabs are throttled, and what the back/forward cache does with the element."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from browser_parts import Browser, Front, Profile, element, missing, publish
from engine_ledger_parts import CANNOT, FAILS
from engine_parts import ENGINES

HERE = Path(__file__).parent


@pytest.mark.skipif("PGBUS_TEST_EVERY_ENGINE" not in os.environ, reason="CI sets PGBUS_TEST_EVERY_ENGINE")
def test_ci_has_every_engine() -> None:
    """Elsewhere, the tests in an engine that is not installed are skipped."""
    assert {engine: missing(engine) for engine in ENGINES} == dict.fromkeys(ENGINES, "")


def test_the_entries_of_the_ledger_name_tests() -> None:
    """That those of FAILS still fail is checked where they run."""
    for engine, test in (*FAILS, *CANNOT):
        file, _, name = test.partition("::")
        spec = importlib.util.spec_from_file_location(f"ledger_{Path(file).stem}", HERE / file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert callable(getattr(module, name)) and engine in ENGINES


# hidden tabs ---------------------------------------------------------------------------------------------------------

TICKING = "{ window.ticks = 0; const tick = () => { ticks++; setTimeout(tick, 10); }; tick(); }"


@pytest.mark.every_engine
def test_a_hidden_tab_has_slow_timers_and_gets_its_messages_at_once(tabs: Profile, front: Front, stream: str) -> None:
    page = tabs.open_behind(front.page(element(stream)))
    page.until_open()
    assert page.eval("document.visibilityState") == "hidden"
    page.eval(TICKING)
    # The first ones are as quick as in a visible tab.
    page.until("ticks > 20", timeout=60)
    began = page.eval("[performance.now(), ticks]")
    page.until(f"ticks >= {began[1]} + 6", timeout=60)
    ended = page.eval("[performance.now(), ticks]")
    assert (ended[0] - began[0]) / (ended[1] - began[1]) > 300, "a timer of 10 ms takes about a second"
    before = ended[1]
    for number in range(5):
        publish(front.site, stream, str(number))
        page.until_data([str(each) for each in range(number + 1)])
    assert page.eval("ticks") - before < 30, "no message waits for a timer"
    page.close()


# the back/forward cache ----------------------------------------------------------------------------------------------

KEEPS = {"chromium": True, "firefox": False, "webkit": True}
"""Whether the cache keeps a page with the element. docs/browser.md says so too."""

SHOWS = "(window.shows ??= []); addEventListener('pageshow', ({ persisted }) => shows.push(persisted));"


@pytest.mark.every_engine
def test_a_page_that_comes_back_from_the_cache_has_each_message_once(
    browser: Browser, tabs: Profile, front: Front, stream: str
) -> None:
    (watermark,) = publish(front.site, stream, "on the page")
    page = tabs.open(front.page(element(stream, f'since="{watermark}"')), init=SHOWS)
    page.until_open()
    publish(front.site, stream, "before")
    page.until_data(["before"])
    for turn in (1, 2):
        page.goto("/other")
        front.until_live(0)
        publish(front.site, stream, f"away {turn}")
        page.back()
        page.until("window.shows && document.readyState == 'complete'")
        assert page.eval("shows") == ([False, *[True] * turn] if KEEPS[browser.engine] else [False])
        page.until_data(["before", *[f"away {each}" for each in range(1, turn + 1)]])
        front.until_live(1)
    publish(front.site, stream, "after")
    page.until_data(["before", "away 1", "away 2", "after"])
