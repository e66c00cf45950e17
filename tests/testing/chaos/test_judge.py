"""The judge finds what is planted in a history, and nothing in one that is right."""

from __future__ import annotations

import pytest

from pgbus_gevent.testing.chaos.journal import Attempt, History
from pgbus_gevent.testing.chaos.judge import Row, Truth, judge_client, judge_publishing

NUMBERS = range(1, 11)


def truth() -> Truth:
    """Ten messages with the ids 10, 20, … 100."""
    return Truth(present={n * 10: Row(n * 10, n) for n in NUMBERS})


def history(*numbers: int, since: int = 0, user: int = 1) -> History:
    """A client that was connected once, and was sent these messages."""
    one = History(0, user, "chaos:plain-0")
    one.mark(0.5, "connected", cursor=since, id="c1")
    for n in numbers:
        one.message(n * 10, n, float(n), n + 0.1)
    return one


def kinds(one: History, what: Truth) -> list[str]:
    return [finding.kind for finding in judge_client(one, what)]


def test_a_right_history_has_no_findings() -> None:
    assert kinds(history(*NUMBERS), truth()) == []


def test_a_client_is_due_only_what_comes_after_its_cursor() -> None:
    assert kinds(history(5, 6, 7, 8, 9, 10, since=40), truth()) == []


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([1, 2, 3, 5, 6, 7, 8, 9, 10], ["lost"]),
        ([1, 2, 3, 4, 5, 6, 7, 8], ["lost", "lost"]),
        ([1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10], ["repeated"]),
        ([1, 2, 4, 3, 5, 6, 7, 8, 9, 10], ["out of order"]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], ["forbidden"]),
        ([], ["lost"] * 10),
    ],
)
def test_planted_faults_are_found(numbers: list[int], expected: list[str]) -> None:
    assert kinds(history(*numbers), truth()) == expected


def test_a_message_for_somebody_else_is_forbidden() -> None:
    what = truth()
    what.present[50] = Row(50, 5, visible_to="user:2")
    assert kinds(history(*NUMBERS, user=1), what) == ["forbidden"]
    assert kinds(history(*NUMBERS, user=2), what) == []
    assert kinds(history(*(n for n in NUMBERS if n != 5), user=1), what) == []
    assert kinds(history(*(n for n in NUMBERS if n != 5), user=2), what) == ["lost"]


def test_a_message_that_excludes_the_connection_is_forbidden_there_alone() -> None:
    what = truth()
    what.present[50] = Row(50, 5, exclude="c1")
    assert kinds(history(*NUMBERS), what) == ["forbidden"]
    assert kinds(history(*(n for n in NUMBERS if n != 5)), what) == []


def test_the_data_must_be_that_of_the_id() -> None:
    one = history(1, 2, 3, 4, 5, 6, 7, 8, 9)
    one.message(100, 7, 10.0, 10.1)
    assert kinds(one, truth()) == ["forbidden", "lost"]


def pruned() -> Truth:
    what = truth()
    for id in (20, 30):
        what.pruned[id] = what.present.pop(id)
    return what


def test_a_gap_excuses_only_what_was_pruned() -> None:
    one = history(1)
    one.mark(2.0, "gap", reason="expired", oldest=40)
    for n in range(4, 11):
        one.message(n * 10, n, float(n), n + 0.1)
    assert kinds(one, pruned()) == []
    assert kinds(one, truth()) == ["unfounded gap", "lost", "lost"]


def test_without_a_gap_pruned_messages_are_lost() -> None:
    assert kinds(history(1, 4, 5, 6, 7, 8, 9, 10), pruned()) == ["lost", "lost"]


def failed_over() -> Truth:
    """The messages 6 to 8 were on the former primary alone, which ended at 8.0."""
    what = truth()
    what.losses = [8.0]
    for id in (60, 70, 80):
        what.taken[id] = what.present.pop(id)
    return what


def replayed() -> History:
    """A client that was sent lost messages, was told so, and was sent everything again."""
    return replayed_without()


def replayed_without(*unseen: int) -> History:
    """The same, but these messages did not come at first."""
    one = history(*(n for n in range(1, 9) if n not in unseen))
    replay(one, 8.5, 1, 2, 3, 4, 5, 9, 10)
    return one


def replay(one: History, time: float, *numbers: int) -> None:
    """Tell a client of a loss, and send it these messages."""
    one.mark(time, "gap", reason="ahead", oldest=10)
    for n in numbers:
        one.message(n * 10, n, float(n), time + 0.5)


def test_after_a_real_loss_a_client_that_was_told_gets_everything_again() -> None:
    assert kinds(replayed(), failed_over()) == []


