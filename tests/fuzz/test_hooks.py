"""What an application's own code may answer or raise, fuzzed."""

from __future__ import annotations

import pytest
from fuzzing.hooks import HOOKS, RECHECKS
from fuzzing.program import in_the_suite


@pytest.mark.slow
def test_no_answer_and_no_exception_harms_other_clients(pgbus_database: str) -> None:
    in_the_suite(HOOKS, pgbus_database, seconds=2.0)


@pytest.mark.slow
def test_no_answer_to_a_recheck_harms_other_clients_or_ends_a_task(pgbus_database: str) -> None:
    in_the_suite(RECHECKS, pgbus_database, seconds=1.0)
