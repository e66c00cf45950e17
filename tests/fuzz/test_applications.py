"""The application beside the streams, fuzzed: what it answers and raises."""

from __future__ import annotations

import pytest
from fuzzing.applications import APPLICATIONS
from fuzzing.program import in_the_suite


@pytest.mark.slow
def test_a_client_gets_what_its_application_answers_or_an_error_that_is_logged(pgbus_database: str) -> None:
    in_the_suite(APPLICATIONS, pgbus_database, seconds=1.0)
