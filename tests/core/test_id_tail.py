"""The steward's position: whatever order transactions draw, write and commit in, each message is read once, or everybody looks."""

from __future__ import annotations

from itertools import count, pairwise

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.strategies import booleans, data, floats, integers, sampled_from

from pgbus_gevent.core import id_tail
from pgbus_gevent.core.id_tail import MARK_AFTER, Hole, IdTail

SLOWEST_WRITE = MARK_AFTER - 0.01
"""Seconds in which a transaction that has drawn an id writes for the first time, and so gets its transaction id."""


class Transaction:
    def __init__(self) -> None:
        self.xid: int | None = None
        self.drawn: list[int] = []


class Server:
    """Transactions and their ids as PostgreSQL handles them: a snapshot shows what was committed before, and ``ended_below`` is the
    lowest transaction id that was still open then."""

    def __init__(self) -> None:
        self.xids = count(100)
        self.last = 0
        self.latest_completed = 99
        self.open: list[Transaction] = []
        self.committed: set[int] = set()

    def draw(self, transaction: Transaction, ids: int, skipped: int) -> None:
        for _ in range(ids):
            self.last += 1 + skipped
            transaction.drawn.append(self.last)

    def write(self, transaction: Transaction) -> None:
        if transaction.xid is None:
            transaction.xid = next(self.xids)

    def end(self, transaction: Transaction, commits: bool) -> None:
        if transaction.drawn:
            self.write(transaction)
        self.open.remove(transaction)
        if transaction.xid is not None:
            self.latest_completed = max(self.latest_completed, transaction.xid)
        if commits:
            self.committed.update(transaction.drawn)

    @property
    def ended_below(self) -> int:
        running = [transaction.xid for transaction in self.open if transaction.xid is not None]
        return min(running, default=self.latest_completed + 1)

    def bound(self) -> int:
        """Give out a transaction id, as to a tail that asks for one. Its transaction ends at once."""
        bound = next(self.xids)
        self.latest_completed = max(self.latest_completed, bound)
        return bound


