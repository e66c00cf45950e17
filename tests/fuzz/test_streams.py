"""Parsers of event streams, fuzzed: in Python, and beside the EventSource of each engine."""

from __future__ import annotations

import pytest
from browser_parts import Browser
from fuzzing.program import in_the_suite, seed_in_the_suite
from fuzzing.streams import STREAM, fuzz_in_browser


@pytest.mark.slow
def test_it_makes_no_difference_where_a_stream_is_cut() -> None:
    in_the_suite(STREAM, seconds=1.5)


@pytest.mark.every_engine
def test_each_engine_reads_every_stream_as_pgbus_js_and_python_do(browser: Browser) -> None:
    assert fuzz_in_browser(browser, seconds=3.0, seed=seed_in_the_suite()) > 60
