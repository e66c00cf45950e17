"""A fault that Redis does not take is skipped, and does not count as brought about."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pgbus_gevent.testing.chaos import faults_redis
from pgbus_gevent.testing.chaos.faults import Skipped
from pgbus_gevent.testing.chaos.register import FAULTS


def scene(answer: str) -> Any:
    """A scene whose Redis answers so to everything, and stays the master."""
    node = SimpleNamespace(ask=lambda command: answer)
    redis = SimpleNamespace(master=lambda: node, fail_over=lambda: answer)
    return SimpleNamespace(parts=SimpleNamespace(redis=redis), wait=lambda: None)


@pytest.mark.parametrize("answer", ["", "-ERR not now\r\n"])
@pytest.mark.parametrize("name", ["redis-flushed", "redis-cut", "redis-failed-over"])
def test_it_is_skipped_if_redis_refuses_or_does_not_answer(
    name: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults_redis, "_FAILING_OVER", 0.0)
    with pytest.raises(Skipped):
        FAULTS[name].bring(scene(answer))


def test_a_failover_that_was_begun_and_changes_nothing_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults_redis, "_FAILING_OVER", 0.0)
    with pytest.raises(Skipped, match="Sentinel"):
        FAULTS["redis-failed-over"].bring(scene("+OK\r\n"))


def test_what_redis_takes_is_not_skipped() -> None:
    FAULTS["redis-flushed"].bring(scene("+OK\r\n"))
    FAULTS["redis-cut"].bring(scene(":3\r\n"))
