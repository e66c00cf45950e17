"""Sweeps: when they come, which messages they find, and how much they may cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise
from math import inf
from types import SimpleNamespace

import gevent
import pytest
from streamer_parts import FakeClient, Table, added, make_board, wait_until

from pgbus_gevent.core.board import Board
from pgbus_gevent.core.events import Broadcast
from pgbus_gevent.core.rows import LARGE, Row, TailRow
from pgbus_gevent.core.stream_log import StreamLog
from pgbus_gevent.core.work import Work
from pgbus_gevent.streamer import sweeper
from pgbus_gevent.streamer.sweeper import AFTER_DOORBELL, MAX_SHARE, PROBE_AFTER, TAIL_REST, Sweeper
from pgbus_gevent.streamer.turns import breathe

STAGES = [0.004, 0.008, 0.038, 0.2]
"""The pauses before the sweeps after a notification."""


class Looks(Work[StreamLog]):
    """Does what a reader would do: brings logs up to the table, and records the looks that were asked for."""

    def __init__(self, table: Table, board: Board) -> None:
        super().__init__(board.reading)
        self._table = table
        self.asked: list[str] = []

    def add(self, log: StreamLog) -> None:
        self.asked.append(log.name)
        log.extend(self._table.rows[log.name])


class Sweeping:
    """The sweeper over a table in memory. Its pauses are recorded and take no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.on_sleep: Callable[[], object] = lambda: None
        monkeypatch.setattr(sweeper, "gevent", SimpleNamespace(sleep=self._sleep))
        self.table = Table()
        self.board = make_board()
        self.board.listening.set()
        self.board.unsure = False
        self.registry = self.board.registry
        self.board.looks = looks = Looks(self.table, self.board)
        self.moved = looks.asked
        self.added: list[tuple[str, int]] = []
        self.board.events.subscribe(Broadcast, self.added.append)  # type: ignore[arg-type]  # a pair, too
        self.part = Sweeper(self.table, self.board, interval=1000.0, clock=lambda: self.now)
        self.greenlet: gevent.Greenlet[..., None] | None = None

    @property
    def interval(self) -> float:
        return self.part.interval

    @interval.setter
    def interval(self, seconds: float) -> None:
        self.part._interval = seconds

    def _sleep(self, seconds: float) -> None:
        if seconds:
            self.slept.append(round(seconds, 6))
            self.now += seconds
        self.on_sleep()
        breathe()

    def watch(self, stream: str, *, opened: bool = True) -> FakeClient:
        client = FakeClient(stream, stream)
        log = added(self.board, client).log
        if opened:
            log.open(head=0, horizon=0, oldest=0, floor=0, rows=[])
        return client

    def start(self) -> None:
        self.greenlet = gevent.spawn(self.part.run)
        breathe()

    def at_rest(self) -> bool:
        return self.part._stage == len(AFTER_DOORBELL) and not self.board.doorbell.is_set()

    def ring(self) -> None:
        """Set the doorbell, and wait until the series of sweeps is over."""
        self.board.doorbell.set()
        wait_until(self.at_rest)
        breathe()


@pytest.fixture
def sweeping(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sweeping]:
    made = Sweeping(monkeypatch)
    yield made
    if made.greenlet is not None:
        made.greenlet.kill()


