"""The judge of benchmarks/hosts finds each kind of error in what clients were sent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.hosts.ledger import Verdict, judge

pytestmark = pytest.mark.fast

TABLE = {"a": [1, 2, 3, 5, 8]}


def verdict(ids: list[int], start: int = 1) -> Verdict:
    client: dict[str, Any] = {
        "stream": "a",
        "start": start,
        "ids": ids,
        "delays": [0.1] * len(ids),
        "told": {},
        "connects": 1,
    }
    return judge(TABLE, [client])


@pytest.mark.parametrize(
    ("ids", "counts"),
    [
        ([2, 3, 5, 8], (0, 0, 0, 0)),
        ([2, 3, 8], (1, 0, 0, 0)),
        ([2, 3, 3, 5, 8], (0, 1, 0, 0)),
        ([2, 5, 3, 8], (0, 0, 1, 0)),
        ([2, 3, 4, 5, 8], (0, 0, 0, 1)),
        ([1, 2, 3, 5, 8], (0, 0, 0, 1)),
        ([], (4, 0, 0, 0)),
    ],
)
def test_the_judge_counts_each_kind_of_error(ids: list[int], counts: tuple[int, int, int, int]) -> None:
    found = verdict(ids)
    assert (found.lost, found.repeated, found.disordered, found.unknown) == counts
    assert (found.due, found.delivered) == (4, len(ids))
