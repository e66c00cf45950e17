"""Names, cursors, heads of requests, notifications and settings, fuzzed: the corpus, and fresh inputs for a moment."""

from __future__ import annotations

import pytest
from fuzzing.engine import Target
from fuzzing.program import in_the_suite
from fuzzing.pure import TARGETS


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_each_input_is_refused_or_taken_in_time(target: Target) -> None:
    in_the_suite(target, seconds=1.5)
