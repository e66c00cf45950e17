"""The position of the tails: the highest id that was seen, and the holes below it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pgbus_gevent.core.tail import HOLE_SECONDS, MAX_HOLES, MAX_HOLES_BETWEEN, Tail


def tail(*ids: int, at: float = 0.0) -> Tail:
    made = Tail()
    made.move(10)
    made.saw(ids, at)
    return made


def test_it_knows_nothing_at_first() -> None:
    assert Tail().top is None


def test_ids_that_were_passed_over_are_holes() -> None:
    made = tail(11, 13, 16)
    assert (made.top, made.holes(0.0)) == (16, [12, 14, 15])


def test_an_id_that_was_seen_later_is_no_hole() -> None:
    made = tail(11, 13, 16)
    made.saw([12, 15], 0.1)
    assert (made.top, made.holes(0.1)) == (16, [14])


def test_a_hole_is_given_up_in_time() -> None:
    made = tail(12)
    made.saw([14], 1.0)
    assert made.holes(HOLE_SECONDS) == [11, 13]
    assert made.holes(HOLE_SECONDS + 0.5) == [13]


def test_a_wide_gap_is_not_watched() -> None:
    assert tail(10 + MAX_HOLES_BETWEEN).holes(0.0) == list(range(11, 10 + MAX_HOLES_BETWEEN))
    assert tail(11 + MAX_HOLES_BETWEEN).holes(0.0) == []


def test_the_number_of_holes_is_bounded() -> None:
    made = tail(*range(12, 12 + 4 * MAX_HOLES, 2))
    holes = made.holes(0.0)
    assert len(holes) == MAX_HOLES
    assert made.top is not None and holes[-1] == made.top - 1


def test_a_probe_moves_it_on_but_never_back() -> None:
    made = tail(15)
    made.move(12)
    assert made.top == 15
    made.move(1000)
    assert (made.top, made.holes(0.0)) == (1000, [11, 12, 13, 14])


def test_a_jump_of_the_ids_is_no_range_of_holes() -> None:
    """After a failover, ids go on from the clock."""
    made = tail(12, 1_800_000_000_000_000, 1_800_000_000_000_002)
    assert made.holes(0.0) == [11, 1_800_000_000_000_001]
    assert made.top == 1_800_000_000_000_002


def test_it_moves_back_when_the_newest_messages_are_gone() -> None:
    made = tail(11, 13, 16)
    made.back(14)
    assert (made.top, made.holes(0.0)) == (14, [12, 14])
    made.saw([15], 0.0)
    assert made.top == 15


@given(st.lists(st.integers(11, 60), unique=True))
def test_in_any_order_of_commits_every_id_is_asked_for_until_it_was_seen(ids: list[int]) -> None:
    made = Tail()
    made.move(10)
    committed: set[int] = set()
    seen: set[int] = set()
    for id in ids:
        committed.add(id)
        asked = {other for other in committed if other > (made.top or 0)} | committed & set(made.holes(0.0))
        made.saw(sorted(asked), 0.0)
        seen |= asked
    assert seen == set(ids)
