"""The judge of benchmarks/peers finds each kind of error in what clients received."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.peers.judge import Commit, Received, Verdict, delays, judge

pytestmark = pytest.mark.fast

COMMITS = {f"s0/a/{n}": Commit("s0", float(n), n + 0.5) for n in range(1, 5)} | {"s1/a/1": Commit("s1", 1.0, 1.5)}
"""Four messages of one stream, each done before the next begins, and one of another stream."""


def verdict(*numbers: int, page: tuple[int, ...] = (), told: bool = False) -> Verdict:
    """Judge a client that received these messages of its stream."""
    keys = [f"s0/a/{number}" for number in numbers]
    shown = frozenset(f"s0/a/{number}" for number in page)
    return judge(COMMITS, [Received("s0", keys, [9.0] * len(keys), shown, told)])


def test_everything_once_and_in_order_is_right() -> None:
    assert verdict(1, 2, 3, 4) == Verdict(pairs=4, right=4)
    assert verdict(1, 2, 3, 4).percent == 100


def test_a_message_that_did_not_come_is_lost() -> None:
    assert verdict(1, 2, 4) == Verdict(pairs=4, right=3, lost=1)


def test_the_losses_of_a_client_that_was_told_are_counted() -> None:
    assert verdict(1, 2, told=True) == Verdict(pairs=4, right=2, lost=2, told=2)


def test_a_message_that_came_twice_is_repeated_but_not_out_of_order() -> None:
    assert verdict(1, 2, 3, 2, 4) == Verdict(pairs=4, right=3, repeated=1)


def test_a_message_that_came_after_a_later_one_is_out_of_order() -> None:
    assert verdict(1, 3, 2, 4) == Verdict(pairs=4, right=3, disordered=1)


def test_messages_that_were_committed_at_the_same_time_may_come_in_any_order() -> None:
    commits = {"s0/a/1": Commit("s0", 1.0, 3.0), "s0/b/1": Commit("s0", 2.0, 4.0)}
    for keys in (["s0/a/1", "s0/b/1"], ["s0/b/1", "s0/a/1"]):
        assert judge(commits, [Received("s0", keys)]) == Verdict(pairs=2, right=2)


def test_what_the_page_showed_must_not_come() -> None:
    assert verdict(3, 4, page=(1, 2)) == Verdict(pairs=2, right=2)
    assert verdict(2, 3, 4, page=(1, 2)) == Verdict(pairs=3, right=2, repeated=1)


def test_what_was_committed_after_the_page_must_come() -> None:
    assert verdict(4, page=(1, 2)) == Verdict(pairs=2, right=1, lost=1)


def test_what_was_never_committed_is_counted_and_so_is_what_belongs_to_another_stream() -> None:
    assert verdict(1, 2, 3, 4, 5) == Verdict(pairs=4, right=4, unknown=1)
    wrong = Received("s0", ["s0/a/1", "s0/a/2", "s0/a/3", "s0/a/4", "s1/a/1"])
    assert judge(COMMITS, [wrong]) == Verdict(pairs=4, right=4, unknown=1)


def test_clients_are_added_up() -> None:
    all_right, nothing = Received("s1", ["s1/a/1"]), Received("s1")
    both = judge(COMMITS, [all_right, nothing])
    assert both == Verdict(pairs=2, right=1, lost=1)
    assert both.percent == 50


def test_delays_count_from_the_commit_to_the_first_receipt() -> None:
    client = Received("s0", ["s0/a/2", "s0/a/1", "s0/a/2", "s0/a/9"], [2.25, 3.0, 8.0, 9.0])
    assert delays(COMMITS, [client]) == [0.25, 2.0]
