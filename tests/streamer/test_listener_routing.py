"""Each wake reaches its place on the board."""

from __future__ import annotations

import json

import pytest
from streamer_parts import FakeClient, added, make_board

from pgbus_gevent.core.events import Broadcast
from pgbus_gevent.core.wakes import Ephemeral
from pgbus_gevent.messages import MAX_ID
from pgbus_gevent.streamer.listener import Listener

NOW = 1764000000.0


class Routing:
    """A listener and a board with two streams: the head of ``orders`` is 10, and ``stock`` is not open yet."""

    def __init__(self) -> None:
        self.board = make_board()
        self.moved: list[tuple[str, int]] = []
        self.board.events.subscribe(Broadcast, self.moved.append)  # type: ignore[arg-type]  # a pair, too
        self.listener = Listener(None, self.board, wall_clock=lambda: NOW)  # type: ignore[arg-type]  # nothing is opened
        self.log = added(self.board, FakeClient("a", "orders")).log
        self.log.open(head=10, horizon=0, oldest=10, floor=10, rows=[])
        added(self.board, FakeClient("b", "stock"))

    @property
    def looks(self) -> list[str]:
        return [log.name for log in self.board.looks]

    def ring(self, stream: str, id: int, prev_id: int | None) -> None:
        self.listener.hear([json.dumps(["message", stream, id, prev_id, 0, None, "x", None, None])])


@pytest.fixture
def routing() -> Routing:
    return Routing()


def test_the_next_message_goes_into_the_ring_without_a_read(routing: Routing) -> None:
    routing.ring("orders", 20, 10)
    routing.ring("orders", 30, 20)
    assert (routing.log.head, routing.moved, routing.looks) == (30, [("orders", 1)] * 2, [])


@pytest.mark.parametrize("prev_id", [None, 5, 15])
def test_a_message_that_is_not_known_to_be_the_next_is_looked_for(routing: Routing, prev_id: int | None) -> None:
    routing.ring("orders", 20, prev_id)
    assert (routing.log.head, routing.moved, routing.looks) == (10, [], ["orders"])


@pytest.mark.parametrize(("id", "prev_id"), [(10, 5), (10, None), (5, None)])
def test_a_repeated_message_is_nothing(routing: Routing, id: int, prev_id: int | None) -> None:
    routing.ring("orders", id, prev_id)
    assert (routing.log.head, routing.moved, routing.looks) == (10, [], [])


def test_a_message_of_a_stream_that_is_not_open_yet_is_looked_for(routing: Routing) -> None:
    routing.ring("stock", 20, 0)
    assert (routing.moved, routing.looks) == ([], ["stock"])


def test_streams_that_moved_get_a_look_if_they_have_clients(routing: Routing) -> None:
    routing.listener.hear(['["moved", "orders", "news", "stock"]', '["moved"]', "nonsense"])
    assert routing.looks == ["orders", "stock"]


@pytest.mark.parametrize("payload", ['["moved"]', "nonsense"])
@pytest.mark.parametrize("follow_all", [True, False])
def test_if_no_stream_is_named_a_worker_that_does_not_sweep_after_every_notification_probes(
    routing: Routing, payload: str, follow_all: bool
) -> None:
    routing.board.unsure, routing.board.follow_all = False, follow_all
    routing.listener.hear(['["moved", "orders"]'])
    assert not routing.board.unsure
    routing.listener.hear([payload])
    assert routing.board.unsure is not follow_all


@pytest.mark.parametrize("payloads", [["nonsense"], ['["moved"]', '["large", "news", 7]']])
def test_any_payload_sets_the_doorbell(routing: Routing, payloads: list[str]) -> None:
    routing.listener.hear(payloads)
    assert routing.board.doorbell.is_set()


def test_streams_without_clients_are_ignored(routing: Routing) -> None:
    routing.ring("news", 20, 0)
    assert (routing.moved, routing.looks) == ([], [])


def test_an_ephemeral_message_is_handed_on(routing: Routing) -> None:
    routing.listener.hear(['["large", "orders", 7]'])
    assert [*routing.board.large] == [Ephemeral("orders", 7, None, None, None, None)]


def test_a_message_that_claims_to_follow_but_is_older_moves_nothing(routing: Routing) -> None:
    """Any role of the database may NOTIFY."""
    routing.ring("orders", 7, 10)
    assert (routing.log.head, routing.moved, routing.looks) == (10, [], [])


@pytest.mark.parametrize("id", [MAX_ID, round((NOW + 100_000) * 1e6)])
def test_an_id_far_beyond_the_clock_is_looked_up_before_it_counts(routing: Routing, id: int) -> None:
    routing.ring("orders", id, 10)
    assert (routing.log.head, routing.moved, routing.looks) == (10, [], ["orders"])


@pytest.mark.parametrize("time", [0.0, -1e300, 1e300, "NaN", "Infinity", NOW - 100_000, NOW + 100_000])
def test_an_impossible_time_is_not_used_for_the_delay_of_a_message(routing: Routing, time: float | str) -> None:
    routing.listener.hear([f'["message", "orders", 20, 10, {time}, null, "x", null, null]'])
    assert (routing.log.head, routing.log.appended_at) == (20, None)


def test_the_time_of_the_first_message_that_waits_counts(routing: Routing) -> None:
    for n, time in enumerate([NOW - 1, NOW - 0.5], 2):
        routing.listener.hear([f'["message", "orders", {n}0, {n - 1}0, {time}, null, "x", null, null]'])
    assert (routing.log.head, routing.log.appended_at) == (30, NOW - 1)


def test_a_control_notification_is_passed_on(routing: Routing) -> None:
    routing.listener.hear(['["control"]'])
    assert (routing.board.control.is_set(), routing.looks) == (True, [])
