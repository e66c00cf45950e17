"""A clock that was not set back is no fault."""

from __future__ import annotations

import time

import pytest

from pgbus_gevent.testing.chaos.faults_machine import _check_clock
from pgbus_gevent.testing.chaos.processes import ChaosFailed


def test_a_part_whose_clock_stays_as_it_was_fails_the_run() -> None:
    _check_clock(time.time() - 3600)
    with pytest.raises(ChaosFailed, match="no effect"):
        _check_clock(time.time())
