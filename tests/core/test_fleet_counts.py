"""The counts of connections on other workers."""

from __future__ import annotations

from pgbus_gevent.core.fleet_counts import MOST, FleetCounts, Report, Sum


def owners(cap: int, /, **counts: int) -> list[tuple[str, dict[str, int], int]]:
    return [("owner", counts, cap), ("address", {}, 0)]


def key(counts: FleetCounts, owner: str) -> int:
    return counts._key(("owner", owner))


def test_only_counts_that_are_near_their_cap_are_reported() -> None:
    counts = FleetCounts(["secret"])
    report = counts.report(owners(100, few=2, near=3, many=90), workers=8)
    assert sorted(zip(report.counts, report.caps, strict=True)) == [(3, 100), (90, 100)]
    # With a cap below four for each worker, every owner may be above it together with the others.
    assert sorted(counts.report(owners(10, few=1), workers=8).counts) == [1]


def test_a_kind_without_a_cap_is_not_reported() -> None:
    counts = FleetCounts(["secret"])
    assert counts.report([("owner", {"ada": 5}, 0), ("address", {"10.0.0.1": 7}, 8)], workers=1).counts == [7]


def test_a_key_reveals_neither_owner_nor_kind_and_is_the_same_on_all_workers() -> None:
    one, other, stranger = FleetCounts(["old", "secret"]), FleetCounts(["secret"]), FleetCounts(["another"])
    assert key(one, "ada") == key(other, "ada") != key(stranger, "ada")
    assert one._key(("owner", "10.0.0.1")) != one._key(("address", "10.0.0.1"))
    assert -(2**63) <= key(one, "ada") < 2**63


def test_a_report_is_bounded_and_has_those_that_are_nearest_to_their_cap_and_then_the_newest() -> None:
    counts = FleetCounts()
    found = {f"o{n}": 1 for n in range(2 * MOST)} | {"heavy": 2}
    found = {"first": 2, **found}
    report = counts.report([("owner", found, 4)], workers=8)
    kept = {counts._names[each][1] for each in report.keys}
    assert len(report.keys) == MOST
    assert kept == {"first", "heavy", *(f"o{n}" for n in range(MOST + 2, 2 * MOST))}

    assert len(counts.report([("owner", found, 4)], workers=100).keys) == 200
    assert len(counts.report([("owner", found, 4)], workers=1000).keys) == 100

    # An old one that has connections elsewhere goes on being reported, or it would be forgotten.
    counts.learn(report, Sum(1.0, 1.0, {key(counts, "o0"): 3}, {}))
    assert key(counts, "o0") in counts.report([("owner", found, 4)], workers=8).keys


def test_what_other_workers_have_is_the_sum_without_what_it_knew_of_this_one() -> None:
    counts = FleetCounts()
    ada = key(counts, "ada")
    assert counts.elsewhere("owner", "ada") == 0
    report = counts.report(owners(10, ada=2), workers=2)
    assert counts.learn(report, Sum(100.0, 99.0, {ada: 6}, {})) == {}
    assert counts.elsewhere("owner", "ada") == 6  # the sum is older than the report
    assert counts.elsewhere("owner", "max") == counts.elsewhere("address", "ada") == 0
    report = counts.report(owners(10, ada=5), workers=2)
    counts.learn(report, Sum(105.0, 103.0, {ada: 8}, {}))
    assert counts.elsewhere("owner", "ada") == 6  # the sum knew of two here
    counts.learn(report, Sum(110.0, 110.0, {ada: 5}, {}))
    assert counts.elsewhere("owner", "ada") == 0


def test_connections_end_only_if_two_sums_one_after_the_other_were_above_the_cap() -> None:
    counts = FleetCounts()
    ada, bob = key(counts, "ada"), key(counts, "bob")
    report = counts.report(owners(4, ada=4, bob=4), workers=2)
    assert counts.learn(report, Sum(1.0, 1.0, {ada: 8}, {ada: 1})) == {}
    assert counts.learn(report, Sum(2.0, 1.0, {ada: 8}, {ada: 1})) == {}  # the same sum again
    assert counts.learn(report, Sum(3.0, 3.0, {ada: 8, bob: 8}, {ada: 2, bob: 0})) == {("owner", "ada"): 2}
    assert counts.learn(report, Sum(4.0, 4.0, {}, {})) == {}
    assert counts.learn(report, Sum(5.0, 5.0, {ada: 8}, {ada: 1, bob: 1})) == {}


