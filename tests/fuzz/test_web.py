"""The HTTP interface, fuzzed: the port, sockets that were taken over, requests and broadcasts."""

from __future__ import annotations

import pytest
from fuzzing.engine import Target
from fuzzing.program import in_the_suite
from fuzzing.web import TARGETS


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_input_is_a_500_a_traceback_or_a_lost_greenlet(target: Target, pgbus_database: str) -> None:
    in_the_suite(target, pgbus_database, seconds=1.5)
