"""Measures the constants of the model, and the points by which it is checked, on this machine.

All processes are those of the benchmark (``pgbus_gevent/bench``): servers, clients and publishers, each its own process. A cost per
unit is the slope between a small and a large run. The points are other sizes, which no constant comes from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg2

from pgbus_gevent.bench import lab, machine
from pgbus_gevent.bench.deliveries import many
from pgbus_gevent.bench.fleet import measured, row_name
from pgbus_gevent.bench.publishing import BROADCAST, _crowd
from pgbus_gevent.bench.scenarios import STREAM, idle, paced
from pgbus_gevent.core import sse

from . import redis_server
from .fleet import askers

HERE = Path(__file__).parent
CONSTANTS, POINTS = HERE / "constants.json", HERE / "points.json"

SMALL, LARGE, BETWEEN = 100, 1000, 500
"""Clients of one stream: the first two give the costs, the third is a point."""

STREAMS = (200, 1000, 600)
"""Streams with one client each: the first two give the costs, the third is a point."""

PUBLISHERS, LISTENERS = 64, 100

FLEETS, FLEET_BETWEEN = (2, 8), 4
"""Workers on one database: the first two give the costs, the third is a point."""

FLEETS_IDLE, WAKES = (8, 40), 100.0
"""Workers that are mostly idle, and the messages a second that wake them without being for them."""

FLEETS_RELAYED = (1, 40)
"""Workers that hear Redis."""

FLEET_LARGE = 100
"""Workers of a fleet that gives only points."""

RATE = 20.0
SECONDS = 12.0


class Found:
    """What is measured, with units and sources, in the order in which it was."""

    def __init__(self) -> None:
        self.constants: dict[str, dict[str, Any]] = {}
        self.points: dict[str, dict[str, Any]] = {}

    def constant(self, name: str, value: float, unit: str, source: str) -> None:
        self.constants[name] = {"value": float(f"{value:.4g}"), "unit": unit, "source": source}
        print(f"  {name} = {value:.4g} {unit}", flush=True)

    def value(self, name: str) -> float:
        """Return a constant of this measurement, or else of an earlier one."""
        known = self.constants if name in self.constants else json.loads(CONSTANTS.read_text(encoding="utf-8"))
        return float(known[name]["value"])

    def point(self, name: str, value: float, unit: str, **plan: Any) -> None:
        self.points[name] = {"value": float(f"{value:.4g}"), "unit": unit, "plan": plan}
        print(f"  point {name}: {value:.4g} {unit}", flush=True)


PARTS = ("connections", "deliveries", "streams", "appends", "fleets", "idle", "relayed", "large", "bytes", "redis")


def measure(directory: str | None, parts: Sequence[str] = PARTS) -> None:
    """Measure these parts, and put what they find into both files. All of them take about twelve minutes."""
    found = Found()
    with lab.database(None, directory) as (url, postmaster):

        def run(scenario: Callable[[lab.Run], Any], **scale: Any) -> Any:
            with ExitStack() as stack:
                return scenario(lab.Run(url, postmaster, lab.OURS, lab.Scale(**scale), stack))

        measures: dict[str, Callable[[], None]] = {
            "connections": lambda: _connections(found, run),
            "deliveries": lambda: _deliveries(found, run),
            "streams": lambda: _streams(found, run),
            "appends": lambda: _appends(found, run),
            "fleets": lambda: _fleets(found, run, url),
            "idle": lambda: _idle(found, run),
            "relayed": lambda: _relayed(found, run),
            "large": lambda: _large(found, run),
            "bytes": lambda: _bytes(found),
            "redis": lambda: _redis(found),
        }
        for part in parts:
            print(part, flush=True)
            measures[part]()
    date = time.strftime("%Y-%m-%d", time.gmtime())
    about = {**machine.describe(), "date": date, "command": "python -m benchmarks.model measure"}
    for path, values in ((CONSTANTS, found.constants), (POINTS, found.points)):
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**known, "machine": about, **values}, indent=2) + "\n", encoding="utf-8")


def _connections(found: Found, run: Any) -> None:
    few, lots, between = (run(idle, clients=count, seconds=8.0)[""] for count in (1000, 4000, 2500))
    source = "idle, 1,000 and 4,000 clients for 8 s"

    def slope(of: Callable[[dict[str, float]], float]) -> tuple[float, float]:
        each = (of(lots) - of(few)) / (lots["clients"] - few["clients"])
        return each, max(0.0, of(few) - few["clients"] * each)

    def memory(row: dict[str, float]) -> float:
        return row["kb_per_client"] * 1024 * row["clients"]

    each, rest = slope(memory)
    found.constant("connection_memory", each, "bytes", f"{source}: slope")
    found.constant("first_memory", rest, "bytes", f"{source}: the rest, beyond the memory of a worker with ten clients")
    each, rest = slope(lambda row: row["open_cpu_s"])
    found.constant("open_cpu", each, "s", f"{source}: slope of the worker's CPU")
    found.constant(
        "idle_connection_cpu", lots["cpu_percent"] / 100 / 4000, "cores", "idle, 4,000 clients for 8 s: heartbeats"
    )
    found.point("memory of 2,500 clients", memory(between), "bytes", clients=2500, quantity="memory")
    found.point("CPU to open 2,500 clients", between["open_cpu_s"], "s", clients=2500, quantity="opening")


def _deliveries(found: Found, run: Any) -> None:
    small, large, between = (run(paced, clients=count, seconds=SECONDS)[""] for count in (SMALL, LARGE, BETWEEN))
    per_message = {row["clients"]: row["cpu_per_million"] / 1e6 * row["clients"] for row in (small, large, between)}
    delivery = (per_message[LARGE] - per_message[SMALL]) / (LARGE - SMALL)
    source = f"paced, {SMALL} and {LARGE} clients of one stream, {RATE:.0f} messages/s for {SECONDS:.0f} s"
    found.constant("delivery_cpu", delivery, "s", f"{source}: slope of the worker's CPU for each message")
    alone = max(0.0, per_message[SMALL] - SMALL * delivery)
    found.constant("woken_cpu", alone, "s", f"{source}: the rest for each message, with the sweeps after it")
    paced_large = f"paced, {LARGE} clients"
    found.constant("wake_delay", large["first_p50"] / 1000, "s", f"{paced_large}: commit to the first client, p50")
    # Half of the clients are served before the median.
    spread = (large["p50"] - large["first_p50"]) / 1000 / (LARGE / 2)
    found.constant(
        "delivery_wall", spread, "s", f"{paced_large}: first client to the median, for each client; reading included"
    )
    plan = {"clients": BETWEEN, "rate": RATE}
    found.point(
        f"CPU of a worker, {BETWEEN} clients", per_message[BETWEEN] * RATE, "cores", quantity="worker CPU", **plan
    )
    plan = {"clients": LARGE, "rate": RATE}
    found.point(f"delay p99, {LARGE} clients", large["p99"] / 1000, "s", quantity="p99", **plan)


def _streams(found: Found, run: Any) -> None:
    few, lots, some = (run(many, clients=count, seconds=6.0)[""] for count in STREAMS)
    used = {row["clients"]: row["cpu_per_million"] / 1e6 * 2 * row["clients"] for row in (few, lots, some)}
    each = (used[lots["clients"]] - used[few["clients"]]) / 2 / (lots["clients"] - few["clients"])
    streams = f"many, {STREAMS[0]} and {STREAMS[1]} streams with a client each, 2 messages/s on each"
    message = max(0.0, each - found.value("delivery_cpu"))
    found.constant("message_cpu", message, "s", f"{streams}: slope of the worker's CPU, without the delivery")
    rest = max(0.0, used[few["clients"]] - 2 * few["clients"] * each)
    found.constant("busy_cpu", rest, "cores", f"{streams}: the rest, for sweeps and wakes without pause")
    plan = {"clients": STREAMS[2], "rate": 2.0 * STREAMS[2]}
    found.point(f"CPU of a worker, {STREAMS[2]} streams", used[some["clients"]], "cores", quantity="many CPU", **plan)


def _appends(found: Found, run: Any) -> None:
    def crowd(r: lab.Run, listeners: int) -> tuple[float, float]:
        assert r.postmaster is not None
        before = machine.cpu_of_family(r.postmaster)
        row = _crowd(r, BROADCAST, PUBLISHERS, listeners=listeners)
        return machine.cpu_of_family(r.postmaster) - before, row["appends_per_second"]

    used, rate = run(lambda r: crowd(r, 0), seconds=6.0)
    source = f"{PUBLISHERS} publishers on as many streams, as fast as they can, for 6 s"
    found.constant("append_cpu", used / (rate * 6.0), "s", f"{source}: PostgreSQL's CPU for each")
    used, rate = run(lambda r: crowd(r, LISTENERS), seconds=6.0)
    plan = {"workers": LISTENERS, "rate": rate}
    found.point(f"PostgreSQL's CPU, {LISTENERS} sessions LISTEN", used / 6.0, "cores", quantity="appends", **plan)


def _fleets(found: Found, run: Any, url: str) -> None:
    rows = {}
    for count in (*FLEETS, FLEET_BETWEEN):
        kinds = ("all", "none")
        rows[count] = {kind: run(lambda r, count=count, kind=kind: _fleet(r, url, count, kind)) for kind in kinds}
    few, most = FLEETS
    messages = RATE * SECONDS

    def slope(kind: str, name: str) -> float:
        return float(rows[most][kind][name] - rows[few][kind][name]) / (most - few)

    def source(kind: str) -> str:
        return f"{few} and {most} workers, {kind}, {RATE:.0f} messages/s for {SECONDS:.0f} s"

    # Per worker and second without messages; per worker and message with them.
    idle_statements = slope("none", "statements") / SECONDS
    idle_cpu = slope("none", "database_cpu") / SECONDS
    found.constant("idle_statements", idle_statements, "1/s", source("nothing is published") + ": slope")
    shared = source("all follow the stream")
    found.constant(
        "statements_hearing", slope("all", "statements") / messages - idle_statements / RATE, "1/message", shared
    )
    found.constant(
        "wake_cpu", slope("all", "database_cpu") / messages - idle_cpu / RATE, "s", f"{shared}: PostgreSQL, a worker"
    )
    found.constant(
        "heard_cpu", slope("all", "workers_cpu") / messages, "s", f"{shared}: CPU of a worker with one client"
    )
    base = rows[few]["all"]["database_cpu"] - few * slope("all", "database_cpu")
    rest = max(0.0, base / messages - found.value("append_cpu"))
    found.constant("ring_cpu", rest, "s", f"{shared}: the rest of PostgreSQL's CPU for each wake, without append_cpu")
    # The steward's part: what a fleet costs whatever its size.
    steward = rows[few]["all"]["statements"] - few * slope("all", "statements")
    fleet = rows[few]["none"]["statements"] - few * slope("none", "statements")
    found.constant("steward_statements", max(0.0, steward - fleet) / messages, "1/message", f"{shared}: the rest")
    steward = rows[few]["all"]["workers_cpu"] - few * slope("all", "workers_cpu")
    found.constant(
        "steward_cpu", max(0.0, steward) / messages, "s", f"{shared}: the rest of the workers' CPU, for a message"
    )
    found.constant(
        "fleet_statements", rows[few]["none"]["statements"] / SECONDS - few * idle_statements, "1/s", "the rest, idle"
    )
    found.constant("worker_memory", rows[most]["all"]["memory"] / most, "bytes", f"{most} workers with one client each")
    at = rows[FLEET_BETWEEN]
    plan = {"workers": FLEET_BETWEEN, "rate": RATE}
    found.point(
        "PostgreSQL's CPU, 4 workers", at["all"]["database_cpu"] / SECONDS, "cores", quantity="database CPU", **plan
    )
    found.point("statements, 4 workers", at["all"]["statements"] / SECONDS, "1/s", quantity="statements", **plan)
    found.point(
        "statements, 4 workers, idle", at["none"]["statements"] / SECONDS, "1/s",
        quantity="statements", workers=FLEET_BETWEEN, rate=0.0,
    )  # fmt: skip
    found.point("CPU of 4 workers", at["all"]["workers_cpu"] / SECONDS, "cores", quantity="workers CPU", **plan)


def _idle(found: Found, run: Any) -> None:
    few, most = FLEETS_IDLE
    rows = run(lambda r: measured(r, FLEETS_IDLE, ways=("steward",), rates=(0.0, WAKES)))

    def cores(workers: int, rate: float) -> float:
        return float(rows[row_name("steward", workers, rate)]["database_cpu_percent"]) / 100

    idle = (cores(most, 0.0) - cores(few, 0.0)) / (askers(most) - askers(few))
    woken = (cores(most, WAKES) - cores(few, WAKES)) - (cores(most, 0.0) - cores(few, 0.0))
    source = f"{few} and {most} workers with a client each"
    found.constant("idle_database_cpu", idle, "cores", f"{source}, nothing is published: slope")
    found.constant("fleet_cpu", max(0.0, cores(few, 0.0) - askers(few) * idle), "cores", f"{source}: the rest, idle")
    found.constant(
        "wake_other_cpu", woken / (WAKES * (most - few)), "s", f"{source}, {WAKES:.0f} messages/s: another worker"
    )


def _relayed(found: Found, run: Any) -> None:
    few, most = FLEETS_RELAYED
    rows = run(lambda r: measured(r, FLEETS_RELAYED, ways=("redis",), rates=(0.0,)))
    first, last = (rows[row_name("redis", workers, 0.0)] for workers in FLEETS_RELAYED)
    source = f"{few} and {most} workers that hear Redis, nothing is published"
    found.constant("relay_statements", first["statements_per_second"], "1/s", f"{source}: the first")
    found.constant("relay_cpu", first["database_cpu_percent"] / 100, "cores", f"{source}: PostgreSQL, the first")
    each = (last["database_cpu_percent"] - first["database_cpu_percent"]) / 100 / (most - few)
    each -= (askers(most, redis=True) - askers(few, redis=True)) / (most - few) * found.value("idle_database_cpu")
    found.constant(
        "report_cpu",
        max(0.0, each),
        "cores",
        f"{source}: PostgreSQL, for each worker, whose report the steward passes on",
    )


def _large(found: Found, run: Any) -> None:
    rows = run(lambda r: measured(r, [FLEET_LARGE], ways=("steward", "redis"), rates=(0.0, 10.0)))
    for way, words in (("steward", ""), ("redis", ", Redis")):
        for rate, load in ((0.0, ", idle"), (10.0, "")):
            row = rows[row_name(way, FLEET_LARGE, rate)]
            plan = {"workers": FLEET_LARGE, "streams": FLEET_LARGE, "rate": rate, "redis": way == "redis"}
            found.point(
                f"statements, {FLEET_LARGE} workers{words}{load}", row["statements_per_second"], "1/s",
                quantity="statements", **plan,
            )  # fmt: skip
            found.point(
                f"PostgreSQL's CPU, {FLEET_LARGE} workers{words}{load}", row["database_cpu_percent"] / 100, "cores",
                quantity="database CPU", **plan,
            )  # fmt: skip


def _fleet(run: lab.Run, url: str, workers: int, follow: str) -> dict[str, float]:
    """Run several workers with a client each, on the same stream or each on its own, and publish to the stream of the first."""
    streams = [STREAM if follow == "all" else f"bench:{n}" for n in range(workers)]
    servers = [run.serve() for _ in range(workers)]
    for n, (server, stream) in enumerate(zip(servers, streams, strict=True)):
        run.connect(server, "all", 1, server.requests([stream]), by=f"client {n}")
    run.receive(None, 1.0, by="client 0")
    run.publish(servers[0].job(streams[:1], 5))
    run.received(1.0, by="client 0")
    time.sleep(6.0)  # the roll and the election settle
    pids = [pid for server in servers for pid in server.pids]
    before, began = _counts(url, run, pids), time.monotonic()
    if follow != "none":
        run.publish(servers[0].job(streams[:1], round(RATE * SECONDS), rate=RATE))
    time.sleep(max(0.0, SECONDS - (time.monotonic() - began)))
    after = _counts(url, run, pids)
    found = {name: after[name] - before[name] for name in before}
    found["statements"] -= 0 if follow == "none" else round(RATE * SECONDS)
    found["memory"] = machine.memory(pids)
    return found


def _counts(url: str, run: lab.Run, pids: list[int]) -> dict[str, float]:
    assert run.postmaster is not None
    used = {"database_cpu": machine.cpu_of_family(run.postmaster), "workers_cpu": machine.cpu(pids)}
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("select xact_commit from pg_stat_database where datname = current_database()")
        [(commits,)] = cursor.fetchall()
    return {**used, "statements": float(commits)}


def _bytes(found: Found) -> None:
    data = "x" * 200
    frame = len(sse.message(data, event=None, id=10**15))
    found.constant(
        "frame_bytes", frame - len(data) + len(f"{frame:x}") + 4, "bytes", "computed: frame and chunk around the data"
    )
    found.constant(
        "packet_bytes", 78, "bytes", "not measured: Ethernet, IP and TCP headers with timestamps, a packet for a send"
    )
    found.constant("ring_bytes", frame + 200, "bytes", "computed: a frame of 200 bytes, and about 200 bytes of objects")


def _redis(found: Found) -> None:
    for name, value, source in redis_server.costs():
        found.constant(name, value, "s", source)
