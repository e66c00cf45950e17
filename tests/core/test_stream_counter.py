"""The counts of streams, in any order in which connections come and leave."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgbus_gevent.core.stream_counter import Counts, StreamCounter

STREAMS = st.sampled_from(["orders", "stock", "é"])
STEPS = st.lists(st.tuples(st.sampled_from(["connect", "disconnect", "broadcast"]), STREAMS, st.integers(1, 9)))


@given(steps=STEPS)
def test_it_balances_and_is_empty_in_the_end(steps: list[tuple[str, str, int]]) -> None:
    counter = StreamCounter()
    active: list[str] = []
    opened = broadcasts = 0
    for step, stream, number in steps:
        if step == "connect":
            counter.connected([stream])
            active.append(stream)
            opened += 1
        elif step == "disconnect" and stream in active:
            counter.disconnected([stream])
            active.remove(stream)
        elif step == "broadcast":
            counter.broadcast(stream, number)
            broadcasts += number if stream in active else 0
        assert counter.total == Counts(broadcasts, len(active), opened)
        assert set(counter.streams) == set(active)
        assert all(counter[name].active_connections == active.count(name) for name in ("orders", "stock", "é"))
    for stream in active:
        counter.disconnected([stream])
    assert counter.streams == {}
    assert counter.total == Counts(broadcasts, 0, opened)


def test_a_message_is_counted_once_however_many_it_goes_to() -> None:
    counter = StreamCounter()
    for _ in range(5):
        counter.connected(["orders"])
    counter.broadcast("orders")
    assert counter["orders"] == Counts(1, 5, 5)


def test_the_counts_of_a_stream_start_again_with_a_new_connection() -> None:
    counter = StreamCounter()
    for _ in range(2):
        counter.connected(["orders"])
        counter.broadcast("orders", 3)
        counter.disconnected(["orders"])
    counter.connected(["orders"])
    assert counter["orders"] == Counts(0, 1, 1)
    assert counter.total == Counts(6, 1, 3)


def test_a_stream_without_connections_has_no_counts() -> None:
    counter = StreamCounter()
    counter.broadcast("orders")
    assert (counter["orders"], counter.streams) == (Counts(), {})


def test_a_disconnect_too_many_is_a_bug_and_shows() -> None:
    with pytest.raises(KeyError):
        StreamCounter().disconnected(["orders"])


def test_the_listing_is_a_copy() -> None:
    counter = StreamCounter()
    counter.connected(["orders"])
    counter.streams.clear()
    assert counter["orders"].active_connections == 1
