"""What a reader of pages gets, in which order, and where it is told of a gap."""

from __future__ import annotations

from pgbus_gevent.core.rows import PageRows, Row
from pgbus_gevent.core.table_tail import Gap, TableTail

BASE = 2 * 10**15
"""Ids are about the clock in microseconds, so that a cursor of a few digits is no id."""


def row(id: int, prev_id: int | None, event: str | None = None) -> Row:
    return Row(
        BASE + id, event, f"data {id}", None, None, None if prev_id is None else max(0, prev_id and BASE + prev_id)
    )


def page(*rows: Row, horizon: int = 0, anchor: int = 0, forgotten: int = 0) -> PageRows:
    return PageRows(
        [*rows], horizon and BASE + horizon, False, anchor and BASE + anchor, forgotten and BASE + forgotten
    )


def found(tail: TableTail) -> list[int | tuple[str, int, int]]:
    """All that the tail returns now: ids of messages, and gaps as reason, requested and oldest id, without the base."""
    got: list[int | tuple[str, int, int]] = []
    while (one := tail.next()) is not None:
        got.append((one.reason, one.requested - BASE, one.oldest - BASE) if isinstance(one, Gap) else one.id - BASE)
    return got


def test_messages_come_in_order_and_move_the_cursor() -> None:
    tail = TableTail("orders", BASE + 1, seen=True)
    assert tail.take(page(row(2, 1), row(5, 2), anchor=1))
    first = tail.next()
    assert isinstance(first, Row) and first.data == "data 2" and tail.cursor == BASE + 2
    assert found(tail) == [5]
    assert not tail.take(page(anchor=5))


def test_pruned_messages_are_a_gap_before_the_first_that_is_left() -> None:
    tail = TableTail("orders", BASE + 1, seen=True)
    tail.take(page(row(7, 6), horizon=6))
    assert found(tail) == [("expired", 1, 7), 7]


def test_if_all_messages_were_pruned_the_gap_comes_once() -> None:
    tail = TableTail("orders", BASE + 1, seen=True)
    assert tail.take(page(horizon=6))
    assert found(tail) == [("expired", 1, 6)]
    assert not tail.take(page(horizon=6)) and tail.pruned


def test_a_hole_in_the_middle_of_a_page_is_a_gap_at_its_place() -> None:
    tail = TableTail("orders", BASE + 1, seen=True)
    tail.take(page(row(2, 1), row(9, 5), anchor=1))
    assert found(tail) == [2, ("expired", 2, 9), 9]


def test_the_cursor_0_asks_for_what_is_retained_and_misses_nothing() -> None:
    tail = TableTail("orders", 0)
    tail.take(page(row(7, 6), horizon=6))
    assert found(tail) == [7]


def test_a_cursor_above_the_last_message_is_ahead_and_all_messages_follow() -> None:
    tail = TableTail("orders", BASE + 100)
    assert tail.take(page(anchor=4))
    assert tail.next() is None and tail.cursor == 0
    tail.take(page(row(3, 0), row(4, 3)))
    assert found(tail) == [("ahead", 100, 3), 3, 4]


def test_a_message_that_came_and_was_lost_is_ahead_also_if_newer_ones_follow() -> None:
    tail = TableTail("orders", BASE + 3, seen=True)
    tail.take(page(row(4, 3), anchor=3))
    assert found(tail) == [4]
    assert tail.take(page(row(8, 3), anchor=3))  # a standby without 4 was promoted, and then 8 was published
    assert tail.next() is None
    tail.take(page(row(3, 0), row(8, 3)))
    assert found(tail) == [("ahead", 4, 3), 3, 8]


def test_a_cursor_from_elsewhere_that_the_page_refutes_is_ahead() -> None:
    tail = TableTail("orders", BASE + 5)
    assert tail.take(page(row(8, 3), anchor=3))
    assert tail.next() is None and tail.cursor == 0


def test_a_cursor_from_elsewhere_between_two_messages_is_taken() -> None:
    tail = TableTail("orders", BASE + 5)
    tail.take(page(row(8, None), anchor=3))
    assert found(tail) == [8]


def test_a_stream_that_was_pruned_empty_and_forgotten_is_not_lost() -> None:
    tail = TableTail("orders", BASE + 5, seen=True)
    assert not tail.take(page(horizon=5))
    assert not tail.take(page(forgotten=5))
    assert not TableTail("orders", 0).take(page())


def test_a_row_with_a_forged_event_is_skipped() -> None:
    tail = TableTail("orders", BASE + 1, seen=True)
    tail.take(page(row(2, 1, "x\ndata: forged"), row(3, 2, "fine"), anchor=1))
    assert found(tail) == [3] and tail.cursor == BASE + 3
