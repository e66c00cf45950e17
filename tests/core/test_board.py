"""Work stays on the board until it is done, and a rewound log concerns only its own clients."""

from __future__ import annotations

import pytest
from streamer_parts import FakeClient, added, make_board

from pgbus_gevent.core import ephemeral_buffers
from pgbus_gevent.core.board import Board
from pgbus_gevent.core.replay import Page, PageFrames
from pgbus_gevent.core.wakes import Ephemeral


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


def test_a_rewind_sets_back_only_the_clients_that_were_sent_a_lost_message() -> None:
    board = make_board()
    below, above = FakeClient("1"), FakeClient("2")
    subscriptions = [added(board, below), added(board, above)]
    log = subscriptions[0].log
    log.open(head=100, horizon=0, oldest=10, floor=0, rows=[])
    subscriptions[0].cursor, subscriptions[1].cursor = 50, 60
    board.ready.take()
    board.rewind(log, 50, horizon=0)
    assert [(each.cursor, each.lost) for each in subscriptions] == [(50, None), (0, 60)]


def test_nothing_is_left_of_a_client_that_has_left() -> None:
    board = make_board()
    client = FakeClient("1")
    subscription = added(board, client)
    log = subscription.log
    board.wait(subscription)
    subscription.cursor = 0
    board.wait(subscription)
    board.moved.add(log)
    assert (len(board.schedule), len(board.looks), len(board.behind), len(board.unheard)) == (1, 1, 1, 1)
    assert board.leave(client) == (subscription,)
    assert board.leave(client) == ()
    for work in (board.moved, board.ready, board.looks, board.behind, board.unheard):
        assert list(work) == []
    assert len(board.schedule) == 0
    assert board.waiting(log) == {}
    assert board.log("orders") is None


def test_work_on_a_stream_stays_while_the_stream_has_another_client() -> None:
    board = make_board()
    first, second = FakeClient("1"), FakeClient("2")
    log = added(board, first).log
    added(board, second)
    board.looks.add(log)
    board.leave(first)
    assert list(board.looks) == [log]


def test_a_page_that_did_not_serve_every_waiting_client_is_followed_by_another_one() -> None:
    board = make_board()
    subscriptions = [added(board, FakeClient(str(n))) for n in range(2)]
    log = subscriptions[0].log
    for subscription in subscriptions:
        subscription.cursor = 0
        board.wait(subscription)
    [taken] = board.behind.take()
    page = Page(log, PageFrames([], start=0, horizon=0), 10)
    board.stop_waiting(subscriptions[0])
    board.reading.clear()
    board.served(page)
    assert board.reading.is_set()
    assert board.behind.take() == [taken]
    board.stop_waiting(subscriptions[1])
    board.reading.clear()
    board.served(page)
    assert not board.behind
    assert board.reading.is_set(), "there is room for a page of another log"


def test_a_page_serves_the_cursors_from_its_start_to_below_its_end() -> None:
    board = make_board()
    log = added(board, FakeClient("1")).log
    page = Page(log, PageFrames([], start=10, horizon=0), 20)
    assert [cursor for cursor in (None, 0, 9, 10, 19, 20) if page.serves(cursor)] == [10, 19]


def test_a_page_of_a_log_that_was_rewound_is_not_current() -> None:
    board = make_board()
    log = added(board, FakeClient("1")).log
    log.open(head=100, horizon=0, oldest=10, floor=100, rows=[])
    page = Page(log, PageFrames([], start=10, horizon=0), 20)
    assert page.current
    board.rewind(log, 50, horizon=0)
    assert not page.current


def test_a_new_session_has_every_log_and_every_right_looked_at() -> None:
    board = make_board()
    log = added(board, FakeClient("1")).log
    board.unsure = False
    board.resync()
    assert log.in_doubt
    assert board.unsure
    assert board.doorbell.is_set()
    assert board.control.is_set()


def test_a_client_that_was_sent_lost_messages_twice_gets_a_gap_event_for_the_highest_one() -> None:
    board = make_board()
    subscription = added(board, FakeClient("1"))
    log = subscription.log
    log.open(head=100, horizon=0, oldest=10, floor=100, rows=[])
    subscription.cursor = 100
    board.rewind(log, 50, horizon=0)
    subscription.cursor = 60
    log.open(head=60, horizon=0, oldest=10, floor=60, rows=[])
    board.rewind(log, 50, horizon=0)
    assert (subscription.cursor, subscription.lost) == (0, 100)


