"""What other programs may write to Redis, fuzzed."""

from __future__ import annotations

import pytest
from fuzzing.program import in_the_suite
from fuzzing.redis import REDIS
from redis_parts import needs_redis


@needs_redis
@pytest.mark.program
def test_a_worker_believes_nothing_that_others_write() -> None:
    in_the_suite(REDIS, seconds=2.0)
