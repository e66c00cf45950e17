"""A tap tells an edge of every message above its cursors, and holds no messages itself."""

from __future__ import annotations

from typing import Any

import pytest
from gevent.event import Event
from streamer_parts import FakeClient

from pgbus_gevent.core import following, taps, wakes
from pgbus_gevent.core.board import Board
from pgbus_gevent.core.frames import encode
from pgbus_gevent.core.ring_budget import RingLimits
from pgbus_gevent.core.rows import Row
from pgbus_gevent.core.stream_log import StreamLog
from pgbus_gevent.core.taps import RESYNC, Tap
from pgbus_gevent.core.wakes import CONTROL, Ephemeral, Moved, NewMessage


@pytest.fixture
def board() -> Board:
    return Board(Event, RingLimits(messages=4, bytes=100_000, all_bytes=1_000_000))


def tapped(board: Board, streams: dict[str, int | None], *, greeted: bool = True) -> Tap:
    tap = Tap(Event())
    following.join(board, tap, streams)
    tap.greeted = greeted
    return tap


def opened(board: Board, name: str, head: int = 0) -> StreamLog:
    """Return the log of a stream that a tap follows, opened."""
    log = board.registry.log(name)
    assert log is not None
    log.open(head=head, horizon=0, oldest=0, floor=head, rows=[])
    board.announce(log)
    return log


def row(id: int, prev_id: int | None, data: str = "data", event: str | None = None, **more: Any) -> Row:
    return Row(id, event, data, more.get("visible_to"), more.get("exclude"), prev_id)


def taken(tap: Tap) -> list[wakes.Wake]:
    return [wakes.parse(payload) for payload in tap.take()]


def test_a_message_passes_whole_and_once(board: Board) -> None:
    tap = tapped(board, {"a": None}, greeted=False)
    log = opened(board, "a", 5)
    tap.greeted = True
    assert taken(tap) == []
    board.extend(log, [row(6, 5, "two\nlines", "x", visible_to="admins"), row(9, 6, "crlf\r\n", exclude="c0ffee")])
    assert tap.flag.is_set()
    assert taken(tap) == [
        NewMessage("a", 6, 5, None, "x", "two\nlines", "admins", None),
        NewMessage("a", 9, 6, None, None, "crlf\n", None, "c0ffee"),
    ]
    assert taken(tap) == []
    assert not tap.flag.is_set()


def test_a_stream_that_opens_after_the_greeting_is_read_by_the_edge(board: Board) -> None:
    tap = tapped(board, {"a": None})
    opened(board, "a", 5)
    assert taken(tap) == [Moved(["a"])]


def test_a_tap_starts_at_the_head_of_the_edge(board: Board) -> None:
    first = tapped(board, {"a": None})
    log = opened(board, "a", 5)
    board.extend(log, [row(6, 5), row(7, 6), row(8, 7)])
    second = tapped(board, {"a": 6})
    assert [wake.id for wake in taken(second) if isinstance(wake, NewMessage)] == [7, 8]
    assert taken(tapped(board, {"a": 8})) == []
    assert taken(first) == [Moved(["a"])]


@pytest.mark.parametrize("cursor", [3, 99])
def test_an_edge_below_the_ring_or_above_the_head_has_to_read(board: Board, cursor: int) -> None:
    tapped(board, {"a": None})
    log = opened(board, "a", 5)
    board.extend(log, [row(6, 5)])
    assert taken(tapped(board, {"a": cursor})) == [Moved(["a"])]


def test_a_slow_edge_costs_no_memory_and_reads_what_the_ring_has_lost(board: Board) -> None:
    tap = tapped(board, {"a": None}, greeted=False)
    log = opened(board, "a", 5)
    for id in range(6, 106):
        board.extend(log, [row(id, id - 1)])
    assert taken(tap) == [Moved(["a"])]
    board.extend(log, [row(106, 105)])
    assert [wake.id for wake in taken(tap) if isinstance(wake, NewMessage)] == [106]


def test_a_row_with_an_invalid_event_is_left_to_a_read(board: Board) -> None:
    tap = tapped(board, {"a": None}, greeted=False)
    log = opened(board, "a", 5)
    board.extend(log, [row(6, 5, event="forged\nid: 7")])
    assert taken(tap) == [Moved(["a"])]


def test_a_rewind_and_a_doubt_reach_the_edge(board: Board) -> None:
    tap = tapped(board, {"a": None}, greeted=False)
    log = opened(board, "a", 5)
    board.rewind(log, 3, horizon=0)
    assert taken(tap) == [Moved(["a"])]
    board.extend(log, [row(6, 3)])
    board.resync()
    assert tap.take()[:2] == [RESYNC, CONTROL]


