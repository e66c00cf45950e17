"""Bytes that wait for blocked clients count once, however many clients share them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgbus_gevent.core.backlog import HURRY, Backlog

PIECES = [bytes([n]) * (n + 1) * 100 for n in range(4)]


@given(st.lists(st.lists(st.sampled_from(range(4)), min_size=1, max_size=3), max_size=10))
def test_it_has_each_piece_that_somebody_waits_for_once(clients: list[list[int]]) -> None:
    backlog = Backlog()
    for client, each in enumerate(clients):
        backlog.hold(client, [memoryview(PIECES[n])[n:] for n in each], 0.0)
    for client in range(len(clients)):
        assert backlog.bytes == sum(len(PIECES[n]) for n in {n for each in clients[client:] for n in each})
        backlog.release(client)
        backlog.release(client)
    assert backlog.bytes == 0
    assert not backlog._holders and not backlog._waiting


def test_a_farewell_that_grows_while_it_waits_does_not_spoil_the_sum() -> None:
    backlog, farewell = Backlog(), bytearray(b"a")
    backlog.hold("client", [farewell], 0.0)
    farewell += b"bcd"
    backlog.release("client")
    assert backlog.bytes == 0


def test_those_that_have_waited_longest_come_first_and_the_latest_not_at_all() -> None:
    backlog = Backlog()
    for client, now in enumerate((10.0, 11.0, 12.0)):
        backlog.hold(client, [memoryview(b"a")], now)
    assert backlog.longest(11.0 + HURRY) == [0, 1]
    backlog.release(0)
    backlog.hold(0, [memoryview(b"b")], 12.5)
    assert backlog.longest(20.0) == [1, 2, 0]
