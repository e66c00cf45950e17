"""What the engines cannot do, test by test, each with the reason. ``tests/browser/test_engines.py`` checks the entries."""

from __future__ import annotations

import pytest

FAILS: dict[tuple[str, str], str] = {}
"""Tests that fail in an engine, by the engine and the file and name of the test. They run, and must fail."""

_CRASH = "WebKitWebDriver ends the session when a tab crashes, so that the other tabs are gone too"
_DIALOG = "WebKitWebDriver answers nothing about any tab while one shows a dialog"

CANNOT: dict[tuple[str, str], str] = {
    ("webkit", "test_tabs.py::test_a_tab_with_a_dialog_hands_over_to_one_that_is_looked_at"): _DIALOG,
    ("webkit", "test_tabs.py::test_a_tab_that_crashes_hands_over_too"): _CRASH,
    ("webkit", "test_tabs.py::test_the_stream_of_a_crashed_tab_is_no_longer_followed"): _CRASH,
}
"""Tests that an engine, or its driver, cannot even begin."""


def marks(engine: str, test: pytest.Item | pytest.Collector) -> list[pytest.MarkDecorator]:
    """Return the marks that the ledger has for a test in an engine."""
    key = (engine, f"{test.path.name}::{getattr(test, 'originalname', None) or test.name}")
    fails = [pytest.mark.xfail(reason=FAILS[key], strict=True)] if key in FAILS else []
    return [*fails, *([pytest.mark.skip(reason=CANNOT[key])] if key in CANNOT else [])]
