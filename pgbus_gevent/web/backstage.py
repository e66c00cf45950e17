"""What an Instance has for its operators and publishers: metrics, the console, and the tokens that let them in."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import gevent
from prometheus_client.core import Metric

from ..database.fleet import Worker
from ..errors import DatabaseError
from ..streamer.instance import Instance
from .console import Console
from .families import merged, of_worker, packed, unpacked, written
from .guesses import Door
from .metrics import Metrics
from .operators import Operators
from .recent_warnings import RecentWarnings
from .responses import Answer, Environ, Flow

Routes = dict[str, tuple[tuple[str, ...], Callable[[Environ], Any]]]

ROLL_TIMEOUT = 1.0
"""Seconds that the roll may take to be read; without it a worker tells of itself alone."""

_READ = ("GET", "HEAD")


class Backstage:
    """Metrics, console and tokens of an instance; get one from :func:`backstage_of`."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._roll_call = instance.roll_call
        self.warnings = RecentWarnings()
        self.metrics = Metrics(instance)
        self.operators = Operators(instance.settings, instance.database.operators)
        self.publishers = _publishers(instance)
        self.console = Console(instance, self.metrics, self.operators, self.warnings)
        self.routes: Routes = {"/metrics": (_READ, self._metrics), **self.console.routes}
        self._roll_call.join(self)

    # what others are told of this worker

    def facts(self) -> dict[str, Any]:
        """The samples of the metrics, for a scrape that gets to another worker."""
        self.console.note()
        return {"samples": packed(self.metrics.collect())}

    def listening(self) -> AbstractContextManager[None]:
        """Warnings are kept while the worker runs."""
        return self.warnings.listening()

    def _metrics(self, environ: Environ) -> Answer | Flow:
        self.operators.check_metrics(environ)
        groups = [of_worker(families := self.metrics.collect(), os.getpid())]
        if environ.get("wsgi.multiprocess"):
            groups += self._of_the_others(families)
        text, content_type = written(merged(groups), environ.get("HTTP_ACCEPT", ""))
        headers = [("content-type", content_type), ("cache-control", "no-store"), ("vary", "accept")]
        return Answer(200, text, headers)

    def _of_the_others(self, known: list[Metric]) -> list[list[Metric]]:
        """What the workers beside this one last told: whoever scrapes gets one of them by chance."""
        workers: list[Worker] = []
        try:
            with gevent.Timeout(ROLL_TIMEOUT, False):  # type: ignore[arg-type]  # False: end the block without an exception
                workers = self._instance.database.fleet.workers(samples=True)
        except DatabaseError:
            pass
        return [
            of_worker(unpacked(worker.facts.get("samples"), known), worker.pid)
            for worker in workers
            if worker.id != self._roll_call.id and worker.facts.get("service") == self._roll_call.service
        ]


def _publishers(instance: Instance) -> Door | None:
    """What lets in who broadcasts over HTTP; None where nobody does."""
    token = instance.settings.publish_token
    return None if token is None else Door("publish", token, instance.settings.secret, instance.database.operators)


def backstage_of(instance: Instance) -> Backstage:
    """The one of an instance, which all applications that serve it share."""
    found = instance.backstage
    if not isinstance(found, Backstage):
        found = instance.backstage = Backstage(instance)
    return found
