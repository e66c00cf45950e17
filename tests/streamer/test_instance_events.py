"""The instrumentation events of a whole Instance, with a server, clients and a database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from streamer_parts import wait_until

from pgbus_gevent.core.events import (
    KINDS,
    Admitted,
    Broadcast,
    Connected,
    Disconnected,
    Gap,
    ListenerUp,
    Passed,
    Refused,
    SlowConsumer,
)


@pytest.fixture
def heard(pgbus_instance: Any) -> list[Any]:
    events: list[Any] = []
    for kind in KINDS:
        pgbus_instance.events.subscribe(kind, events.append)
    return events


def of(heard: list[Any], kind: type[Any]) -> list[Any]:
    return [event for event in heard if isinstance(event, kind)]


def test_the_life_of_a_connection(
    pgbus_server: Any, pgbus_bus: Any, pgbus_client: Callable[..., Any], heard: list[Any]
) -> None:
    client = pgbus_client("orders")
    client.next("pgbus:connected")
    pgbus_bus.stream("orders").broadcast("one")
    pgbus_bus.stream("orders").broadcast("note", ephemeral=True)
    client.next()
    client.next()
    client.drop()
    wait_until(lambda: of(heard, Disconnected), "it is seen to have left")
    (opened,), (closed,) = of(heard, Connected), of(heard, Disconnected)
    assert opened.connection == closed.connection and opened.streams == closed.streams == ("orders",)
    assert closed.reason and closed.seconds > 0
    assert closed.messages == 2 and closed.bytes > 100
    assert closed.last_ids == (pgbus_bus.stream("orders").last_id(),)
    (admitted,) = of(heard, Admitted)
    assert admitted.connection == opened.connection and 0 < admitted.seconds < 180
    assert [event.messages for event in of(heard, Broadcast)] == [1, 1]
    assert sum(event.connections for event in of(heard, Passed)) == 1
    assert max(event.head for event in of(heard, Passed)) == closed.last_ids[0]
    assert not of(heard, SlowConsumer) and not of(heard, ListenerUp)


def test_a_gap_and_a_refusal(pgbus_instance: Any, pgbus_client: Callable[..., Any], heard: list[Any]) -> None:
    pgbus_client("orders", headers={"Last-Event-ID": "nonsense"}).next("pgbus:gap-detected")
    assert of(heard, Gap) == [Gap("orders", "invalid-cursor")]
    pgbus_instance.health.draining = True
    try:
        pgbus_client("orders").next("pgbus:shutdown")
    finally:
        pgbus_instance.health.draining = False
    assert of(heard, Refused) == [Refused("restart")]
