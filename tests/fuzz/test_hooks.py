"""What an application's own code may answer or raise, fuzzed."""

from __future__ import annotations

import pytest
from fuzzing.hooks import HOOKS
from fuzzing.program import in_the_suite


@pytest.mark.slow
def test_no_answer_and_no_exception_harms_other_clients(pgbus_database: str) -> None:
    in_the_suite(HOOKS, pgbus_database, seconds=2.0)
