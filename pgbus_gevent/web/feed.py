"""The console's feed: an event stream of what this worker counts, once a second. Without watchers it costs almost nothing."""

from __future__ import annotations

import json
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic, time
from typing import Any

import gevent

from ..core import sse
from ..errors import DatabaseError
from ..streamer.instance import Instance
from . import process
from .metrics import TROUBLES, Metrics
from .operator_messages import why_not
from .operators import Operators
from .recent_warnings import RecentWarnings

WATCHERS = 16
"""The most pages that may watch at the same time; each takes a greenlet."""

HISTORY = 60
"""Snapshots of the past that a page starts with. The worker takes one at each roll call, so they cover five minutes."""

HOUR = 120
"""Snapshots of the last hour that a page starts with, besides; one every half a minute."""

_COARSELY = 30.0  # seconds between two snapshots of the hour
_EVERY = 1.0  # seconds between two snapshots
_SLOWLY = 5  # snapshots between two ``slow`` frames, which hold facts that change slowly or cost something
_LOOK = 0.25  # seconds until the feed notices that the worker drains
_FLEET_TIMEOUT = 1.0
_MOST_LABELS = 100  # names of audiences that the page suggests
_OF_OTHERS = ("connections", "streams", "messages", "sends", "refused", "lost", "warned", "unready")


class Feed:
    """The feed of one worker. Only :meth:`frames` yields, in the greenlet of the request that watches."""

    def __init__(
        self,
        instance: Instance,
        metrics: Metrics,
        operators: Operators,
        warnings: RecentWarnings,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._instance = instance
        self._metrics = metrics
        self._operators = operators
        self._warnings = warnings
        self._clock = clock
        self._history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self._hour: deque[dict[str, Any]] = deque(maxlen=HOUR)
        self._next_of_hour = clock()
        self._watchers = 0

    @property
    def is_full(self) -> bool:
        """Whether no further page may watch now."""
        return self._watchers >= WATCHERS

    def note(self) -> None:
        """Keep a snapshot for the pages to come; called at each roll call, whether or not a page watches."""
        snapshot = self._now()
        self._history.append(snapshot)
        if (now := self._clock()) >= self._next_of_hour:
            self._hour.append(snapshot)
            # By the schedule, so that roll calls every five to ten seconds do not stretch the hour.
            self._next_of_hour = max(self._next_of_hour + _COARSELY, now + _COARSELY / 2)

    def sums(self) -> dict[str, int]:
        """What the worker reports of itself to the consoles of the others, besides the facts of the roll call."""
        troubles = self._metrics.troubles()
        return {
            "sends": self._instance.dispatcher.sends,
            "refused": sum(troubles["refused"]),
            "lost": sum(troubles["lost"]),
            "warned": self._warnings.number,
        }

    def frames(self, cookie: str | None) -> Iterator[bytes]:
        """Frames until the worker drains, or the session that ``cookie`` belongs to has ended."""
        self._watchers += 1
        number = -1
        try:
            yield sse.retry(2.0) + frame("hello", self._hello())
            for n in range(2**62):
                if n % _SLOWLY == 0:
                    if n and cookie is not None and not self._operators.holds(cookie):
                        return  # logged out, perhaps at another worker
                    yield frame("slow", self._slow())
                if self._warnings.number != number:
                    number = self._warnings.number
                    yield frame("warnings", [warned._asdict() for warned in self._warnings.newest()])
                yield frame("now", self._now())
                ending = self._clock() + _EVERY
                while (left := ending - self._clock()) > 0:
                    gevent.sleep(min(left, _LOOK))
                    if self._instance.draining:
                        return
        finally:
            self._watchers -= 1

    def _hello(self) -> dict[str, Any]:
        instance, roll_call = self._instance, self._instance.roll_call
        return {
            "worker": roll_call.id,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "version": process.release(),
            "started": roll_call.started_at,
            "max": instance.clients.most,
            "listen": instance.settings.wake != "poll",
            "guarded": self._operators.has_token,
            "bounds": {"passes": self._metrics.passes.bounds, "latency": self._metrics.latency.bounds},
            "reasons": TROUBLES,
            "labels": sorted(instance.filters.labels)[:_MOST_LABELS],
            "unpublishable": why_not(instance.settings),
            "history": list(self._history),
            "hour": list(self._hour),
        }

    def _now(self) -> dict[str, Any]:
        instance, total = self._instance, self._instance.counter.total
        return {
            "at": time(),
            "messages": total.broadcasts,
            "sends": instance.dispatcher.sends,
            "opened": total.total_connections,
            "connections": total.active_connections,
            "streams": len(instance.counter.streams),
            "passes": self._metrics.passes.counts,
            "latency": self._metrics.latency.counts,
            "unready": instance.unready,
            "listening": instance.listener.live,
            "losses": instance.listener.reconnects,
            "pool": [instance.database.pool.in_use, instance.database.pool.size],
            "ring": [instance.board.budget.used, instance.board.budget.limit],
            "warned": [self._warnings.number - self._warnings.errors, self._warnings.errors],
            **self._metrics.troubles(),
        }

    def _slow(self) -> dict[str, Any]:
        """The other workers, and the kernel's figures for this process."""
        cpu = os.times()
        found: dict[str, Any] = {
            "cpu": cpu.user + cpu.system,
            "memory": process.resident_bytes(),
            "descriptors": process.open_descriptors(),
            "offset": self._instance.roll_call.clock_offset,
            "fleet": None,
            "answered": None,
            "trouble": "no answer",
        }
        began = self._clock()
        workers = None
        try:
            with gevent.Timeout(_FLEET_TIMEOUT, False):  # type: ignore[arg-type]  # False: without an exception
                workers = self._instance.database.fleet.workers()
        except DatabaseError as error:
            found["trouble"] = str(error)
        if workers is not None:
            found["trouble"] = None
            found["answered"] = self._clock() - began
            found["fleet"] = [
                {
                    "id": worker.id,
                    "host": worker.host,
                    "pid": worker.pid,
                    "age": worker.age,
                    "silent": worker.silent,
                    **{name: worker.facts.get(name) for name in _OF_OTHERS},
                }
                for worker in workers
            ]
        return found


def frame(event: str, value: Any) -> bytes:
    """A frame with ``value`` as JSON."""
    return sse.message(json.dumps(value, separators=(",", ":")), event=event)
