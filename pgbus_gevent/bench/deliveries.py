"""Scenarios for our own server, with many streams, or clients that are late or slow: many, mixed, replay, slow."""

from __future__ import annotations

from contextlib import closing
from time import sleep
from typing import Any

import psycopg2

from ..settings.table import Settings
from ..streamer.reader import KEEP_SECONDS
from . import machine, stamps
from .lab import FRAME, Run, Server
from .scenarios import LATENCIES, STREAM, Metrics, Rows, Scenario

_PUBLISHERS = 8
_LARGE = 64 * 1024
PAGE = 500
"""The most messages that one query for a replay reads, the default of the setting."""
_CURSORS = 10  # different cursors of the clients that come back


def many(run: Run) -> Rows:
    count, seconds = run.clients(1000), run.seconds(10.0)
    streams = [f"bench:{n}" for n in range(count)]
    rate = 2.0 * count
    server = run.serve()
    run.connect(server, "all", count, server.requests(streams))
    run.warm_up(server, "all", streams, count, rounds=1)
    jobs = spread(server, streams, rate, seconds)
    messages = sum(job["messages"] for job in jobs)
    before, start = server.counters(), run.cpu(server)
    run.receive({"all": messages}, seconds + 30.0)
    published = run.publish(*jobs)
    group = run.received(seconds + 30.0)["groups"]["all"]
    used, after = run.cpu(server) - start, server.counters()
    return {
        "": {
            "clients": count,
            "deliveries": group["frames"],
            "lost": messages - group["frames"],
            "published_per_second": messages / published["seconds"],
            "publish_p50": published["p50"],
            **{name: group[name] for name in LATENCIES},
            **used.per_million(group["frames"]),
            **{name: after[name] - before[name] for name in ("queries", "sweeps")},
        }
    }


def spread(server: Server, streams: list[str], rate: float, seconds: float) -> list[dict[str, Any]]:
    """Divide the streams and the rate among publishers that start at different times."""
    parts = [part for n in range(_PUBLISHERS) if (part := streams[n::_PUBLISHERS])]
    share = rate / len(parts)
    messages = max(1, round(share * seconds))
    return [{**server.job(part, messages, rate=share), "delay": n / rate} for n, part in enumerate(parts)]


def mixed(run: Run) -> Rows:
    large, seconds = run.clients(5000), run.seconds(10.0)
    small = run.beside(500, 5000)
    streams = [f"bench:{n}" for n in range(small)]
    rows: Rows = {}
    server = run.serve()
    # Two processes: a client of a small stream must not wait until the bytes of the five thousand have been read.
    run.connect(server, "small", small, server.requests(streams), by="small")
    run.connect(server, "large", large, server.requests([STREAM]), by="large")
    run.warm_up(server, "small", streams, small, rounds=2, by="small")
    run.warm_up(server, "large", [STREAM], large, by="large")
    for variant in ("alone", "beside the large one"):
        jobs = spread(server, streams, 0.4 * small, seconds)
        messages = sum(job["messages"] for job in jobs)
        more = round(10.0 * seconds) if variant != "alone" else 0
        if more:
            jobs.append(server.job([STREAM], more, rate=10.0))
            run.receive({"large": more * large}, seconds + 30.0, by="large")
        run.receive({"small": messages}, seconds + 30.0, by="small")
        published = run.publish(*jobs)
        group = run.received(seconds + 30.0, by="small")["groups"]["small"]
        rows[f"small, {variant}"] = {
            "clients": small,
            "deliveries": group["frames"],
            "lost": messages - group["frames"],
            "call_p50": published["p50"],
            "call_p99": published["p99"],
            **{name: group[name] for name in LATENCIES},
        }
        if more:
            group = run.received(seconds + 30.0, by="large")["groups"]["large"]
            rows["large"] = {
                "clients": large,
                "deliveries": group["frames"],
                "lost": more * large - group["frames"],
                **{name: group[name] for name in LATENCIES},
            }
    return rows


def replay(run: Run) -> Rows:
    return {
        "within the ring": _replay(run, behind=500, ring=1000, stream="bench:ring"),
        "beyond the ring": _replay(run, behind=1000, ring=100, stream="bench:far"),
    }


