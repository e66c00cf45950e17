"""The judge: what the table has, against what each client was sent."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple


class Verdict(NamedTuple):
    """The counts over all clients."""

    clients: int
    due: int
    delivered: int
    lost: int
    repeated: int
    disordered: int
    unknown: int
    told: dict[str, int]
    connects: int
    delays: dict[str, float]


def judge(table: dict[str, list[int]], clients: list[dict[str, Any]]) -> Verdict:
    """Compare. ``table`` has the ids of each stream in order; ``clients`` is what the program of the clients has written.

    A client is due every message of its stream above the cursor that its first ``pgbus:connected`` named.
    """
    due = delivered = lost = repeated = disordered = unknown = connects = 0
    told: Counter[str] = Counter()
    delays: list[float] = []
    for client in clients:
        start = client["start"] or 0
        expected = {id for id in table.get(client["stream"], ()) if id > start}
        ids = client["ids"]
        seen = set(ids)
        due += len(expected)
        delivered += len(ids)
        lost += len(expected - seen)
        repeated += len(ids) - len(seen)
        unknown += len(seen - expected)
        disordered += sum(after < before for before, after in pairwise(ids))
        connects += client["connects"]
        told.update(client["told"])
        delays.extend(client["delays"])
    delays.sort()
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    quantiles = (
        {name: delays[min(len(delays) - 1, int(share * len(delays)))] for name, share in shares.items()}
        if delays
        else {}
    )
    return Verdict(len(clients), due, delivered, lost, repeated, disordered, unknown, dict(told), connects, quantiles)
