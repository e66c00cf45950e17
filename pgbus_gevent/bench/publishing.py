"""The scenario about publishers: how many appends per second the database takes, for different ways to publish."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import psycopg2

from .lab import FRAME, Run
from .scenarios import Metrics, Rows, Scenario

_SETUP = """
drop schema if exists pgbus_bench cascade;
create schema pgbus_bench;
create sequence pgbus_bench.ids;
create table pgbus_bench.plain (like pgbus.messages including all);
create table pgbus_bench.notified (like pgbus.messages including all);
create function pgbus_bench.broadcast(stream text, data text) returns bigint language plpgsql as $$
declare
  lock text   := pg_advisory_xact_lock(1885823603, pgbus._lock_number(stream));
  id   bigint := nextval('pgbus.message_ids');
  prev bigint := (select m.msg_id from pgbus_bench.notified m where m.stream = broadcast.stream collate "C"
                  order by m.msg_id desc limit 1);
begin
  insert into pgbus_bench.notified (stream, msg_id, prev_id, data) values (stream, id, prev, data);
  perform pgbus._notify_stream(stream, json_build_array('moved', stream)::text);
  return id;
end
$$;
"""
_DROP = "drop schema if exists pgbus_bench cascade"

PLAIN = "insert into pgbus_bench.plain (stream, msg_id, data) values (%(stream)s, nextval('pgbus_bench.ids'), %(data)s)"
NOTIFIED = "select pgbus_bench.broadcast(%(stream)s, %(data)s)"
BROADCAST = "select pgbus.broadcast(%(stream)s, %(data)s)"
BATCH = "select pgbus.broadcast_many(%(stream)s, %(data)s)"


def publish(run: Run) -> Rows:
    crowd = run.clients(64)
    rows: Rows = {}
    _execute(run, _SETUP)
    try:
        for publishers in (1, crowd):
            rows[f"plain inserts, {publishers}"] = _crowd(run, PLAIN, publishers)
            rows[f"broadcast, {publishers}"] = _crowd(run, BROADCAST, publishers)
            rows[f"a NOTIFY each, {publishers}"] = _crowd(run, NOTIFIED, publishers)
        for listeners in (10, 100):
            rows[f"broadcast, {crowd}, {listeners} listening"] = _crowd(run, BROADCAST, crowd, listeners=listeners)
        for publishers in (1, min(4, crowd)):
            rows[f"batches, {publishers}"] = _crowd(run, BATCH, publishers, batch=run.messages(1000))
        rows[f"broadcast, {crowd}, delivered"] = _delivered(run, crowd)
    finally:
        _execute(run, _DROP)
    return rows


def _execute(run: Run, statement: str) -> None:
    with closing(psycopg2.connect(run.database_url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(statement)


def _crowd(run: Run, statement: str, publishers: int, **more: Any) -> Metrics:
    found = _publish(run, statement, publishers, **more)
    return {
        "publishers": publishers,
        "listeners": more.get("listeners", 0),
        "appends_per_second": found["per_second"],
        "call_p50": found["p50"],
        "call_p99": found["p99"],
    }


def _publish(run: Run, statement: str, publishers: int, **more: Any) -> dict[str, Any]:
    seconds = run.seconds(3.0)
    return run.program("crowd").call(
        seconds + 60.0,
        do="crowd",
        url=run.database_url,
        statement=statement,
        publishers=publishers,
        seconds=seconds,
        size=FRAME,
        **more,
    )


def _delivered(run: Run, publishers: int) -> Metrics:
    """Run the crowd with a client on each stream, to see whether the delivery keeps up."""
    streams = [f"bench:{n}" for n in range(publishers)]
    server = run.serve()
    run.connect(server, "all", publishers, server.requests(streams))
    run.receive(None, run.seconds(3.0) + 30.0, quiet=1.0)
    found = _publish(run, BROADCAST, publishers)
    group = run.received(run.seconds(3.0) + 30.0)["groups"]["all"]
    return {
        "publishers": publishers,
        "listeners": 1,
        "appends_per_second": found["per_second"],
        "call_p50": found["p50"],
        "call_p99": found["p99"],
        "lost": found["published"] - group["frames"],
        "p50": group["p50"],
        "p99": group["p99"],
        "all_after_ms": max(0.0, (group["last"] - found["ended"]) / 1000),
    }


PUBLISH = Scenario(
    "publish",
    "appends per second of N publishers on N streams, or of one, each as fast as it can",
    publish,
    ("publishers", "listeners", "appends_per_second", "call_p50", "call_p99", "lost", "p50", "p99", "all_after_ms"),
)
