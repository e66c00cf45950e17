"""The head and ring of a stream, compared with a plain list of the published messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pgbus_gevent.core import sse
from pgbus_gevent.core.frames import Frame, agree, encode, make_chunk
from pgbus_gevent.core.replay import PageFrames
from pgbus_gevent.core.ring_budget import RingBudget
from pgbus_gevent.core.rows import Row
from pgbus_gevent.core.stream_log import StreamLog

MAX_FRAMES = 5
MAX_BYTES = 400
BUDGET = 700
NAMES = ("orders", "stock", "news")


def row(id: int, data: str = "x", **values: Any) -> Row:
    return Row(id, **{"event": None, "visible_to": None, "exclude": None, **values}, data=data)


def make_log(budget: RingBudget | None = None, *, max_frames: int = MAX_FRAMES, max_bytes: int = 10_000) -> StreamLog:
    return StreamLog("orders", budget or RingBudget(10**6), max_frames=max_frames, max_bytes=max_bytes)


def open_log(*ids: int, head: int | None = None, floor: int = 0, **limits: Any) -> StreamLog:
    log = make_log(**limits)
    log.open(head=max(ids, default=0) if head is None else head, horizon=0, oldest=0, floor=floor, rows=map(row, ids))
    return log


class Logs(RuleBasedStateMachine):
    """Three logs that share a budget. ``published`` has all messages of each, and its log knows those up to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = RingBudget(BUDGET)
        self.logs = [StreamLog(name, self.budget, max_frames=MAX_FRAMES, max_bytes=MAX_BYTES) for name in NAMES]
        self.published: list[list[Row]] = [[] for _ in NAMES]
        self.next_id = 1

    def known(self, n: int) -> list[Row]:
        return [row for row in self.published[n] if row.id <= self.logs[n].head]

    @rule(n=st.integers(0, 2), hole=st.integers(1, 3), size=st.sampled_from([0, 1, 50, 150, 500]))
    def publish(self, n: int, hole: int, size: int) -> None:
        self.next_id += hole
        self.published[n].append(row(self.next_id, "x" * size))

    @precondition(lambda self: any(not log.is_open for log in self.logs))
    @rule(data=st.data(), horizon=st.integers(0, 3))
    def open(self, data: st.DataObject, horizon: int) -> None:
        n = data.draw(st.sampled_from([n for n, log in enumerate(self.logs) if not log.is_open]))
        rows = self.published[n]
        newest = data.draw(st.integers(0, len(rows)))
        head = rows[-1].id if rows else 0
        floor = rows[-newest - 1].id if newest < len(rows) else 0
        self.logs[n].open(head=head, horizon=horizon, oldest=0, floor=floor, rows=rows[len(rows) - newest :])

    @rule(n=st.integers(0, 2), overlap=st.integers(0, 4), count=st.integers(0, 8))
    def extend(self, n: int, overlap: int, count: int) -> None:
        """Extend a log as a page or a notification does: from a message that may be known already."""
        log = self.logs[n]
        if log.is_open:
            start = max(0, len(self.known(n)) - overlap)
            rows = self.published[n][start : start + count]
            before = log.head
            new = [row for row in rows if row.id > before]
            assert log.extend(rows) == len(new)
            assert log.head == (new[-1].id if new else before)

    @rule(n=st.integers(0, 2))
    def clear_ring(self, n: int) -> None:
        head = self.logs[n].head
        self.logs[n].clear_ring()
        assert self.logs[n].head == head

    @rule(n=st.integers(0, 2), back=st.integers(1, 12), max_bytes=st.sampled_from([1, 100, 10_000]))
    def after(self, n: int, back: int, max_bytes: int) -> None:
        log, cursor = self.logs[n], self.logs[n].head - back
        if cursor < 0:
            return
        missing = [encode(row) for row in self.known(n) if row.id > cursor]
        chunk = log.after(cursor, max_bytes)
        if cursor < log.floor:
            assert chunk is None
            return
        assert chunk is not None
        frames = list(chunk.frames)
        assert frames == missing[: len(frames)] != []
        assert chunk.cursor == frames[-1].id
        assert chunk.data == b"".join(frame.data for frame in frames)
        sizes = [len(frame.data) for frame in frames]
        assert sum(sizes[:-1]) < max_bytes
        assert len(frames) == len(missing) or sum(sizes) >= max_bytes

    @rule(n=st.integers(0, 2), count=st.integers(0, MAX_FRAMES + 2))
    def back(self, n: int, count: int) -> None:
        log, known = self.logs[n], self.known(n)
        if not log.is_open:
            return
        cursor = log.back(count)
        if cursor is not None:
            assert [row.id for row in known if row.id > cursor] == [row.id for row in known[len(known) - count :]]
        else:
            assert count >= len([row for row in known if row.id > log.floor])

    @invariant()
    def each_ring_has_just_what_lies_above_its_floor(self) -> None:
        for n, log in enumerate(self.logs):
            expected = [encode(row) for row in self.known(n) if row.id > log.floor]
            chunk = log.after(log.floor, 10**9) if log.head > log.floor else None
            assert (list(chunk.frames) if chunk is not None else []) == expected

    @invariant()
    def each_ring_is_within_its_limits(self) -> None:
        for n, log in enumerate(self.logs):
            sizes = [len(encode(row).data) for row in self.known(n) if row.id > log.floor]
            assert len(sizes) <= MAX_FRAMES
            assert sum(sizes) <= MAX_BYTES or len(sizes) == 1

    @invariant()
    def the_budget_is_the_sum_of_the_rings_and_never_exceeded(self) -> None:
        held = [row for n, log in enumerate(self.logs) for row in self.known(n) if row.id > log.floor]
        assert self.budget.used == sum(len(encode(row).data) for row in held) <= BUDGET


