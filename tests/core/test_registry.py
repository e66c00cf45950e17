"""The registry, in any order in which clients come and leave."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from streamer_parts import FakeClient

from pgbus_gevent.core.client import Subscription
from pgbus_gevent.core.registry import Registry
from pgbus_gevent.core.ring_budget import RingBudget
from pgbus_gevent.core.rows import Row
from pgbus_gevent.core.stream_log import StreamLog

STREAMS = ["orders", "stock", "é"]
STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove", "remove again"]), st.integers(0, 20)), max_size=60)


def make_registry(budget: RingBudget | None = None) -> Registry:
    budget = budget or RingBudget(10**6)
    return Registry(lambda name: StreamLog(name, budget, max_frames=10, max_bytes=1000))


def subscribed(registry: Registry, client: FakeClient) -> Subscription:
    registry.add(client, client.request.places)
    return client.subscriptions[0]


@given(steps=STEPS)
def test_it_agrees_with_a_list_of_clients_and_is_empty_in_the_end(steps: list[tuple[str, int]]) -> None:
    registry = make_registry()
    here: list[FakeClient] = []
    gone: list[FakeClient] = []
    for n, (step, pick) in enumerate(steps):
        if step == "add":
            client = FakeClient(f"{n}", STREAMS[pick % len(STREAMS)])
            subscription = subscribed(registry, client)
            assert subscription is client.subscription
            here.append(client)
        elif step == "remove" and here:
            gone.append(here.pop(pick % len(here)))
            assert registry.remove(gone[-1])
        elif gone:
            assert not registry.remove(gone[pick % len(gone)])
        assert len(registry) == len(here)
        assert registry.clients() == here
        assert all(client in registry for client in here)
        assert not any(client in registry for client in gone)
        assert {log.name for log in registry.logs()} == {client.stream for client in here}
        for stream in STREAMS:
            members = [client for client in here if client.stream == stream]
            assert [subscription.client for subscription in registry.subscriptions(stream)] == members
            assert {subscription.log for subscription in registry.subscriptions(stream)} <= {registry.log(stream)}
    for client in here:
        assert registry.remove(client)
    assert (len(registry), registry.clients(), registry.logs()) == (0, [], [])
    assert not any(registry.subscriptions(stream) or registry.log(stream) for stream in STREAMS)


def test_the_log_goes_with_the_last_client_of_its_stream() -> None:
    registry = make_registry()
    first, second = FakeClient("a"), FakeClient("b")
    log = subscribed(registry, first).log
    assert subscribed(registry, second).log is log
    registry.remove(first)
    assert registry.log("orders") is log
    registry.remove(second)
    assert registry.log("orders") is None
    assert subscribed(registry, FakeClient("c")).log is not log


def test_the_log_of_a_stream_without_clients_keeps_no_frames() -> None:
    budget = RingBudget(10_000)
    registry = make_registry(budget)
    client = FakeClient("a")
    log = subscribed(registry, client).log
    log.open(head=10, horizon=0, oldest=10, floor=0, rows=[Row(10, None, "x", None, None)])
    assert budget.used > 0
    registry.remove(client)
    assert (log.retired, budget.used) == (True, 0)


def test_nothing_keeps_a_client_that_left_alive() -> None:
    registry = make_registry()
    client = FakeClient("a")
    references: list[Callable[[], object]] = [weakref.ref(subscribed(registry, client).log), weakref.ref(client)]
    registry.remove(client)
    gc.disable()
    try:
        del client
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


def test_a_client_with_the_id_of_a_registered_one_is_not_registered() -> None:
    registry = make_registry()
    subscribed(registry, FakeClient("a"))
    assert FakeClient("a") not in registry
    assert not registry.remove(FakeClient("a"))
    assert "a" not in registry


def test_the_listing_of_a_stream_does_not_change_while_it_is_walked() -> None:
    registry = make_registry()
    for name in "abc":
        subscribed(registry, FakeClient(name))
    for subscription in registry.subscriptions("orders"):
        registry.remove(subscription.client)
    assert len(registry) == 0
