"""Sums the reports of all workers for the caps, by the same rules as ``pgbus._sum_caps`` in SQL. Nothing here yields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .fleet_counts import Report

COUNTED = 12.0
"""Seconds for which a report counts."""

FRESH = 6.0
"""Seconds for which connections may end because of a report; a worker that lives reports at least every 5.

The clients of a worker that was killed come back elsewhere while its report still counts, and must not be ended because of
themselves.
"""

MOST = 1000
"""The most keys in a sum, and the most parts of keys that are above their caps."""


class Reported(NamedTuple):
    """A report of a worker; times in Unix seconds. ``grown_at`` is when one of its counts last grew."""

    worker: str
    seen_at: float
    grown_at: float
    report: Report


class CapSum(NamedTuple):
    """The connections on all workers, of the keys that have half of their cap or more.

    ``kept`` says how many of them a worker may keep, by worker and key, if a key is above its cap and the worker has more.
    """

    totals: Mapping[int, int]
    kept: Mapping[str, Mapping[int, int]]


def sum_reports(reports: Iterable[Reported], now: float) -> CapSum:
    """Sum the reports that count at the time ``now``. There is at most one of each worker.

    Above a cap, the workers keep their connections in the order in which they last grew.
    """
    recent: list[Reported] = []
    totals: dict[int, int] = {}
    caps: dict[int, int] = {}
    for each in reports:
        if each.seen_at <= now - COUNTED:
            continue
        recent.append(each)
        for key, count, cap in zip(each.report.keys, each.report.counts, each.report.caps, strict=True):
            totals[key] = totals.get(key, 0) + count
            caps[key] = min(caps.get(key, cap), cap)  # they differ during a change of the setting
    near = [key for key, total in totals.items() if total * 2 >= caps[key]]
    near.sort(key=lambda key: (-totals[key] / caps[key], key))
    del near[MOST:]
    above = {key: caps[key] for key in near if totals[key] > caps[key]}
    return CapSum({key: totals[key] for key in sorted(near)}, _parts(recent, above, now))


def _parts(reports: Iterable[Reported], above: Mapping[int, int], now: float) -> dict[str, dict[int, int]]:
    """Return how many connections each worker may keep of the keys in ``above``, which has their caps."""
    shares: dict[int, list[tuple[float, str, int]]] = {key: [] for key in above}
    for each in reports:
        if each.seen_at > now - FRESH:
            for key, count in zip(each.report.keys, each.report.counts, strict=True):
                if key in shares:
                    shares[key].append((each.grown_at, each.worker, count))
    excess: list[tuple[int, str, int]] = []
    for key, several in shares.items():
        left = above[key]
        for _, worker, count in sorted(several):
            if count > left:
                excess.append((key, worker, left))
            left = max(0, left - count)
    kept: dict[str, dict[int, int]] = {}
    for key, worker, part in sorted(excess)[:MOST]:
        kept.setdefault(worker, {})[key] = part
    return kept