TestLogs = Logs.TestCase
TestLogs.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


# Opening


def test_a_log_knows_nothing_before_it_is_opened() -> None:
    log = make_log()
    assert (log.is_open, log.head, log.floor) == (False, 0, 0)
    assert not log.follows(0)
    assert not log.follows(None)


def test_the_head_of_a_snapshot_without_rows_is_known() -> None:
    log = open_log(head=70, floor=70)
    assert (log.head, log.floor, log.back(0)) == (70, 70, 70)


def test_a_floor_above_the_head_is_brought_down_to_it() -> None:
    """A client whose cursor is ahead brings such a cursor."""
    log = open_log(head=70, floor=90)
    log.extend([row(80)])
    chunk = log.after(70, 1000)
    assert chunk is not None
    assert chunk.cursor == 80


def test_only_a_message_that_names_the_head_follows() -> None:
    log = open_log(10, 20)
    assert log.follows(20)
    assert not log.follows(10)
    assert not log.follows(None)


def test_the_first_message_of_a_stream_follows_zero() -> None:
    assert open_log().follows(0)


def test_pruning_moves_the_oldest_id_up_and_never_down() -> None:
    log = open_log(10, 20)
    log.note(horizon=15)
    log.note(horizon=5)
    assert (log.horizon, log.oldest) == (15, 15)


# Limits


def test_a_frame_above_every_limit_stays_while_it_is_the_newest() -> None:
    log = make_log(max_bytes=100)
    log.open(head=0, horizon=0, oldest=0, floor=0, rows=[])
    log.extend([row(10), row(20, "x" * 1000)])
    chunk = log.after(10, 1)
    assert chunk is not None
    assert chunk.cursor == 20
    log.extend([row(30)])
    assert log.after(10, 1) is None
    assert log.after(20, 1) is not None


def test_a_frame_larger_than_the_budget_is_not_kept() -> None:
    budget = RingBudget(100)
    log = make_log(budget)
    log.open(head=0, horizon=0, oldest=0, floor=0, rows=[])
    log.extend([row(10, "x" * 1000)])
    assert (log.head, log.after(0, 1), budget.used) == (10, None, 0)


def test_over_the_budget_the_ring_of_the_stream_that_was_quiet_longest_is_cleared() -> None:
    budget = RingBudget(250)
    logs = [make_log(budget) for _ in range(3)]
    for log in logs:
        log.open(head=0, horizon=0, oldest=0, floor=0, rows=[])
    for id, log in [(10, logs[0]), (20, logs[1]), (30, logs[0]), (40, logs[2])]:
        log.extend([row(id, "x" * 60)])
    assert [log.floor for log in logs] == [0, 20, 0]


def test_a_retired_log_keeps_no_messages_of_a_late_read() -> None:
    budget = RingBudget(10_000)
    log = make_log(budget)
    log.open(head=10, horizon=0, oldest=10, floor=0, rows=[row(10)])
    log.retire()
    assert log.retired
    assert log.extend([row(20), row(30)]) == 2
    assert (budget.used, len(budget._rings), log.head) == (0, 0, 30)


