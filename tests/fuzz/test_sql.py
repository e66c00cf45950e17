"""The SQL functions, fuzzed with any arguments."""

from __future__ import annotations

import pytest
from fuzzing.program import in_the_suite
from fuzzing.sql import SQL


@pytest.mark.slow
def test_a_call_stores_its_arguments_or_raises_a_clear_error(pgbus_database: str) -> None:
    in_the_suite(SQL, pgbus_database, seconds=2.0)