def test_after_a_real_loss_pruned_messages_need_not_come_again() -> None:
    what = failed_over()
    what.pruned[10] = what.present.pop(10)
    one = history(1, 2, 3, 4, 5, 6)
    one.mark(8.5, "gap", reason="ahead", oldest=20)
    for n in (2, 3, 4, 5, 9, 10):
        one.message(n * 10, n, float(n), 9.0)
    assert kinds(one, what) == []


def test_messages_that_were_pruned_between_the_gap_and_the_read_need_not_come() -> None:
    what = failed_over()
    for n in (1, 2, 3):
        what.pruned[n * 10] = what.present.pop(n * 10)
    one = history(1, 2, 3, 4, 5, 6)
    replay(one, 8.5, 4, 5, 9, 10)
    assert kinds(one, what) == []
    with_a_hole = history(1, 2, 3, 4, 5, 6)
    replay(with_a_hole, 8.5, 2, 4, 5, 9, 10)  # 3 was retained longer than 2
    assert kinds(with_a_hole, what) == ["lost"]
    without_a_retained_one = history(1, 2, 3, 4, 5, 6)
    replay(without_a_retained_one, 8.5, 5, 9, 10)
    assert kinds(without_a_retained_one, what) == ["lost"]


def test_a_gap_without_a_loss_is_unfounded() -> None:
    one = history(1, 2, 3, 4, 5)
    replay(one, 5.5, *NUMBERS)
    assert kinds(one, truth()) == ["unfounded gap"]
    before_the_loss = failed_over()
    before_the_loss.losses = [20.0]
    assert kinds(replayed_without(6, 7, 8), before_the_loss) == ["unfounded gap"]


def test_one_loss_is_told_once_if_no_lost_message_comes_after_that() -> None:
    one = replayed_without(6, 7, 8)
    assert kinds(one, failed_over()) == []
    replay(one, 10.0, 1, 2, 3, 4, 5, 9, 10)
    assert kinds(one, failed_over()) == ["unfounded gap"]


def test_a_client_that_gets_lost_messages_again_is_told_again() -> None:
    """It went to a worker that did not know of the loss yet."""
    one = history(*range(1, 9))
    replay(one, 8.5, 1, 2, 3, 4, 5, 6)
    replay(one, 10.0, 1, 2, 3, 4, 5, 9, 10)
    assert kinds(one, failed_over()) == []


def test_a_loss_that_a_client_was_not_told_of_is_found() -> None:
    assert kinds(history(*NUMBERS), failed_over()) == ["untold loss"]
    nothing_came_after = failed_over()
    for id in (90, 100):
        del nothing_came_after.present[id]
    assert kinds(history(*range(1, 9)), nothing_came_after) == ["untold loss"]


def test_a_client_that_saw_no_lost_message_need_not_be_told() -> None:
    assert kinds(history(1, 2, 3, 4, 5, 9, 10), failed_over()) == []


def published(*attempts: Attempt, ledger: tuple[int, ...] = tuple(NUMBERS)) -> list[str]:
    found = judge_publishing(attempts, dict.fromkeys(ledger, "chaos:plain-0"), {"chaos:plain-0": truth()})
    return [finding.kind for finding in found]


def attempt(message: int, outcome: str, kind: str = "autocommit") -> Attempt:
    return Attempt(message, "chaos:plain-0", kind, 1.0, outcome)


@pytest.mark.parametrize(
    ("outcome", "message", "expected"),
    [
        ("committed", 1, []),
        ("committed", 11, ["lost"]),
        ("rolled back", 1, ["forbidden"]),
        ("rolled back", 11, []),
        ("unknown", 1, []),
        ("unknown", 11, []),
    ],
)
def test_the_table_must_have_what_was_acknowledged(outcome: str, message: int, expected: list[str]) -> None:
    assert published(attempt(message, outcome)) == expected


def test_messages_and_the_ledger_must_agree() -> None:
    assert published(attempt(1, "unknown"), ledger=()) == ["forbidden"]
    assert published(attempt(11, "unknown"), ledger=(11,)) == ["lost"]
    assert published(attempt(1, "unknown", "http"), ledger=()) == []


def test_a_message_that_is_in_the_table_twice_is_found() -> None:
    what = truth()
    what.present[55] = Row(55, 5)
    for kind, expected in (("autocommit", ["repeated"]), ("coalesced", [])):
        # The documentation says that a coalesced message may be published twice after an outage in the middle of a COMMIT.
        found = judge_publishing([attempt(5, "unknown", kind)], {5: "chaos:plain-0"}, {"chaos:plain-0": what})
        assert [finding.kind for finding in found] == expected