# Frames


def test_a_frame_is_encoded_once_and_shared() -> None:
    log = open_log(10, 20)
    first, second = log.after(0, 1000), log.after(10, 1000)
    assert first is not None and second is not None
    assert first.frames[1] is second.frames[0]


def test_a_frame_has_the_id_the_event_and_the_data() -> None:
    frame = encode(row(10, "x", event="paid", visible_to="admins", exclude="ab"))
    assert frame == Frame(10, sse.message("x", event="paid", id=10), "admins", "ab", -1)


@pytest.mark.parametrize(("values", "restricted"), [({}, False), ({"visible_to": "a"}, True), ({"exclude": "a"}, True)])
def test_a_chunk_is_joined_only_if_everybody_may_see_every_frame(values: dict[str, str], restricted: bool) -> None:
    frames = [encode(row(10)), encode(row(20, **values))]
    chunk, both = make_chunk(frames), frames[0].data + frames[1].data
    assert chunk[:5] == (frames, 20, None if restricted else both, False, False)
    if restricted:
        assert chunk.unlabelled == (frames[0].data if "visible_to" in values else both)
        assert chunk.labels == {each.visible_to for each in frames} - {None}
        assert chunk.excluded == {each.exclude for each in frames} - {None}


# Pages


@given(ids=st.lists(st.integers(1, 100), unique=True).map(sorted), cursor=st.integers(0, 101))
def test_a_page_has_the_messages_above_a_cursor(ids: list[int], cursor: int) -> None:
    chunk = PageFrames(list(map(row, ids)), start=0, horizon=0).after(cursor)
    above = [id for id in ids if id > cursor]
    assert [frame.id for frame in chunk.frames] == above if chunk is not None else not above


def test_the_oldest_id_of_an_empty_page_is_the_horizon() -> None:
    assert PageFrames([row(30)], start=5, horizon=20).oldest == 30
    assert PageFrames([], start=5, horizon=20).oldest == 20


def test_messages_that_were_pruned_before_they_came_leave_no_gap_in_the_ring() -> None:
    log = open_log(3, 5)
    log.note(horizon=4)
    assert (log.head, log.floor, log.horizon) == (5, 0, 4)
    log.note(horizon=8)
    assert (log.head, log.floor, log.horizon, log.oldest) == (8, 8, 8, 8)
    assert log.follows(8)
    log.extend([row(9)])
    assert log.after(5, 1000) is None, "they have to read a page, which tells of the gap"
    chunk = log.after(8, 1000)
    assert chunk is not None and [frame.id for frame in chunk.frames] == [9]


def test_an_empty_label_which_only_a_row_written_by_hand_has_is_a_label_too() -> None:
    log = open_log()
    for id in range(1, 3 * MAX_FRAMES):
        log.extend([row(id, visible_to="", prev_id=id - 1)])
    assert log.labels_above(log.head - 1) == {""}
    assert log._labels._by_label[""] == log.ids


# contradictions


@pytest.mark.parametrize(
    ("found", "recheck"),
    [
        (row(20), None), (row(20, "other"), 10), (row(20, event="e"), 10), (row(20, visible_to="a"), 10), (row(10, "other"), 5),
        (row(15), 10), (row(5, "other"), None), (row(3, "other"), None), (row(40), None),
    ],
)  # fmt: skip
def test_a_message_that_differs_from_the_ring_is_a_contradiction(found: Row, recheck: int | None) -> None:
    log = open_log(10, 20, 30, floor=5)
    assert log.contradicts(found) is (recheck is not None)
    assert (log.recheck, log.in_doubt) == (recheck, recheck is not None)


def test_frames_agree_with_a_table_that_has_the_same_messages() -> None:
    log = open_log(10, 20, 30)
    log.doubt_above(10)
    cursor, frames = log.take_recheck()
    assert (cursor, [frame.id for frame in frames], log.recheck) == (10, [20, 30], None)
    log.clear_ring()
    assert agree(frames, [row(20), row(30)], above=10, up_to=30)
    assert agree(frames, [row(10, "other"), row(20)], above=10, up_to=20)
    assert not agree(frames, [row(20)], above=10, up_to=30)
    assert not agree(frames, [row(20), row(25), row(30)], above=10, up_to=30)
    assert not agree(frames, [row(20), row(30, "other")], above=10, up_to=30)
    log.doubt_above(10)
    assert log.take_recheck() == (30, [])
