"""What an Instance has for operators and publishers: the metrics, the console, and the tokens that they need."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import gevent
from prometheus_client.core import Metric

from ..database.fleet import Worker
from ..errors import DatabaseError
from ..publishing.observed import tracing_of
from ..streamer.instance import Instance
from . import requests
from .connection_log import ConnectionLog
from .edges import Edges
from .families import merged, of_worker, packed, unpacked, written
from .feed import Feed
from .guesses import Door
from .metrics import Metrics
from .operators import Operators
from .recent_warnings import RecentWarnings
from .responses import Answer, Environ, Refused, text

if TYPE_CHECKING:
    from .console import Console

Routes = dict[str, tuple[tuple[str, ...], Callable[[Environ], Any]]]

ROLL_TIMEOUT = 1.0
"""Seconds for reading the roll. If it takes longer, a worker answers with its own metrics only."""

_READ = ("GET", "HEAD")


class Backstage:
    """Metrics, console and tokens of an instance; get it from :func:`backstage_of`."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._roll_call = instance.roll_call
        self.warnings = RecentWarnings()
        self.metrics = Metrics(instance)
        if instance.settings.log_connections != "off":
            ConnectionLog(instance.events, owners=instance.settings.log_connections == "owners")
        if tracing_of(instance.settings.tracing) is not None:
            from .tracing import Deliveries

            Deliveries(instance.events, lambda: self._roll_call.clock_offset or 0.0)
        self.operators = Operators(instance.settings, instance.database.operators)
        self.publishers = _publishers(instance)
        self.edges = Edges(instance)
        self.feed = Feed(instance, self.metrics, self.operators, self.warnings)
        self.routes: Routes = {"/metrics": (_READ, self._metrics), **self.edges.routes}
        self._roll_call.join(self)

    @cached_property
    def console(self) -> Console:
        """The console, made with the first request for it, because it imports Bottle.

        By then gevent has patched the process. If bottle is imported before that, all greenlets share its request. That would also
        break the Bottle application of a program that imports this package before it patches.
        """
        from .console import Console

        return Console(self._instance, self.operators, self.feed)

    # for the roll call

    def facts(self) -> dict[str, Any]:
        """The samples of the metrics, for a scrape that reaches another worker, and sums for the consoles of the others."""
        self.feed.note()
        return {"samples": packed(self.metrics.collect()), **self.feed.sums()}

    def listening(self) -> AbstractContextManager[None]:
        """Keep warnings while the worker runs."""
        return self.warnings.listening()

    def _metrics(self, environ: Environ) -> Answer:
        self.operators.check_metrics(environ)
        hosts = requests.single(requests.parse_query(environ), "hosts")
        if hosts not in (None, "own", "all"):
            raise Refused(text(400, "hosts is own or all"))
        everywhere = hosts == "all"
        families = self.metrics.collect()
        groups = [of_worker(families, os.getpid(), socket.gethostname() if everywhere else None)]
        if everywhere or environ.get("wsgi.multiprocess"):
            groups += self._of_the_others(families, everywhere)
        body, content_type = written(merged(groups), environ.get("HTTP_ACCEPT", ""))
        headers = [("content-type", content_type), ("cache-control", "no-store"), ("vary", "accept")]
        return Answer(200, body, headers)

    def _of_the_others(self, known: list[Metric], everywhere: bool) -> list[list[Metric]]:
        """The last metrics that the other workers of this server wrote, because a scrape reaches one worker by chance.

        With ``everywhere``, those of the workers of all hosts.
        """
        workers: list[Worker] = []
        try:
            with gevent.Timeout(ROLL_TIMEOUT, False):  # type: ignore[arg-type]  # False: end the block without an exception
                own = () if everywhere else (socket.gethostname(), self._roll_call.service)
                workers = self._instance.database.fleet.with_samples(*own)
        except DatabaseError:
            pass
        return [
            of_worker(unpacked(worker.facts.get("samples"), known), worker.pid, worker.host if everywhere else None)
            for worker in workers
            if worker.id != self._roll_call.id
        ]


def _publishers(instance: Instance) -> Door | None:
    """The check of the publish tokens; None if broadcasting over HTTP is off."""
    tokens = instance.settings.publish_token
    return Door("publish", tokens, instance.settings.secret, instance.database.operators) if tokens else None


def backstage_of(instance: Instance) -> Backstage:
    """The backstage of an instance. All applications that serve the instance share it."""
    found = instance.backstage
    if not isinstance(found, Backstage):
        found = instance.backstage = Backstage(instance)
    return found
