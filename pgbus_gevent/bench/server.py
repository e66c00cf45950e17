"""The server under test: a minimal program with an Instance, its application and its server.

It prints its address on stdout, and answers each command with the counters of its parts; see :mod:`.program`.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    # Before other imports, because modules that were imported unpatched keep unpatched functions.
    monkey.patch_all()

import argparse
import gc
import json
import os
import resource
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import gevent
from gevent.fileobject import FileObjectPosix

from pgbus_gevent.bench.program import answer, commands
from pgbus_gevent.core.client import Subscriber
from pgbus_gevent.hosts.pywsgi import Server, listen
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer.instance import Instance
from pgbus_gevent.streamer.limits import reserve
from pgbus_gevent.web.stream_app import StreamApp

STATEMENT = "select pgbus.broadcast(%(stream)s, %(data)s)"


def main() -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--settings", type=json.loads, default={}, help="further settings, as JSON")
    parser.add_argument("--filters", type=int, help="register so many filters, and authorise clients by their headers")
    parser.add_argument("--instances", type=int, default=1, help="how many workers run in this process")
    parser.add_argument("--no-steward", action="store_true", help="take no part in the election of the steward")
    arguments = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    settings = Settings(
        database_url=arguments.database_url,
        secret=("the secret of the benchmark",),
        public=("bench:*",),
        # As many as the machine allows, so that the Instance does not warn about the limit.
        **{"max_connections": 100_000 if most < 0 else min(100_000, most - reserve(most)), **arguments.settings},
    )
    instances = [Instance(settings) for _ in range(arguments.instances)]
    servers = [_serve(instance, arguments) for instance in instances]
    gc.collect()
    gc.freeze()
    answer(
        pids=[os.getpid()],
        port=servers[0].server_port,
        ports=[server.server_port for server in servers],
        path=f"{settings.prefix}/streams/{{stream}}",
        marker="pgbus:connected",
        way="sql",
        options={"url": arguments.database_url, "statement": STATEMENT},
        database=True,
    )
    # In a patched process, sys.stdin is read in a thread. With this file, the event loop waits for input.
    for _ in commands(FileObjectPosix(sys.stdin.fileno(), "r", close=False)):
        answer(**counters(instances[0]))
    for server in servers:
        server.close()
    gevent.joinall([gevent.spawn(instance.shutdown, 1.0) for instance in instances])


def _serve(instance: Instance, arguments: argparse.Namespace) -> Server:
    """Start an Instance and its server."""
    if arguments.no_steward:
        del instance.tasks["steward"]  # each worker then sweeps for itself
    instance.start()
    for n in range(arguments.filters or 0):
        instance.filters.register(f"user:{n}", partial(is_label, f"user:{n}"))
    hook = authorize if instance.settings.presence or arguments.filters is not None else None
    server = Server(listen("127.0.0.1", 0), StreamApp(instance, authorize=hook))
    server.start()
    return server


def authorize(environ: Mapping[str, Any], stream: str) -> bool | Subscriber:
    """Return a subscriber with the member, the label or the context that the client names."""
    label = environ.get("HTTP_X_LABEL")
    return Subscriber(
        member=environ.get("HTTP_X_MEMBER"),
        context=environ.get("HTTP_X_CONTEXT"),
        labels=() if label is None else (label,),
    )


def is_label(label: str, context: object, stream: str) -> bool:
    """Whether a client's context is the label of a message."""
    return context == label


def counters(instance: Instance) -> dict[str, Any]:
    """Return the counters of the parts since their start."""
    return {
        "connections": len(instance.registry),
        "queries": instance.reader.reads,
        "sweeps": instance.sweeper.sweeps,
        "passes": instance.dispatcher.passes,
        "sends": instance.dispatcher.sends,
        "heartbeats": instance.heartbeat.sent,
        "pruned": instance.pruner.removed,
        "prune_batches": instance.pruner.batches,
        "prune_seconds": instance.pruner.seconds,
    }


if __name__ == "__main__":
    main()
