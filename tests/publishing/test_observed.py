"""Broadcasts are timed, for the metrics of a process and for the events of a Bus."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from pgbus_gevent.bus import Bus
from pgbus_gevent.core.events import Published
from pgbus_gevent.errors import DatabaseError, InvalidSetting
from pgbus_gevent.publishing import observed
from pgbus_gevent.testing.fake_bus import FakeBus


def counts() -> dict[str, int]:
    return {kind: sum(histogram.counts) for kind, histogram in observed.durations.items()}


def test_each_broadcast_is_an_event_and_an_observation(pgbus_bus: Bus) -> None:
    events: list[Published] = []
    pgbus_bus.events.subscribe(Published, events.append)
    orders, before = pgbus_bus.stream("orders"), counts()
    orders.broadcast("x")
    orders.broadcast("x", ephemeral=True)
    orders.broadcast_many(["a", "b", "c"])
    with pgbus_bus.transaction() as cursor:
        orders.broadcast("x", using=cursor)
        orders.broadcast("x", using=cursor, ephemeral=True)
    assert [(event.stream, event.messages, event.kind, event.error) for event in events] == [
        ("orders", 1, "now", None),
        ("orders", 1, "now", None),
        ("orders", 3, "now", None),
        ("orders", 1, "on-commit", None),
        ("orders", 1, "on-commit", None),
    ]
    assert all(event.seconds > 0 for event in events)
    assert {kind: number - before[kind] for kind, number in counts().items()} == {"now": 3, "on-commit": 2}


def test_a_broadcast_that_fails_is_an_event_with_the_error(pgbus_bus: Bus) -> None:
    events: list[Published] = []
    pgbus_bus.events.subscribe(Published, events.append)
    with pgbus_bus.transaction() as cursor:
        cursor.execute("drop schema pgbus cascade")
    with pytest.raises(DatabaseError):
        pgbus_bus.stream("orders").broadcast("x")
    assert [event.error is not None for event in events] == [True]


def test_what_is_refused_before_the_statement_is_no_broadcast() -> None:
    with FakeBus() as bus:
        events: list[Published] = []
        bus.events.subscribe(Published, events.append)
        with pytest.raises(ValueError):
            bus.stream("orders").broadcast("x", event="pgbus:mine")
        assert events == []


def test_tracing_without_opentelemetry_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name.startswith("opentelemetry") or (name == "tracing" and more[-1] == 1):
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InvalidSetting, match=r"pgbus-gevent\[otel\]"):
        observed.tracing_of(True)
    assert observed.tracing_of(False) is None
