"""An origin that answers anything to its edge, fuzzed."""

from __future__ import annotations

import pytest
from fuzzing.origin import ORIGIN
from fuzzing.program import in_the_suite


@pytest.mark.slow
def test_an_edge_gets_what_it_asked_for_or_an_error_of_ours() -> None:
    in_the_suite(ORIGIN, seconds=2.0)