def test_with_a_pace_it_sweeps_after_the_pace(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    sweeping.start()
    sweeping.slept.clear()
    sweeping.board.pace = 0.025
    sweeping.ring()
    assert sweeping.slept == [0.029, *STAGES[1:]]


def test_after_a_notification_it_sweeps_four_times(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    sweeping.start()
    sweeping.ring()
    assert (sweeping.part.sweeps, sweeping.slept) == (4, STAGES)


def test_it_finds_the_streams_that_moved_and_no_others(sweeping: Sweeping) -> None:
    for stream in ("orders", "stock", "news"):
        sweeping.watch(stream)
    sweeping.table.append("orders")
    sweeping.table.append("news")
    sweeping.table.append("unwatched")
    sweeping.start()
    sweeping.ring()
    assert sorted(sweeping.moved) == ["news", "orders"]


def test_as_long_as_something_is_found_it_starts_over(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    found = [1, 2, 3, 4]
    sweeping.table.on_read = lambda: found and (found.pop(), sweeping.table.append("orders"))
    sweeping.start()
    sweeping.ring()
    assert sweeping.slept == [0.004] * 4 + STAGES
    # The first sweep is a probe, which only finds that there is a message; the others bring it.
    assert (sweeping.moved, sweeping.added) == (["orders"], [("orders", 1)] * 3)


def test_between_two_probes_it_reads_the_tail_which_brings_the_messages(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    sweeping.start()
    sweeping.ring()
    sweeping.table.reads.clear()
    sweeping.table.append("orders")
    sweeping.table.append("unwatched")
    sweeping.ring()
    assert sweeping.table.reads == ["tail", "tail", "tail", "tail", "moved"]
    assert (sweeping.added, sweeping.moved) == ([("orders", 1)], [])


def test_a_message_that_commits_after_a_higher_id_is_found_by_the_next_tail(sweeping: Sweeping) -> None:
    for stream in ("orders", "late"):
        sweeping.watch(stream)
    sweeping.start()
    sweeping.ring()
    late = sweeping.table.append("late")
    hidden = sweeping.table.rows.pop("late")
    sweeping.table.append("orders")

    def commit() -> None:
        if sweeping.added == [("orders", 1)]:
            sweeping.table.rows["late"] = hidden

    sweeping.table.on_read = commit
    sweeping.table.reads.clear()
    sweeping.ring()
    assert sweeping.added == [("orders", 1), ("late", 1)]
    assert sweeping.table.reads[:2] == ["tail", "tail"]
    assert late.id == hidden[0].id


def test_a_message_that_does_not_follow_its_head_has_its_stream_read(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    sweeping.start()
    sweeping.ring()
    sweeping.table.append("orders")
    tail = sweeping.table.tail
    sweeping.table.tail = lambda *a, **k: [row._replace(prev_id=None) for row in tail(*a, **k)]  # type: ignore[method-assign]
    sweeping.ring()
    assert (sweeping.added, sweeping.moved) == ([], ["orders"])


def test_large_data_has_its_stream_read(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    sweeping.start()
    sweeping.ring()
    sweeping.table.append("orders")
    tail = sweeping.table.tail
    sweeping.table.tail = lambda *a, **k: [row._replace(data=None) for row in tail(*a, **k)]  # type: ignore[method-assign]
    sweeping.ring()
    assert (sweeping.added, sweeping.moved) == ([], ["orders"])


@pytest.mark.parametrize("size, looks", [(LARGE, []), (LARGE - 1, ["orders"])])
def test_a_large_message_that_no_notification_can_have_brought_is_looked_for(
    size: int, looks: list[str], sweeping: Sweeping
) -> None:
    sweeping.watch("orders")
    sweeping.start()
    sweeping.ring()
    real = sweeping.table.append("orders", "x" * LARGE)
    log = sweeping.registry.hold("orders")
    sweeping.board.take_next(log, real._replace(data="y" * size))  # forged, unless it can only have been read
    tail = sweeping.table.tail
    sweeping.table.tail = lambda *a, **k: [row._replace(data=None) for row in tail(*a, **k)]  # type: ignore[method-assign]
    sweeping.ring()
    assert sweeping.moved == looks
    assert (log.recheck is not None) == bool(looks)


def test_while_notifications_never_end_a_probe_comes_every_second(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    sweeping.table.on_read = lambda: sweeping.board.doorbell.set() if sweeping.now < 5 else None
    sweeping.start()
    sweeping.ring()
    assert sweeping.table.reads.count("moved") in (6, 7)  # one more at the end of it all
    assert sweeping.table.reads.count("tail") > 500


def test_on_a_slow_machine_a_tail_follows_each_probe_but_the_last(sweeping: Sweeping) -> None:
    """A probe compares heads alone. It does not see that an announced message is not the one of the table with this id."""
    sweeping.watch("orders")
    sweeping.start()
    sweeping.ring()
    sweeping.table.reads.clear()

    def slow() -> None:
        sweeping.now += PROBE_AFTER

    sweeping.on_sleep = slow
    sweeping.ring()
    assert sweeping.table.reads == ["moved", "tail"] * 3 + ["moved"]


def test_a_flood_makes_the_next_sweep_a_probe(sweeping: Sweeping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "TAIL_ROWS", 3)
    sweeping.watch("orders")
    sweeping.start()
    sweeping.ring()
    sweeping.table.reads.clear()
    for _ in range(10):
        sweeping.table.append("orders")
    sweeping.ring()
    # The probe covers the flood, so the tails after it begin above it.
    assert sweeping.table.reads == ["tail", "moved", "tail", "tail", "tail", "moved"]
    assert sweeping.table.ids("orders")[-1] == sweeping.registry.log("orders").head  # type: ignore[union-attr]


def test_a_tail_names_the_streams_only_if_they_are_few(sweeping: Sweeping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "FEW_STREAMS", 2)
    named = []
    tail = sweeping.table.tail

    def watched(above: int, holes: object, streams: list[str] | None, *, limit: int) -> list[TailRow]:
        named.append(streams)
        return tail(above, [], streams, limit=limit)

    sweeping.table.tail = watched  # type: ignore[method-assign, assignment]
    sweeping.watch("orders")
    sweeping.watch("stock")
    sweeping.start()
    sweeping.ring()
    sweeping.ring()
    sweeping.watch("news")
    sweeping.ring()
    # The very first sweep is a probe, and so is the last of each series of four.
    assert [names and sorted(names) for names in named] == [["orders", "stock"]] * 5 + [None] * 3


def test_messages_that_a_notification_brought_meanwhile_need_no_look(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    sweeping.table.append("orders")
    log = sweeping.registry.log("orders")
    assert log is not None
    moved = sweeping.table.moved

    def slow(heads: dict[str, int], pruned: Collection[str]) -> tuple[int, dict[str, int]]:
        found = moved(heads, pruned)
        log.extend(sweeping.table.rows["orders"])
        return found

    sweeping.table.moved = slow  # type: ignore[method-assign]
    sweeping.start()
    sweeping.ring()
    assert sweeping.moved == []
    assert sweeping.part.sweeps == 4


def test_a_stream_whose_last_client_left_meanwhile_is_ignored(sweeping: Sweeping) -> None:
    client = sweeping.watch("orders")
    sweeping.table.append("orders")
    sweeping.table.on_read = lambda: sweeping.board.leave(client)
    sweeping.start()
    sweeping.ring()
    assert sweeping.moved == []


@pytest.mark.parametrize("watched", [False, True])
def test_without_an_open_stream_it_asks_nothing(sweeping: Sweeping, watched: bool) -> None:
    if watched:
        sweeping.watch("orders", opened=False)
    sweeping.start()
    sweeping.ring()
    assert sweeping.table.reads == []


def test_without_notifications_it_sweeps_at_every_interval(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    sweeping.table.append("orders")
    sweeping.interval = 0.005
    sweeping.start()
    wait_until(lambda: sweeping.part.sweeps > 5)
    assert sweeping.moved == ["orders"]


def test_a_notification_ends_the_interval(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    sweeping.start()
    assert sweeping.part.sweeps == 0
    sweeping.board.doorbell.set()
    wait_until(lambda: sweeping.part.sweeps)


@pytest.mark.parametrize("sleep", [2, 3])
def test_a_notification_between_the_sweeps_starts_the_series_again(sweeping: Sweeping, sleep: int) -> None:
    sweeping.watch("orders")

    def ring_once() -> None:
        if len(sweeping.slept) == sleep and sweeping.part._stage:
            sweeping.on_sleep = lambda: None
            sweeping.board.doorbell.set()

    sweeping.on_sleep = ring_once
    sweeping.start()
    sweeping.ring()
    assert sweeping.slept == STAGES[:sleep] + STAGES


@pytest.mark.parametrize("sweep", [1, 2, 3])
def test_a_notification_during_a_sweep_starts_the_series_again(sweeping: Sweeping, sweep: int) -> None:
    sweeping.watch("orders")
    sweeping.table.on_read = lambda: sweeping.board.doorbell.set() if len(sweeping.table.reads) == sweep else None
    sweeping.start()
    sweeping.ring()
    assert sweeping.slept == STAGES[:sweep] + STAGES


def test_sweeps_take_no_more_than_their_share_of_the_time(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    sweeping.table.on_read = lambda: setattr(sweeping, "now", sweeping.now + 2.0)
    sweeping.start()
    sweeping.ring()
    # The first and the last are probes, which wait for one another, and between them are tails, which rest a little.
    assert sweeping.table.reads == ["moved", "tail", "tail", "moved"]
    assert sweeping.slept[:6] == [STAGES[0], STAGES[1], TAIL_REST, STAGES[2], TAIL_REST, STAGES[3]]
    assert sum(sweeping.slept[1:]) + 2 * 2.0 >= 2.0 / MAX_SHARE - 2.0 - 1e-6


def test_probes_take_no_more_than_their_share_of_the_time(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    began: list[float] = []

    def slow() -> None:
        if sweeping.table.reads[-1] == "moved":
            began.append(sweeping.now)
            sweeping.now += 2.0
        if sweeping.now < 100:
            sweeping.board.doorbell.set()

    sweeping.table.on_read = slow
    sweeping.start()
    sweeping.ring()
    pauses = [later - earlier for earlier, later in pairwise(began)]
    assert len(pauses) > 5 and min(pauses) >= 2.0 / MAX_SHARE
    assert sweeping.table.reads.count("tail") > 100


def test_a_sweep_that_hung_delays_the_next_by_no_more_than_the_interval(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    sweeping.interval = 5.0
    sweeping.table.on_read = lambda: setattr(sweeping, "now", sweeping.now + 30.0)
    sweeping.start()
    sweeping.ring()
    assert max(sweeping.slept) <= 5.0


def test_a_database_that_is_away_is_logged_once_and_tried_again(
    sweeping: Sweeping, caplog: pytest.LogCaptureFixture
) -> None:
    sweeping.watch("orders")
    sweeping.table.append("orders")
    sweeping.table.failures = 5
    sweeping.interval = 0.001
    sweeping.start()
    wait_until(lambda: sweeping.moved)
    assert sweeping.moved == ["orders"]
    assert caplog.text.count("cannot look for new messages") == 1
    sweeping.table.failures = 1
    wait_until(lambda: caplog.text.count("cannot look for new messages") == 2)


def test_a_message_that_commits_after_a_probe_is_found_by_the_next_tail(sweeping: Sweeping) -> None:
    for stream in ("orders", "late"):
        sweeping.watch(stream)
    sweeping.start()
    sweeping.ring()
    sweeping.table.append("late")
    hidden = sweeping.table.rows.pop("late")
    sweeping.table.append("orders")
    # A probe finds it, as after a second of notifications.
    sweeping.part._probed = -10.0
    sweeping.ring()
    sweeping.table.rows["late"] = hidden
    sweeping.table.reads.clear()
    sweeping.ring()
    assert ("late", 1) in sweeping.added
    assert sweeping.table.reads[0] == "tail"


# A table that went back in time


def test_a_head_that_the_table_does_not_have_has_its_stream_read(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    sweeping.watch("stock")
    for _ in range(3):
        sweeping.table.append("orders")
    sweeping.start()
    sweeping.ring()
    sweeping.moved.clear()
    sweeping.table.lose("orders", 2)
    sweeping.part._probed = -10.0
    sweeping.board.doorbell.set()
    wait_until(lambda: sweeping.moved)
    assert set(sweeping.moved) == {"orders"}


def test_a_head_that_the_table_does_not_have_has_its_stream_read_even_if_it_moves_on(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    for _ in range(3):
        sweeping.table.append("orders")
    sweeping.start()
    sweeping.ring()
    log = sweeping.registry.log("orders")
    assert log is not None
    sweeping.moved.clear()
    sweeping.table.lose("orders", 2)
    moved = sweeping.table.moved

    def slow(heads: dict[str, int], pruned: Collection[str]) -> tuple[int, dict[str, int]]:
        found = moved(heads, pruned)
        log.extend([Row(log.head + 10, None, "forged", None, None, log.head)])
        return found

    sweeping.table.moved = slow  # type: ignore[method-assign]
    sweeping.board.doorbell.set()
    wait_until(lambda: sweeping.moved)
    assert set(sweeping.moved) == {"orders"}


def test_ids_below_those_that_are_gone_are_found_by_tails_again(sweeping: Sweeping) -> None:
    for stream in ("orders", "stock"):
        sweeping.watch(stream)
    for _ in range(3):
        sweeping.table.append("orders")
    sweeping.start()
    sweeping.ring()
    sweeping.table.rows["orders"].clear()
    log = sweeping.registry.log("orders")
    assert log is not None
    log.rewind(0, horizon=0)
    sweeping.ring()
    sweeping.table._next_id = 15
    sweeping.table.append("stock")
    sweeping.added.clear()
    sweeping.table.reads.clear()
    sweeping.ring()
    assert (sweeping.added, sweeping.table.reads[0]) == ([("stock", 1)], "tail")


def test_with_a_new_session_the_first_sweep_is_a_probe_and_settles_the_doubts(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    sweeping.start()
    sweeping.ring()
    log = sweeping.registry.log("orders")
    assert log is not None
    sweeping.board.doubt()
    sweeping.table.reads.clear()
    sweeping.table.failures = 1
    sweeping.board.resync()
    assert log.in_doubt
    wait_until(lambda: not log.in_doubt)
    assert sweeping.table.reads[:2] == ["moved", "moved"]


def test_a_probe_that_began_before_a_doubt_does_not_settle_it(sweeping: Sweeping) -> None:
    sweeping.watch("orders")
    sweeping.start()
    sweeping.ring()
    log = sweeping.registry.log("orders")
    assert log is not None
    moved, doubts = sweeping.table.moved, []

    def late(heads: dict[str, int], pruned: Collection[str]) -> tuple[int, dict[str, int]]:
        sweeping.table.moved = moved  # type: ignore[method-assign]
        found = moved(heads, pruned)
        sweeping.board.doubt()
        sweeping.table.on_read = lambda: doubts.append(log.in_doubt)
        return found

    sweeping.table.moved = late  # type: ignore[method-assign]
    sweeping.board.unsure = True
    sweeping.ring()
    assert doubts == [True] * 3  # until the series ends with another probe
    assert not log.in_doubt


# Rings that are compared with the table


def checked(sweeping: Sweeping) -> None:
    """Let an interval pass, and sweep."""
    reads = sweeping.table.reads.count("inventory")
    sweeping.now += sweeping.interval
    sweeping.ring()
    assert sweeping.table.reads.count("inventory") == reads + 1


@pytest.fixture
def holding(sweeping: Sweeping) -> StreamLog:
    """The log of a stream whose ring holds five messages."""
    sweeping.watch("orders")
    for _ in range(5):
        sweeping.table.append("orders")
    sweeping.start()
    sweeping.ring()
    log = sweeping.registry.log("orders")
    assert log is not None
    assert log.ids == [10, 20, 30, 40, 50]
    return log


def test_a_ring_that_agrees_with_the_table_stays(sweeping: Sweeping, holding: StreamLog) -> None:
    checked(sweeping)
    assert holding.ids == [10, 20, 30, 40, 50]
    sweeping.table.prune("orders", 2)
    checked(sweeping)
    assert holding.ids == [10, 20, 30, 40, 50], (
        "clients that are behind still get messages that were pruned a moment ago"
    )


@pytest.mark.parametrize("change", ["deleted", "added", "both"])
def test_a_ring_that_does_not_agree_is_cleared(change: str, sweeping: Sweeping, holding: StreamLog) -> None:
    if change != "added":
        sweeping.table.delete("orders", 30)
    if change != "deleted":
        rows = sweeping.table.rows["orders"]
        rows.insert(2, rows[0]._replace(id=25))
    checked(sweeping)
    assert (holding.ids, holding.head, holding.floor) == ([], 50, 50)


def test_a_ring_that_was_filled_again_meanwhile_stays(sweeping: Sweeping, holding: StreamLog) -> None:
    inventory = sweeping.table.inventory

    def late(ranges: Sequence[tuple[str, int, int]]) -> list[tuple[int, int, int]]:
        found = inventory(ranges)
        holding.rewind(0, horizon=0)
        holding.extend(sweeping.table.rows["orders"])
        return found

    sweeping.table.inventory = late  # type: ignore[method-assign]
    sweeping.table.delete("orders", 20)
    checked(sweeping)
    assert holding.ids == [10, 30, 40, 50]


def test_if_rings_hold_more_than_is_checked_at_once_they_take_turns(
    sweeping: Sweeping, holding: StreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "CHECKED_MESSAGES", 1)
    sweeping.watch("stock")
    sweeping.table.append("stock")
    sweeping.table.append("stock")
    sweeping.ring()
    for stream in ("orders", "stock"):
        sweeping.table.rows[stream][0] = sweeping.table.rows[stream][0]._replace(id=5)
    checked(sweeping)
    kept = [log.ids for log in sweeping.registry.logs()]
    assert kept.count([]) == 1
    checked(sweeping)
    assert [log.ids for log in sweeping.registry.logs()] == [[], []]


def test_logs_whose_check_is_due_are_not_kept_when_nobody_watches_a_stream(
    sweeping: Sweeping, holding: StreamLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "CHECKED_MESSAGES", 1)
    for name in ("stock", "news"):
        sweeping.watch(name)
        sweeping.table.append(name)
    sweeping.ring()
    checked(sweeping)
    assert len(sweeping.part._unchecked) == 2
    for client in sweeping.registry.clients():
        sweeping.board.leave(client)
    sweeping.ring()
    assert sweeping.part._unchecked == []


# relying on a steward


class Relying(Sweeping):
    """A sweeper that relies on a steward, with one stream whose first probe is over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.client = self.watch("orders")
        self.board.steward_until = 1e9
        self.interval = 0.4
        self.start()
        wait_until(lambda: not self.board.follow_all and not self.board.unsure)
        self.interval = 1000.0
        wait_until(lambda: self.table.reads)
        breathe()
        self.rest()

    def rest(self) -> None:
        """Wait until the sweeper waits for the doorbell, in an interval that does not end."""
        gevent.sleep(0.45)
        self.table.reads.clear()


@pytest.fixture
def relying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Relying]:
    made = Relying(monkeypatch)
    yield made
    assert made.greenlet is not None
    made.greenlet.kill()


def test_a_worker_that_relies_on_the_steward_does_not_sweep_after_a_notification(relying: Relying) -> None:
    for _ in range(3):
        relying.board.doorbell.set()
        wait_until(lambda: not relying.board.doorbell.is_set())
    assert relying.table.reads == []


def test_it_probes_if_something_is_in_doubt(relying: Relying) -> None:
    relying.table.append("orders")
    relying.board.resync()
    wait_until(lambda: "moved" in relying.table.reads)
    assert relying.moved == ["orders"]
    assert "tail" not in relying.table.reads


@pytest.mark.parametrize(("until", "workers", "spread"), [(1e9, 1, 0.0025), (1e9, 40, 0.1), (inf, 1, 0.25)])
def test_probes_that_all_are_told_to_make_are_spread_over_the_fleet_and_over_all_edges(
    relying: Relying, monkeypatch: pytest.MonkeyPatch, until: float, workers: int, spread: float
) -> None:
    monkeypatch.setattr(sweeper.random, "random", lambda: 1.0)
    relying.board.steward_until, relying.board.workers = until, workers
    relying.slept.clear()
    relying.board.resync()
    wait_until(lambda: "moved" in relying.table.reads)
    assert spread in relying.slept


def test_it_sweeps_for_itself_when_the_steward_is_gone(relying: Relying) -> None:
    relying.board.steward_until = relying.now
    wait_until(lambda: relying.board.follow_all)
    relying.table.append("orders")
    relying.board.doorbell.set()
    wait_until(lambda: "tail" in relying.table.reads)


def test_it_sweeps_for_itself_when_it_does_not_hear(relying: Relying) -> None:
    relying.board.listening.clear()
    relying.interval = 0.1
    wait_until(lambda: relying.board.follow_all)
    wait_until(lambda: len(relying.table.reads) > 3)


def test_a_message_above_those_that_came_during_the_only_probe_is_found(relying: Relying) -> None:
    relying.table.append("orders")
    relying.table.append("orders")  # nobody rings for this one
    log = relying.registry.log("orders")
    assert log is not None
    moved = relying.table.moved

    def slow(heads: dict[str, int], pruned: Collection[str]) -> tuple[int, dict[str, int]]:
        found = moved(heads, pruned)
        log.extend(relying.table.rows["orders"][:1])
        return found

    relying.table.moved = slow  # type: ignore[method-assign]
    relying.board.resync()
    wait_until(lambda: "moved" in relying.table.reads)
    wait_until(lambda: not relying.board.unsure)
    breathe()
    assert log.head == relying.table.head("orders")


def test_the_workers_of_a_fleet_that_lose_a_relay_take_their_turns(
    relying: Relying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    relying.board.relay.reaches, relying.board.workers = True, 1000
    relying.slept.clear()
    asked: list[list[str]] = []
    relying.on_sleep = lambda: asked.append(list(relying.table.reads))
    relying.board.listening.clear()
    wait_until(lambda: relying.board.follow_all)
    assert relying.slept[0] == 5.0 and asked[0] == []


def test_a_probe_that_fails_is_not_repeated_at_once(relying: Relying) -> None:
    relying.table.failures = 3
    before = relying.now
    relying.board.resync()
    wait_until(lambda: relying.table.reads.count("moved") >= 4)
    assert relying.now - before >= 3 * sweeper.RETRY / 2


def test_an_edge_never_follows_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Sweeping(monkeypatch)
    made.watch("orders")
    made.board.follow_all, made.board.steward_until = False, float("inf")
    made.board.listening.clear()
    made.interval = 0.01
    made.start()
    try:
        wait_until(lambda: made.table.reads)
        assert not made.board.follow_all
        made.board.listening.set()
        wait_until(lambda: made.part._relying)
        made.board.listening.clear()
        wait_until(lambda: not made.part._relying)
        assert not made.board.follow_all
    finally:
        assert made.greenlet is not None
        made.greenlet.kill()
