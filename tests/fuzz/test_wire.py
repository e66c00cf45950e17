"""Bytes on the port of a server, fuzzed, with h11 as the second judge of what they mean."""

from __future__ import annotations

import pytest
from fuzzing.program import in_the_suite
from fuzzing.wire import REQUESTS


@pytest.mark.slow
def test_the_application_is_asked_what_was_sent() -> None:
    in_the_suite(REQUESTS, seconds=1.5)