def _replay(run: Run, *, behind: int, ring: int, stream: str) -> Metrics:
    count = run.clients(5000)
    others = run.beside(1000, 5000)
    server = run.serve(ring_messages=ring)
    run.connect(server, stream, others, server.requests([stream]), by="live")
    cursors = _publish_batch(run, stream, behind)
    run.receive({stream: others * behind}, 30.0, by="live")
    run.received(30.0, by="live")
    goals = [behind - at * behind // _CURSORS for at in range(_CURSORS)]
    # The live clients were behind a moment ago. Wait until the pages that were kept for them are dropped.
    sleep(KEEP_SECONDS + 1.0)
    before = server.counters()
    start = run.cpu(server)
    rate = 20.0
    live = max(1, round(rate * run.seconds(5.0)))
    run.receive({stream: others * live}, 30.0, by="live")
    opening = {
        "group": stream,
        "port": server.port,
        "count": count,
        "requests": server.requests([stream], since=cursors),
        "goals": goals,
    }
    run.receive(None, 30.0, by="back", open=[opening], caught_up={stream: count}, timed=False, marker=server.marker)
    run.publish(server.job([stream], live, rate=rate))
    back = run.received(30.0, by="back")["groups"][stream]
    group = run.received(30.0, by="live")["groups"][stream]
    after = server.counters()
    used = run.cpu(server) - start
    return {
        "clients": count,
        "behind": behind,
        "back_s": back["opened_in"] or 0.0,
        "caught_up": back["caught"],
        "caught_up_s": back["caught_in"] or 0.0,
        "queries": after["queries"] - before["queries"],
        "pages": sum(-(-goal // PAGE) for goal in goals),
        "live_lost": others * live - group["frames"],
        "live_p50": group["p50"],
        "live_p99": group["p99"],
        "live_max": group["max"],
        "cpu_s": used.server,
    }


def _publish_batch(run: Run, stream: str, count: int) -> list[int]:
    """Publish ``count`` messages in one call. Returns cursors after which all of them, nine tenths, eight tenths, ... follow."""
    with closing(psycopg2.connect(run.database_url)) as connection, connection.cursor() as database_cursor:
        connection.autocommit = True
        database_cursor.execute("select pgbus.last_id(%s)", (stream,))
        first = database_cursor.fetchone()
        data = [stamps.data(FRAME, 0)] * count
        database_cursor.execute("select pgbus.broadcast_many(%s, %s)", (stream, data))
        database_cursor.execute(
            "select msg_id from pgbus.messages where stream = %s and msg_id > %s order by 1", (stream, first)
        )
        ids = [first[0] if first else 0, *(row[0] for row in database_cursor.fetchall())]
    return [ids[at * count // _CURSORS] for at in range(_CURSORS)]


def slow(run: Run) -> Rows:
    count, seconds = run.clients(400), run.seconds(10.0)
    number = max(1, count // 20)
    rows = {}
    for variant, stuck in (("none slow", 0), ("5 % never read", number)):
        rows[variant] = _slow(run, count - number, stuck, seconds, f"bench:{variant[0]}")
    return rows


def _slow(run: Run, healthy: int, stuck: int, seconds: float, stream: str) -> Metrics:
    rate = 5.0
    messages = max(1, round(rate * seconds))
    server = run.serve()
    run.connect(server, stream, healthy, server.requests([stream]))
    if stuck:
        run.connect(server, "stuck", stuck, server.requests([stream]), reads=False, by="stuck")
    run.warm_up(server, stream, [stream], healthy)
    before = server.memory()
    run.receive({stream: healthy * messages}, seconds + 30.0)
    run.publish(server.job([stream], messages, rate=rate, size=_LARGE))
    group = run.received(seconds + 30.0)["groups"][stream]
    grown = server.memory() - before
    kernel = machine.socket_memory(server.port) or 0
    found = {
        "healthy": float(healthy),
        "slow": float(stuck),
        "lost": healthy * messages - group["frames"],
        **{name: group[name] for name in LATENCIES},
        "server_mb": grown / 1e6,
        "kernel_mb": kernel / 1e6,
    }
    if stuck:
        ring = Settings(database_url=run.database_url).ring_bytes
        found["kb_per_slow"] = (grown + kernel - ring) / stuck / 1024
    return found


MANY = Scenario(
    "many",
    "N streams with one client each, two messages a second on each",
    many,
    (
        *("clients", "deliveries", "lost", "published_per_second", "publish_p50", *LATENCIES),
        *("cpu_per_million", "cpu_all_per_million", "queries", "sweeps"),
    ),
)
MIXED = Scenario(
    "mixed",
    "one stream with N readers and ten messages a second, and a tenth as many streams with one reader each",
    mixed,
    ("clients", "deliveries", "lost", "call_p50", "call_p99", *LATENCIES),
)
REPLAY = Scenario(
    "replay",
    "N clients that come back at the same time, with old cursors, while others are live",
    replay,
    (
        *("clients", "behind", "back_s", "caught_up", "caught_up_s", "queries", "pages"),
        *("live_lost", "live_p50", "live_p99", "live_max", "cpu_s"),
    ),
)
SLOW = Scenario(
    "slow",
    "messages of 64 kB, five a second; one client in twenty never reads",
    slow,
    ("healthy", "slow", "lost", *LATENCIES, "server_mb", "kernel_mb", "kb_per_slow"),
)
