"""An item of work belongs to one greenlet at a time, and is not lost."""

from __future__ import annotations

import pytest
from gevent.event import Event

from pgbus_gevent.core.work import SessionFlag, Work


@pytest.fixture
def flag() -> Event:
    return Event()


@pytest.fixture
def work(flag: Event) -> Work[str]:
    work: Work[str] = Work(flag)
    for item in "abc":
        work.add(item)
    flag.clear()
    return work


def test_items_are_taken_in_the_order_in_which_they_were_added(work: Work[str]) -> None:
    assert work.take(2) == ["a", "b"]
    assert work.take() == ["c"]
    assert work.take() == []


def test_an_item_that_is_added_sets_the_flag(work: Work[str], flag: Event) -> None:
    work.add("a")
    assert flag.is_set()


def test_an_item_that_is_added_while_a_greenlet_has_it_can_be_taken_when_that_greenlet_is_done(
    work: Work[str], flag: Event
) -> None:
    work.take()
    work.add("b")
    flag.clear()
    assert work.take() == work.take(1) == []
    work.done("a")
    assert not flag.is_set()
    work.done("b")
    assert flag.is_set()
    assert work.take() == ["b"]


def test_the_last_item_that_is_done_sets_the_flag_if_others_wait(work: Work[str], flag: Event) -> None:
    assert work.take(1) == ["a"]
    work.done("a")
    assert flag.is_set()


def test_items_that_are_given_back_set_the_flag_and_can_be_taken_again(work: Work[str], flag: Event) -> None:
    work.take()
    work.give_back(["b", "another"])
    assert flag.is_set()
    assert work.take() == ["b"]
    flag.clear()
    work.give_back()
    assert flag.is_set()
    assert sorted(work.take()) == ["a", "b", "c"]


def test_a_discarded_item_is_neither_taken_nor_waiting(work: Work[str]) -> None:
    work.take(1)
    work.add("a")
    work.discard("a")
    work.discard("b")
    assert list(work) == ["c"]
    work.done("a")
    work.give_back(["a"])
    assert list(work) == ["c"]


def test_an_item_that_waits_while_a_greenlet_has_it_counts_once(work: Work[str]) -> None:
    work.take(1)
    work.add("a")
    assert len(work) == 3
    assert list(work) == ["a", "b", "c"]
    assert work.taken == 1
    assert "a" in work
    assert "d" not in work


def test_work_is_there_while_a_greenlet_has_the_last_item(work: Work[str]) -> None:
    work.take()
    assert work
    for item in "abc":
        work.done(item)
    assert not work


def test_a_block_that_raises_gives_its_items_back(work: Work[str]) -> None:
    with pytest.raises(KeyError), work.taking(2) as items:
        assert items == ["a", "b"]
        raise KeyError
    assert work.taken == 0
    assert sorted(work) == ["a", "b", "c"]


def test_the_items_of_a_block_that_ends_are_done(work: Work[str]) -> None:
    with work.taking(2):
        work.add("b")
    assert list(work) == ["c", "b"]


class Sleeper:
    """Counts its interrupts."""

    interrupts = 0

    def interrupt(self) -> None:
        self.interrupts += 1


def test_an_item_that_is_added_interrupts_the_session_once_until_the_flag_is_cleared() -> None:
    flag, sleeper = SessionFlag(), Sleeper()
    work: Work[str] = Work(flag)
    work.add("before there is a session")
    flag.session = sleeper
    flag.clear()
    work.add("a")
    work.add("b")
    assert (flag.is_set(), sleeper.interrupts) == (True, 1)
    flag.clear()
    work.add("c")
    assert (flag.is_set(), sleeper.interrupts) == (True, 2)


def test_all_items_are_given_back_if_the_block_raises(work: Work[str]) -> None:
    with pytest.raises(ValueError), work.taking() as items:
        assert items == ["a", "b", "c"]
        raise ValueError
    assert (work.taken, work.take()) == (0, ["a", "b", "c"])
