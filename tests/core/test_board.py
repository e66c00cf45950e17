"""Work stays on the board until it is done, and a rewound log concerns only its own clients."""

from __future__ import annotations

from streamer_parts import FakeClient, added, make_board


def test_a_dispatcher_that_starts_finds_work_that_its_predecessor_left_while_the_flag_was_clear() -> None:
    board = make_board()
    first, second = FakeClient("1"), FakeClient("2")
    added(board, first)
    with board.delivering():
        board.delivery.clear()
        board.ready.take()
        subscription = added(board, second)
        board.delivery.clear()  # by the dispatcher, which leaves the second client until it is done with the first
        board.leave(first)
    with board.delivering():
        assert board.delivery.is_set()
        assert board.ready.take() == [subscription]


def test_a_retired_log_that_is_rewound_leaves_the_clients_of_its_successor_alone() -> None:
    """A reader may have asked about the retired log before the table lost messages, and new ones were appended since."""
    board = make_board()
    leaving, staying = FakeClient("1"), FakeClient("2")
    old = added(board, leaving).log
    old.open(head=100, horizon=0, oldest=10, floor=100, rows=[])
    board.leave(leaving)
    subscription = added(board, staying)
    subscription.log.open(head=110, horizon=0, oldest=10, floor=110, rows=[])
    subscription.cursor = 110
    board.rewind(old, 50, horizon=0)
    assert (subscription.cursor, subscription.lost) == (110, None)


def test_a_log_that_is_rewound_tells_its_clients_that_were_sent_a_lost_message() -> None:
    board = make_board()
    below, above = FakeClient("1"), FakeClient("2")
    subscriptions = [added(board, below), added(board, above)]
    log = subscriptions[0].log
    log.open(head=100, horizon=0, oldest=10, floor=0, rows=[])
    subscriptions[0].cursor, subscriptions[1].cursor = 50, 60
    board.ready.take()
    board.rewind(log, 50, horizon=0)
    assert [(each.cursor, each.lost) for each in subscriptions] == [(50, None), (0, 60)]
