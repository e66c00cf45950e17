"""The type of a scenario, and the scenarios that every server can run: idle, fanout, paced."""

from __future__ import annotations

from collections.abc import Callable
from time import sleep
from typing import NamedTuple

from .lab import Run
from .load import percentiles

Metrics = dict[str, float]
Rows = dict[str, Metrics]
"""The metrics of one run, by the variant of each row; "" if there is only one row."""

STREAM = "bench:one"


class Scenario(NamedTuple):
    """``peers`` says whether other servers can run it too. ``columns`` are the metrics of a row, in order.

    If ``usual`` is False, it runs only if it is named.
    """

    name: str
    about: str
    run: Callable[[Run], Rows]
    columns: tuple[str, ...]
    peers: bool = False
    usual: bool = True


def idle(run: Run) -> Rows:
    count, seconds = run.clients(10_000), run.seconds(20.0)
    server = run.serve()
    run.connect(server, "first", 10, server.requests([STREAM]))  # so that one-time allocations are not counted
    sleep(0.5)
    before, start = server.memory(), run.cpu(server)
    opened_in = run.connect(server, "all", count, server.requests([STREAM]))
    opening = run.cpu(server) - start
    sleep(min(1.0, seconds))
    memory = server.memory()
    start = run.cpu(server)
    run.receive(None, seconds)
    got = run.received(seconds)
    used = run.cpu(server) - start
    return {
        "": {
            "clients": count,
            "open_s": opened_in,
            "open_cpu_s": opening.server,
            "kb_per_client": (memory - before) / 1024 / count,
            "cpu_percent": used.server / got["seconds"] * 100,
            "load_cpu_percent": got["cpu"] / got["seconds"] * 100,
        }
    }


def fanout(run: Run) -> Rows:
    count, messages = run.clients(1000), run.messages(200)
    server = run.serve()
    run.connect(server, "all", count, server.requests([STREAM]))
    run.warm_up(server, "all", [STREAM], count)
    start = run.cpu(server)
    run.receive({"all": count * messages}, 60.0, timed=False)
    published = run.publish(server.job([STREAM], messages))
    got = run.received(60.0)
    used = run.cpu(server) - start
    group = got["groups"]["all"]
    seconds = max(1e-6, (group["last"] - published["began"]) / 1e6)
    return {
        "": {
            "clients": count,
            "deliveries": group["frames"],
            "lost": count * messages - group["frames"],
            "per_second": group["frames"] / seconds,
            **used.per_million(group["frames"]),
            "load_cpu_per_million": got["cpu"] / max(1, group["frames"]) * 1e6,
        }
    }


def paced(run: Run) -> Rows:
    count = run.clients(1000)
    rate = 20.0
    messages = max(1, round(rate * run.seconds(10.0)))
    server = run.serve()
    run.connect(server, "all", count, server.requests([STREAM]))
    run.warm_up(server, "all", [STREAM], count)
    start = run.cpu(server)
    limit = messages / rate + 30.0
    run.receive({"all": count * messages}, limit, ages=True)
    published = run.publish(server.job([STREAM], messages, rate=rate, commit=True), offsets=True)
    got = run.received(limit)
    used = run.cpu(server) - start
    group = got["groups"]["all"]
    ages = {stamp: [age - published["offsets"][stamp] for age in found] for stamp, found in group["ages"].items()}
    return {
        "": {
            "clients": count,
            "deliveries": group["frames"],
            "lost": count * messages - group["frames"],
            "publish_p50": published["p50"],
            "first_p50": percentiles([found[0] for found in ages.values()]).get("p50", 0.0),
            **percentiles([age for found in ages.values() for age in found]),
            **used.per_million(group["frames"]),
            "load_cpu_per_million": got["cpu"] / max(1, group["frames"]) * 1e6,
        }
    }


LATENCIES = ("p50", "p90", "p99", "max")

IDLE = Scenario(
    "idle",
    "N connections without messages: the server's memory for each, the time to open them, CPU with heartbeats",
    idle,
    ("clients", "open_s", "open_cpu_s", "kb_per_client", "cpu_percent", "load_cpu_percent"),
    peers=True,
)
FANOUT = Scenario(
    "fanout",
    "a burst of messages on one stream with N clients",
    fanout,
    ("clients", "deliveries", "lost", "per_second", "cpu_per_million", "cpu_all_per_million", "load_cpu_per_million"),
    peers=True,
)
PACED = Scenario(
    "paced",
    "20 messages a second on one stream with N clients: from the COMMIT, or the publisher's call without one, to the receipt",
    paced,
    (
        *("clients", "deliveries", "lost", "publish_p50", "first_p50", *LATENCIES),
        *("cpu_per_million", "cpu_all_per_million", "load_cpu_per_million"),
    ),
    peers=True,
)
