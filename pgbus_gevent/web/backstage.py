"""What an Instance has for its operators and publishers: metrics, the console, tokens, and the place on the roll of the workers."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import gevent

from ..core.exposition import CONTENT_TYPE, Family, merged, render
from ..database.fleet import Worker
from ..errors import DatabaseError
from ..streamer.instance import Instance
from ..streamer.roll_call import RollCall
from ..streamer.task import Task
from .console import Console
from .guesses import Door
from .metrics import Metrics, of_worker, packed, unpacked
from .operators import Operators
from .recent_warnings import RecentWarnings
from .responses import Answer, Environ, Flow

Routes = dict[str, tuple[tuple[str, ...], Callable[[Environ], Any]]]

ROLL_TIMEOUT = 1.0
"""Seconds that the roll may take to be read; without it a worker tells of itself alone."""

_READ = ("GET", "HEAD")


class Backstage:
    """Adds a task to the instance, which starts and ends with the others; get one from :func:`backstage_of`."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self.warnings = RecentWarnings()
        self.roll_call = RollCall(instance.database.fleet, self._facts, on_pace=instance.catch_up.keep_pace)
        self.metrics = Metrics(instance, self.roll_call)
        self.operators = Operators(instance.settings, instance.database.operators)
        self.publishers = _publishers(instance)
        self.console = Console(instance, self.metrics, self.roll_call, self.operators, self.warnings)
        self.routes: Routes = {"/metrics": (_READ, self._metrics), **self.console.routes}
        task = Task("roll-call", self._run, on_failure=self._failed)
        running = instance.tasks[0].running
        instance.tasks.append(task)
        if running:
            task.start()

    def _run(self) -> None:
        with self.warnings.listening():
            self.roll_call.run()

    def _failed(self, name: str) -> None:
        if self._instance.on_failure is not None:
            self._instance.on_failure(name)

    # what others are told of this worker

    def _facts(self) -> dict[str, Any]:
        self.console.note()
        total = self._instance.counter.total
        return {
            "connections": total.active_connections,
            "streams": len(self._instance.counter.streams),
            "messages": total.broadcasts,
            "unready": self._instance.unready,
            "service": self._service,
            "samples": packed(self.metrics.families()),
        }

    @property
    def _service(self) -> str:
        """The same for the workers of one program on one host, which share a port."""
        return f"{socket.gethostname()} {os.getppid()} {self._instance.settings.port}"

    def _metrics(self, environ: Environ) -> Answer | Flow:
        self.operators.check_metrics(environ)
        groups = [of_worker(families := self.metrics.families())]
        if environ.get("wsgi.multiprocess"):
            groups += self._of_the_others(families)
        return Answer(200, render(merged(groups)), [("content-type", CONTENT_TYPE), ("cache-control", "no-store")])

    def _of_the_others(self, known: list[Family]) -> list[list[Family]]:
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
            if worker.id != self.roll_call.id and worker.facts.get("service") == self._service
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
