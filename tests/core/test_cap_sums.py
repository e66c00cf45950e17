"""The sum of the reports of all workers. That SQL makes the same one is tested in tests/sql."""

from __future__ import annotations

from pgbus_gevent.core.cap_sums import MOST, Reported, sum_reports
from pgbus_gevent.core.fleet_counts import Report


def reported(worker: str, cap: int, counts: dict[int, int], *, age: float = 0.0, grown_at: float = 0.0) -> Reported:
    """Return a report that is ``age`` seconds old at the time 100."""
    return Reported(worker, 100.0 - age, grown_at, Report([*counts], [*counts.values()], [cap] * len(counts)))


def test_keys_with_half_of_their_cap_or_more_are_summed() -> None:
    found = sum_reports([reported("a", 10, {1: 3, 2: 1, -7: 9}), reported("b", 10, {1: 2, 2: 3})], 100.0)
    assert found == ({1: 5, -7: 9}, {})


def test_above_a_cap_all_parts_together_are_the_cap() -> None:
    workers = [reported(worker, 10, {1: 6, 2: 3}, grown_at=n) for n, worker in enumerate("cab")]
    assert sum_reports(workers, 100.0) == ({1: 18, 2: 9}, {"a": {1: 4}, "b": {1: 0}})


def test_the_smaller_of_different_caps_counts() -> None:
    assert sum_reports([reported("a", 10, {1: 4}), reported("b", 6, {1: 4})], 100.0) == ({1: 8}, {"b": {1: 2}})


def test_old_reports_count_for_refusals_first_and_then_not_at_all() -> None:
    def found(age: float) -> object:
        return sum_reports([reported("a", 4, {1: 3}, age=age), reported("b", 4, {1: 2}, grown_at=1)], 100.0)

    assert found(5.9) == ({1: 5}, {"b": {1: 1}})
    assert found(6.0) == found(11.9) == ({1: 5}, {})
    assert found(12.0) == ({1: 2}, {})


def test_a_sum_is_bounded_and_has_the_keys_that_are_nearest_to_their_caps() -> None:
    counts = {key: 2 if key % 2 else 1 for key in range(2 * MOST + 10)}
    found = sum_reports([reported("a", 2, counts)], 100.0)
    assert set(found.totals) == {key for key in counts if key % 2 and key < 2 * MOST}
    both = sum_reports([reported(worker, 2, counts) for worker in "abc"], 100.0)
    assert len(both.totals) == MOST == sum(map(len, both.kept.values()))