def test_a_log_that_pruning_moves_has_its_clients_served() -> None:
    board = make_board()
    log = added(board, FakeClient("1")).log
    log.open(head=100, horizon=0, oldest=10, floor=100, rows=[])
    board.note(log, 90)
    assert not board.moved
    board.note(log, 110)
    assert list(board.moved) == [log]


def test_a_dispatcher_that_ends_gives_back_all_kinds_of_work() -> None:
    board = make_board()
    subscription = added(board, FakeClient("1"))
    log = subscription.log
    log.open(head=0, horizon=0, oldest=0, floor=0, rows=[])
    board.moved.add(log)
    board.pages.add(Page(log, PageFrames([], start=0, horizon=0), 10))
    board.buffer_ephemeral(Ephemeral("orders", 0, "note", "a", None, None))
    kinds = (board.moved, board.ready, board.pages, board.ephemeral)
    with board.delivering():
        taken = [work.take() for work in kinds]
        board.delivery.clear()
    assert board.delivery.is_set()
    assert [work.take() for work in kinds] == taken
    assert [len(items) for items in taken] == [1, 1, 1, 1]


def test_each_flood_of_ephemeral_messages_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ephemeral_buffers, "MAX_WAITING", 1)
    board = make_board()
    added(board, FakeClient("1"))
    for flood in (1, 2):
        for data in "abc":
            board.buffer_ephemeral(Ephemeral("orders", 0, "note", data, None, None))
        [buffer] = board.ephemeral.take()
        buffer.take(1000)
        buffer.took()
        board.ephemerals_sent(buffer)
        assert (board.dropped, caplog.text.count("dropping new ones")) == (2 * flood, flood)
    assert len(board.ephemeral_buffers) == len(board.ephemeral) == 0


# the listener


def listening_board() -> Board:
    board = make_board()
    board.listening.set()
    return board


def test_while_the_worker_listens_a_new_log_gets_its_look_once_it_is_heard() -> None:
    board = listening_board()
    subscription = added(board, FakeClient("1"))
    log = subscription.log
    board.wait(subscription)
    board.look(log)
    assert (list(board.unheard), list(board.looks), board.following.is_set()) == ([log], [], True)
    with board.unheard.taking():
        board.look(log)
        assert list(board.looks) == []
    board.heard(log)
    assert (list(board.unheard), list(board.looks)) == ([], [log])


def test_while_the_worker_does_not_listen_looks_are_not_held_up() -> None:
    board = make_board()
    subscription = added(board, FakeClient("1"))
    board.wait(subscription)
    assert list(board.looks) == [subscription.log]


def test_looks_that_were_held_up_go_ahead_when_the_session_is_lost() -> None:
    board = listening_board()
    subscription = added(board, FakeClient("1"))
    board.wait(subscription)
    board.deafen()
    assert not board.listening.is_set()
    assert list(board.looks) == [subscription.log]


def test_a_new_session_has_every_log_to_follow_and_an_open_one_needs_no_look_for_that() -> None:
    board = listening_board()
    log = added(board, FakeClient("1")).log
    log.open(head=100, horizon=0, oldest=10, floor=100, rows=[])
    board.unheard.take()
    board.unheard.done(log)
    board.deafen()
    assert board.unheard.take() == [log]
    board.heard(log)
    assert list(board.looks) == []


def test_an_open_log_that_a_client_waits_for_gets_a_look_when_it_is_heard() -> None:
    board = listening_board()
    subscription = added(board, FakeClient("1"))
    subscription.log.open(head=100, horizon=0, oldest=10, floor=100, rows=[])
    board.wait(subscription)
    board.heard(subscription.log)
    assert list(board.looks) == [subscription.log]


def test_a_log_whose_client_left_meanwhile_gets_no_look_when_it_is_heard() -> None:
    board = listening_board()
    client = FakeClient("1")
    log = added(board, client).log
    with board.unheard.taking():
        board.leave(client)
    board.heard(log)
    assert (list(board.unheard), list(board.looks)) == ([], [])


def test_a_change_of_what_to_follow_is_told_to_the_listener_and_no_other_assignment_is() -> None:
    board = make_board()
    assert board.follow_all
    told = []
    for value in (True, False, False, True):
        board.following.clear()
        board.follow_all = value
        told.append(board.following.is_set())
    assert told == [False, True, False, True]