class Tails(RuleBasedStateMachine):
    """Random transactions beside random tails."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Server()
        self.tail = IdTail()
        self.now = 0.0
        self.read: list[int] = []
        self.looked: set[int] = set()
        """What everybody has looked for, because the tail started anew after it was committed."""

    @initialize(before=integers(0, 3))
    def start(self, before: int) -> None:
        for _ in range(before):
            transaction = self.begin()
            self.draw(transaction, 1, 0)
            self.server.end(transaction, commits=True)
        self.tail.start(sorted(self.server.committed), self.now, last=self.server.last, complete=True)
        self.looked |= self.server.committed

    def begin(self) -> Transaction:
        transaction = Transaction()
        self.server.open.append(transaction)
        return transaction

    def draw(self, transaction: Transaction, ids: int, skipped: int) -> None:
        self.server.draw(transaction, ids, skipped)

    @rule(data=data(), ids=integers(1, 3), skipped=sampled_from([0, 0, 0, 1, 200]), anew=booleans(), writes=booleans())
    def publish(self, data: object, ids: int, skipped: int, anew: bool, writes: bool) -> None:
        """Draw ids, in a new transaction or in one that is open. Perhaps it has not written yet."""
        transaction = self.begin() if anew or not self.server.open else data.draw(sampled_from(self.server.open))  # type: ignore[attr-defined]
        if writes:
            self.server.write(transaction)
        self.draw(transaction, ids, skipped)

    @precondition(lambda self: self.server.open)
    @rule(data=data(), commits=booleans())
    def end(self, data: object, commits: bool) -> None:
        self.server.end(data.draw(sampled_from(self.server.open)), commits)  # type: ignore[attr-defined]

    @rule()
    def other_transaction(self) -> None:
        """A transaction that does not publish begins, and keeps the transaction ids below it from ending."""
        transaction = self.begin()
        self.server.write(transaction)

    @rule(seconds=floats(0.001, 5.0))
    def time_passes(self, seconds: float) -> None:
        if seconds > SLOWEST_WRITE:
            for transaction in self.server.open:
                if transaction.drawn:
                    self.server.write(transaction)
        self.now += seconds

    @rule(everything=booleans(), limit=sampled_from([2, 5, 100]))
    def sweep(self, everything: bool, limit: int = 100) -> None:
        top = self.tail.top
        assert top is not None
        holes = self.tail.question(self.now, everything=everything)
        bind = self.tail.needs_bound(self.now)
        there = sorted(self.server.committed)
        found = [id for id in there if any(hole.low <= id <= hole.high for hole in holes)]
        above = [id for id in there if id > top][:limit]
        self.tail.saw(holes, found, above, ended_below=self.server.ended_below, last=self.server.last, now=self.now)
        if bind:
            self.tail.bind(self.server.bound(), self.now)
        self.read += [*found, *above]

    @rule()
    def start_again(self) -> None:
        """After a flood, say: everybody looks for what is committed, and the tail goes on from there."""
        self.tail.start(sorted(self.server.committed), self.now, last=self.server.last, complete=True)
        self.looked |= self.server.committed

    @invariant()
    def nothing_is_read_twice(self) -> None:
        assert len(self.read) == len(set(self.read))

    @invariant()
    def holes_are_apart_and_below_the_top(self) -> None:
        holes = sorted((hole.low, hole.high) for hole in self.tail.holes)
        assert all(low <= high <= (self.tail.top or 0) for low, high in holes)
        assert all(high < low for (_, high), (low, _) in pairwise(holes))

    def teardown(self) -> None:
        if self.tail.top is None:
            return
        for transaction in list(self.server.open):
            self.server.end(transaction, commits=True)
        for _ in range(6):
            self.now += 3.0
            self.sweep(everything=True)
        assert self.server.committed - self.looked - set(self.read) == set()
        assert self.tail.holes == [], "every hole is given up once nobody can fill it"


TestTails = Tails.TestCase
TestTails.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


def test_a_young_hole_is_asked_for_by_every_tail_and_an_old_one_seldom() -> None:
    tail = IdTail()
    tail.start([10, 12], 0.0, last=12, complete=False)
    assert tail.question(1.9, everything=False) == [Hole(11, 11, 0.0)]
    assert tail.question(2.1, everything=False) == []
    assert tail.question(2.1, everything=True) == [Hole(11, 11, 0.0)]


def test_a_hole_is_given_up_only_after_a_last_question() -> None:
    tail = IdTail()
    tail.start([10, 12], 0.0, last=12, complete=False)
    assert tail.needs_bound(1.5)
    tail.bind(500, 1.5)
    tail.saw([], [], [], ended_below=501, last=12, now=1.6)
    assert len(tail.holes) == 1, "nobody has asked for it in that snapshot"
    asked = tail.question(3.0, everything=False)
    assert len(asked) == 1
    tail.saw(asked, [], [], ended_below=501, last=12, now=3.0)
    assert tail.holes == []


def test_a_transaction_that_writes_a_little_after_it_has_drawn_its_id_is_found() -> None:
    """The server's snapshot does not know it before its first write, so a bound that is asked for at once would be too low."""
    server, tail = Server(), IdTail()
    tail.start([], 0.0, last=0, complete=False)
    first, second = Transaction(), Transaction()
    server.open += [first, second]
    server.draw(first, 1, 0)
    server.draw(second, 1, 0)
    server.end(second, commits=True)

    def sweep(now: float) -> list[int]:
        assert tail.top is not None
        holes, bind = tail.question(now, everything=True), tail.needs_bound(now)
        found = [id for id in server.committed if any(hole.low <= id <= hole.high for hole in holes)]
        above = [id for id in server.committed if id > (tail.top or 0)]
        tail.saw(holes, found, above, ended_below=server.ended_below, last=server.last, now=now)
        if bind:
            tail.bind(server.bound(), now)
        return [*found, *above]

    assert sweep(0.0) == [2]
    for now in (0.1, 0.2, 0.9):
        assert sweep(now) == []
    server.write(first)
    for now in (1.0, 1.1, 1.2, 60.0):
        assert sweep(now) == []
    server.end(first, commits=True)
    assert sweep(60.1) == [1]


def test_a_hole_stays_while_a_transaction_from_before_its_bound_is_open() -> None:
    tail = IdTail()
    tail.start([10, 12], 0.0, last=12, complete=False)
    tail.bind(500, 1.5)
    for now in (2.0, 60.0, 600.0):
        asked = tail.question(now, everything=True)
        tail.saw(asked, [], [], ended_below=499, last=12, now=now)
        assert len(tail.holes) == 1


def test_what_is_left_of_a_hole_is_asked_for_again() -> None:
    tail = IdTail()
    tail.start([10, 20], 0.0, last=20, complete=False)
    tail.saw(tail.question(0.0, everything=True), [13, 19], [], ended_below=1, last=20, now=0.1)
    assert [(hole.low, hole.high) for hole in tail.holes] == [(11, 12), (14, 18)]


def test_too_many_holes_cost_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_tail, "MAX_HOLES", 3)
    tail = IdTail()
    tail.start([0], 0.0, last=0, complete=False)
    for n in range(1, 6):
        tail.saw([], [], [n * 2], ended_below=1, last=100, now=float(n))
    assert [hole.low for hole in tail.holes] == [5, 7, 9]


def test_a_sequence_that_was_set_back_takes_the_tail_with_it() -> None:
    tail = IdTail()
    tail.start([10, 20, 30], 0.0, last=30, complete=False)
    tail.saw([], [], [], ended_below=1, last=15, now=0.1)
    assert tail.top == 15
    assert tail.holes == []


def test_a_hole_that_the_newest_messages_reach_into_is_kept_at_a_new_start() -> None:
    tail = IdTail()
    tail.start([], 0.0, last=0, complete=True)
    tail.start([], 1.0, last=2, complete=True)
    assert [(hole.low, hole.high) for hole in tail.holes] == [(1, 2)]
    tail.start([2], 2.0, last=2, complete=True)
    assert [(hole.low, hole.high) for hole in tail.holes] == [(1, 1)]
