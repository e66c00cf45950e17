"""The scenario about audiences: one stream, each of whose messages is for one connection only."""

from __future__ import annotations

from .deliveries import spread
from .lab import Run
from .scenarios import LATENCIES, Metrics, Rows, Scenario

_STREAM = "bench:audiences"
_RATE = 500.0
_TO_A_LABEL = f"select pgbus.broadcast('{_STREAM}', %(data)s, visible_to => %(stream)s)"
"""Publishes to a label, in the place of a stream."""


def audiences(run: Run) -> Rows:
    return {way: _audiences(run, way) for way in ("held labels", "filters")}


def _audiences(run: Run, way: str) -> Metrics:
    count, seconds = run.clients(10_000), run.seconds(5.0)
    labels = [f"user:{n}" for n in range(count)]
    server = run.serve(filters=count if way == "filters" else 0)
    server.options["statement"] = _TO_A_LABEL
    header = "X-Context" if way == "filters" else "X-Label"
    requests = server.requests([_STREAM], headers=[f"{header}: {label}\r\n" for label in labels])
    run.connect(server, "all", count, requests, by=way)
    run.warm_up(server, "all", labels[:10], min(count, 10), rounds=1, by=way)
    jobs = spread(server, labels, _RATE, seconds)
    messages = sum(job["messages"] for job in jobs)
    start = run.cpu(server)
    run.receive({"all": messages}, seconds + 60.0, by=way)
    published = run.publish(*jobs)
    found = run.received(seconds + 60.0, by=way)["groups"]["all"]
    used = run.cpu(server) - start
    run.program("load", way).close()  # its connections would count against the limit of open files
    return {
        "clients": count,
        "deliveries": found["frames"],
        "lost": messages - found["frames"],
        "publish_p50": published["p50"],
        **{name: found[name] for name in LATENCIES},
        **used.per_million(found["frames"]),
    }


AUDIENCES = Scenario(
    "audiences",
    "one stream with N clients, and 500 messages a second, each for one of them",
    audiences,
    ("clients", "deliveries", "lost", "publish_p50", *LATENCIES, "cpu_per_million", "cpu_all_per_million"),
)