def test_messages_of_a_log_in_doubt_are_left_to_a_read(board: Board) -> None:
    tapped(board, {"a": None})
    log = opened(board, "a", 5)
    board.extend(log, [row(6, 5)])
    board.doubt()
    tap = tapped(board, {"a": 5})
    assert taken(tap) == [Moved(["a"])]
    log.settle(log.doubts)
    board.extend(log, [row(7, 6)])
    assert [wake.id for wake in taken(tap) if isinstance(wake, NewMessage)] == [7]


def test_streams_take_turns_when_much_has_moved(board: Board) -> None:
    tap = tapped(board, {"a": None, "b": None}, greeted=False)
    logs = [opened(board, name, 5) for name in "ab"]
    for log in logs:
        board.extend(log, [row(6, 5, "x" * 90_000)])
    size = taps.TAKE_BYTES
    try:
        taps.TAKE_BYTES = 50_000
        assert [wake.stream for wake in taken(tap) if isinstance(wake, NewMessage)] == ["a"]
        assert tap.flag.is_set()
        assert [wake.stream for wake in taken(tap) if isinstance(wake, NewMessage)] == ["b"]
    finally:
        taps.TAKE_BYTES = size


def test_ephemeral_messages_come_in_order_and_are_dropped_when_too_many_wait(board: Board) -> None:
    tap = tapped(board, {"a": None}, greeted=False)
    log = opened(board, "a", 5)
    messages = [Ephemeral("a", n, None, str(n), None, None) for n in range(taps.MAX_EPHEMERALS + 3)]
    for message in messages:
        board.taps.ephemeral(log, message)
    assert taken(tap) == messages[: taps.MAX_EPHEMERALS]
    assert board.taps.dropped == 3
    board.taps.ephemeral(log, messages[-1])
    assert taken(tap) == [messages[-1]]


def test_a_very_large_ephemeral_message_passes_if_no_other_waits(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "MAX_EPHEMERAL_SIZE", 1000)
    tap = tapped(board, {"a": None}, greeted=False)
    large = Ephemeral("a", 1, None, "x" * 2000, None, None)
    assert [tap.ephemeral(large), tap.ephemeral(large)] == [True, False]
    assert taken(tap) == [large]


def test_a_message_is_written_once_for_all_edges(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    really = taps._message
    monkeypatch.setattr(taps, "_message", lambda stream, frame: written.append(frame.id) or really(stream, frame))
    some = [tapped(board, {"a": None, "b": None}, greeted=False) for _ in range(3)]
    a, b = (opened(board, name, 5) for name in "ab")
    a.appended_at = 2.5
    board.extend(a, [row(6, 5, "x", visible_to="admins")])
    board.extend(b, [row(7, 5, "y"), row(8, 7, "z")])
    expected = [
        NewMessage("a", 6, 5, 2.5, None, "x", "admins", None),
        NewMessage("b", 7, 5, None, None, "y", None, None),
        NewMessage("b", 8, 7, None, None, "z", None, None),
    ]
    assert [taken(tap) for tap in some] == [expected] * 3
    assert written == [6, 7, 8]
    a.appended_at = None
    # Another edge that comes back gets the message without its time.
    assert taken(tapped(board, {"a": 5})) == [expected[0]._replace(created_at=None)]
    assert written == [6, 7, 8]


def test_few_texts_are_kept_and_no_text_of_a_message_that_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "TEXTS_SIZE", 1000)
    texts = taps.Texts()
    for id in range(100):
        texts.of("a", encode(row(id, None, "x" * 100)), None)
    assert 5 <= len(texts) < 10
    texts.of("a", encode(row(100, None, "x" * 2000)), None)
    assert len(texts) == 0
    lost, found = (wakes.parse(texts.of("a", encode(row(101, 100, each)), None)) for each in ("lost", "found"))
    assert [each.data for each in (lost, found) if isinstance(each, NewMessage)] == ["lost", "found"]


def test_a_stream_is_kept_for_a_tap_and_forgotten_with_the_last_one(board: Board) -> None:
    first, second = tapped(board, {"a": None}), tapped(board, {"a": None, "b": 3})
    log = opened(board, "a", 5)
    following.leave(board, second)
    assert (board.log("a"), board.log("b")) == (log, None)
    following.leave(board, second)
    following.leave(board, first)
    assert board.log("a") is None
    assert log.retired
    assert len(board.taps) == 0
    assert not board.looks


def test_a_client_that_leaves_does_not_take_the_stream_from_an_edge(board: Board) -> None:
    tap = tapped(board, {"a": None}, greeted=False)
    log = opened(board, "a", 5)
    client = FakeClient(stream="a")
    board.join(client, client.request.places)
    board.leave(client)
    assert board.log("a") is log
    board.extend(log, [row(6, 5)])
    assert [wake.id for wake in taken(tap) if isinstance(wake, NewMessage)] == [6]
    other = FakeClient(stream="a")
    board.join(other, other.request.places)
    following.leave(board, tap)
    assert board.log("a") is log
    board.leave(other)
    assert board.log("a") is None
