"""Compares the model with the points, which no constant comes from."""

from __future__ import annotations

import json
from typing import Any

from .fleet import Constants, Plan, costs, simulate
from .measure import POINTS

MOST = 0.25
"""The largest error of a point, as a share of what was measured."""


def check() -> bool:
    """Print each point with its prediction. Return whether all errors are small."""
    good = True
    for name, measured, predicted, unit in compared():
        error = predicted / measured - 1 if measured else 0.0
        good = good and abs(error) < MOST
        print(f"{name:34} measured {measured:12.4g}  model {predicted:12.4g} {unit:8} {error:+7.1%}")
    return good


def compared() -> list[tuple[str, float, float, str]]:
    """Return name, measured value, predicted value and unit of each point."""
    constants = Constants()
    points: dict[str, Any] = json.loads(POINTS.read_text(encoding="utf-8"))
    points.pop("machine")
    return [
        (name, float(one["value"]), _predicted(dict(one["plan"]), constants), one["unit"])
        for name, one in points.items()
    ]


def _predicted(about: dict[str, Any], c: Constants) -> float:
    quantity = about["quantity"]
    clients = int(about.get("clients", about.get("workers", 1)))
    if quantity == "memory":
        return c.first_memory + clients * c.connection_memory
    if quantity == "opening":
        return clients * c.open_cpu
    streams = clients if quantity == "many CPU" else about.get("streams", 1)
    plan = Plan(
        connections=clients, workers=about.get("workers", 1), streams=streams, rate=about["rate"] or 1e-9,
        redis=about.get("redis", False), database_cores=2, spread=quantity != "many CPU",
    )  # fmt: skip
    if quantity == "appends":
        # These sessions only LISTEN, each to a stream that nobody publishes to.
        rings = min(plan.rate, 1 / plan.pace)
        return plan.rate * c.append_cpu + rings * plan.workers * c.wake_other_cpu
    found = costs(plan, c)
    if quantity == "p99":
        # The clients' process shares the machine, so a delivery takes longer than the worker's CPU for it.
        return simulate(plan, c, delivery=c.delivery_wall, regular=True).p99 - c.append_cpu - c.message_cpu
    predicted: dict[str, float] = {
        "many CPU": found.worker - clients * c.idle_connection_cpu,
        "worker CPU": found.worker - clients * c.idle_connection_cpu,
        "database CPU": found.database,
        "statements": found.statements,
        # A worker of a fleet has more to do for a message than a single one, but one client only.
        "workers CPU": plan.rate * (c.heard_cpu * plan.workers + c.steward_cpu),
    }
    return predicted[quantity]
