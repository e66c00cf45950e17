"""Caps over all workers, from SQL: the reports of the workers, and their sum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from database_parts import Session, Sessions, raises, together
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgbus_gevent.core.cap_sums import CapSum, Reported, sum_reports
from pgbus_gevent.core.fleet_counts import Report

ALWAYS, NEVER = 0.0, 1e9  # seconds between two sums


@pytest.fixture(autouse=True)
def empty(sql: Session) -> Iterator[None]:
    sql.run("truncate pgbus.cap_reports, pgbus.cap_sums")
    yield


def report(
    sql: Session, worker: str, cap: int, counts: dict[int, int], pause: float = ALWAYS, *, grew: bool = False
) -> tuple[Any, Any]:
    """Return the totals and what this worker may keep."""
    caps = [cap] * len(counts)
    [(known, totals, above, kept)] = sql.run(
        "select known, totals, above, kept"
        " from pgbus._report_caps(%s, %s::bigint[], %s::integer[], %s::integer[], %s, %s)",
        *(worker, list(counts), list(counts.values()), caps, pause, grew),
    )
    return dict(zip(known, totals, strict=True)), dict(zip(above, kept, strict=True))


def test_keys_with_half_of_their_cap_or_more_are_summed(sql: Session) -> None:
    report(sql, "a", 10, {1: 3, 2: 1, -7: 9})
    assert report(sql, "b", 10, {1: 2, 2: 3}) == ({1: 5, -7: 9}, {})
    assert report(sql, "b", 10, {}) == ({-7: 9}, {})


def test_a_sum_is_made_once_in_its_pause(sql: Session) -> None:
    report(sql, "a", 10, {1: 5})
    assert report(sql, "b", 10, {1: 5}, NEVER) == ({1: 5}, {})
    assert report(sql, "c", 10, {}) == ({1: 10}, {})


def test_above_a_cap_each_worker_may_keep_a_part_and_all_parts_are_the_cap(sql: Session) -> None:
    for worker in ("a", "b", "c"):
        report(sql, worker, 10, {1: 6, 2: 3})
    kept = [report(sql, worker, 10, {1: 6, 2: 3})[1] for worker in ("a", "b", "c")]
    assert kept == [{}, {1: 4}, {1: 0}]  # the first keeps its six


def test_above_a_cap_those_that_have_grown_last_end_some(sql: Session) -> None:
    for worker in ("c", "b", "a"):
        report(sql, worker, 4, {1: 2})
    kept = [report(sql, worker, 4, {1: 2})[1] for worker in ("a", "b", "c")]
    assert kept == [{1: 0}, {}, {}]
    assert report(sql, "c", 4, {1: 3}, grew=True)[1] == {1: 0}
    assert [report(sql, worker, 4, {1: 2})[1] for worker in ("a", "b")] == [{}, {}]


def test_the_smaller_of_different_caps_counts(sql: Session) -> None:
    report(sql, "a", 10, {1: 4})
    assert report(sql, "b", 6, {1: 4}) == ({1: 8}, {1: 2})


def test_a_worker_that_has_left_or_is_silent_does_not_count(sql: Session) -> None:
    report(sql, "a", 4, {1: 3})
    report(sql, "b", 4, {1: 2})
    sql.call("_leave_caps", "a")
    assert report(sql, "c", 4, {}) == ({1: 2}, {})
    sql.run("update pgbus.cap_reports set seen_at = seen_at - interval '12 seconds'")
    assert report(sql, "c", 4, {}) == ({}, {})
    sql.run("update pgbus.cap_reports set seen_at = seen_at - interval '5 minutes'")
    report(sql, "c", 4, {})
    assert sql.run("select worker from pgbus.cap_reports") == [("c",)]


def test_nothing_ends_for_the_sake_of_a_worker_that_has_been_silent_for_six_seconds(sql: Session) -> None:
    report(sql, "killed", 4, {1: 3})
    report(sql, "a", 4, {1: 2})
    assert report(sql, "a", 4, {1: 2}) == ({1: 5}, {1: 1})
    sql.run("update pgbus.cap_reports set seen_at = seen_at - interval '6 seconds'")
    assert report(sql, "a", 4, {1: 2}) == ({1: 5}, {}), "it still counts"
    assert report(sql, "b", 4, {1: 3}) == ({1: 8}, {1: 2})


def test_workers_that_report_at_once_do_not_wait_for_one_another(sql: Session, sessions: Sessions) -> None:
    report(sql, "a", 4, {1: 3})
    other = sessions()
    with other.transaction():
        other.run("select from pgbus.cap_sums for update")  # stands for one that is just summing
        sql.run("set lock_timeout = '15s'")
        assert report(sql, "b", 4, {1: 3}) == ({1: 3}, {})  # the last sum
        sql.run("reset lock_timeout")
    workers = [(sessions(), f"w{n}") for n in range(6)]
    together(*[lambda one=one, name=name: [report(one, name, 20, {1: 3}) for _ in range(20)] for one, name in workers])
    sql.call("_leave_caps", "a")
    sql.call("_leave_caps", "b")
    assert report(sql, "c", 20, {})[0] == {1: 18}


@pytest.mark.parametrize(
    "arguments",
    [
        ("", [1], [1], [1]),
        ("a", [1], [1, 2], [1]),
        ("a", [1], [1], []),
        ("a", [1], [0], [1]),
        ("a", [1], [1], [-1]),
        ("a", list(range(1001)), [1] * 1001, [1] * 1001),
        ("a", None, [1], [1]),
    ],
)
def test_a_bad_report_is_refused(sql: Session, arguments: tuple[Any, ...]) -> None:
    with raises("22023", "bad report"):
        sql.run("select pgbus._report_caps(%s, %s::bigint[], %s::integer[], %s::integer[], 2)", *arguments)


def test_a_report_of_a_thousand_keys_fits(sql: Session) -> None:
    counts = dict.fromkeys(range(-500, 500), 2)
    report(sql, "a", 2, counts)
    totals, kept = report(sql, "b", 2, counts)
    assert totals == dict.fromkeys(range(-500, 500), 4)
    assert kept == dict.fromkeys(range(-500, 500), 0)


def test_workers_that_report_only_here_are_found(sql: Session) -> None:
    assert sql.call("_other_cap_reports", []) is False
    report(sql, "a", 4, {1: 3})
    report(sql, "b", 4, {})
    assert sql.call("_other_cap_reports", ["a"]) is sql.call("_other_cap_reports", []) is True
    assert sql.call("_other_cap_reports", ["a", "b", "c"]) is False
    sql.run("update pgbus.cap_reports set seen_at = seen_at - interval '12 seconds'")
    assert sql.call("_other_cap_reports", []) is False


# the same sum in Python, for reports in Redis

keys = st.integers(-3, 3) | st.sampled_from([-(2**63), 2**63 - 1])
numbers = st.tuples(st.integers(1, 9) | st.just(2**31 - 1), st.integers(1, 12) | st.just(2**31 - 1))
ages = st.sampled_from([0, 1, 4, 8, 10, 14, 100])  # seconds, some away from the limits of 6 and 12
reports = st.lists(st.tuples(ages, st.integers(0, 4), st.dictionaries(keys, numbers, max_size=6)), max_size=8)


def both_sums(sql: Session, found: list[tuple[int, int, dict[int, tuple[int, int]]]]) -> tuple[CapSum, CapSum]:
    """Return the sums of the same reports by SQL and in Python. A report is its age, when it grew, and counts with caps by key."""
    sql.run("truncate pgbus.cap_reports, pgbus.cap_sums")
    reported = []
    for n, (age, grown_at, counts) in enumerate(found):
        columns = [list(counts), [count for count, _ in counts.values()], [cap for _, cap in counts.values()]]
        sql.run(
            "insert into pgbus.cap_reports (worker, seen_at, grown_at, keys, counts, caps) values (%s,"
            " clock_timestamp() - make_interval(secs => %s), to_timestamp(%s), %s::bigint[], %s::integer[], %s::integer[])",
            *(f"w{n:02}", age, grown_at, *columns),
        )
        reported.append(Reported(f"w{n:02}", 1000.0 - age, grown_at, Report(*columns)))
    sql.call("_sum_caps")
    [(known, totals, above, holders, parts)] = sql.run("select keys, totals, above, holders, kept from pgbus.cap_sums")
    kept: dict[str, dict[int, int]] = {}
    for key, holder, part in zip(above, holders, parts, strict=True):
        kept.setdefault(holder, {})[key] = part
    return CapSum(dict(zip(known, totals, strict=True)), kept), sum_reports(reported, 1000.5)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(found=reports)
def test_sql_and_python_make_the_same_sum(
    sql: Session, found: list[tuple[int, int, dict[int, tuple[int, int]]]]
) -> None:
    by_sql, by_python = both_sums(sql, found)
    assert by_python == by_sql


def test_sql_and_python_keep_the_same_bounds(sql: Session) -> None:
    several = [(0, n, {key: (1 + key * (n + 1) % 7, 2 + key % 5) for key in range(n, 3000, 3)}) for n in range(3)]
    some = [(0, n, {key: (3 + key % 3, 4) for key in range(700 * n, 700 * n + 1000)}) for n in range(3)]
    for found in several, some:
        by_sql, by_python = both_sums(sql, found)
        assert by_python == by_sql
        assert len(by_python.totals) == 1000 >= sum(map(len, by_python.kept.values())) > 0