def test_a_change_near_the_cap_is_reported_until_two_sums_have_it() -> None:
    counts = FleetCounts()
    ada = key(counts, "ada")
    assert counts.settled
    counts.changed(("owner", "ada"), 1, 100, grew=True)
    assert counts.settled  # far from the cap
    counts.changed(("owner", "ada"), 1, 4, grew=True)
    assert not counts.settled
    report = counts.report(owners(4, ada=1), workers=4)
    assert report.grew
    counts.learn(report, Sum(10.0, 9.9, {ada: 1}, {}))  # the sum is older than the report
    assert not counts.settled
    report = counts.report(owners(4, ada=1), workers=4)
    assert not report.grew
    counts.learn(report, Sum(10.1, 10.1, {ada: 1}, {}))
    assert not counts.settled
    counts.learn(report, Sum(10.2, 10.1, {ada: 1}, {}))  # the same sum again
    assert not counts.settled
    counts.learn(report, Sum(10.3, 10.3, {ada: 1}, {}))
    assert counts.settled


def test_a_change_is_settled_although_the_clock_was_set_back() -> None:
    counts = FleetCounts()
    counts.changed(("owner", "ada"), 1, 4, grew=True)
    report = counts.report(owners(4, ada=1), workers=4)
    counts.learn(report, Sum(5000.0, 5000.0, {}, {}))
    for at in (10.0, 11.0):
        counts.learn(report, Sum(at, at, {}, {}))
    assert counts.settled


def test_a_change_during_a_report_is_in_the_next_one() -> None:
    counts = FleetCounts()
    ada = key(counts, "ada")
    counts.changed(("owner", "ada"), 1, 4, grew=True)
    report = counts.report(owners(4, ada=1), workers=4)
    counts.changed(("owner", "ada"), 2, 4, grew=True)
    for at in (10.0, 10.1, 10.2):
        assert not counts.settled
        counts.learn(report, Sum(at, at, {ada: 1}, {}))
        report = counts.report(owners(4, ada=2), workers=4)
        assert report.grew is (at == 10.0)
    assert counts.settled


def test_a_worker_with_connections_above_a_cap_goes_on_reporting() -> None:
    counts = FleetCounts()
    ada, bob = key(counts, "ada"), key(counts, "bob")
    report = counts.report(owners(4, ada=4), workers=2)
    counts.learn(report, Sum(1.0, 1.0, {ada: 8}, {ada: 1}))
    assert not counts.settled
    counts.learn(report, Sum(2.0, 2.0, {ada: 4}, {bob: 1}))  # not in its report
    assert counts.settled


def test_a_refusal_for_the_sake_of_the_others_asks_them_once() -> None:
    counts = FleetCounts()
    counts.ask()
    assert not counts.settled
    counts.learn(counts.report(owners(4), workers=2), Sum(1.0, 1.0, {}, {}))
    assert counts.settled


def test_what_was_known_of_the_others_counts_while_a_sum_may_not_have_all_of_them() -> None:
    counts = FleetCounts()
    ada, bob, cyd = (key(counts, name) for name in ("ada", "bob", "cyd"))
    report = counts.report(owners(10, ada=2), workers=2)
    counts.learn(report, Sum(1.0, 1.0, {ada: 7, bob: 6}, {}))

    def learn(at: float, totals: dict[int, int], *, partial: bool) -> list[int]:
        counts.learn(report, Sum(at, at, totals, {}, partial))
        return [counts.elsewhere("owner", name) for name in ("ada", "bob", "cyd")]

    assert learn(2.0, {}, partial=True) == [5, 6, 0]
    assert learn(3.0, {ada: 9, bob: 5, cyd: 5}, partial=True) == [7, 6, 5]
    assert learn(4.0, {ada: 6}, partial=True) == [5, 6, 0]  # as before, and not as they were meanwhile
    assert learn(5.0, {ada: 3}, partial=False) == [1, 0, 0]
    assert learn(6.0, {}, partial=True) == [1, 0, 0]
    counts.forget()
    assert learn(7.0, {}, partial=True) == [0, 0, 0]


def test_counts_that_are_not_known_any_more_are_forgotten() -> None:
    counts = FleetCounts()
    ada = key(counts, "ada")
    counts.learn(Report([], [], []), Sum(1.0, 1.0, {ada: 4}, {}))
    assert counts.elsewhere("owner", "ada") == 4
    counts.forget()
    assert counts.elsewhere("owner", "ada") == 0
