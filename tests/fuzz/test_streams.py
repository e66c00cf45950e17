"""Parsers of event streams, fuzzed: in Python, and beside Chromium's EventSource."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser_parts import Browser, missing
from fuzzing.program import in_the_suite, seed_in_the_suite
from fuzzing.streams import STREAM, fuzz_in_browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


@pytest.mark.slow
def test_it_makes_no_difference_where_a_stream_is_cut() -> None:
    in_the_suite(STREAM, seconds=1.5)


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_chromium_reads_every_stream_as_pgbus_js_and_python_do(browser: Browser) -> None:
    assert fuzz_in_browser(browser, seconds=4.0, seed=seed_in_the_suite()) > 60
