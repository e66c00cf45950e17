"""What a worker counts, for Prometheus: from the named events, and from its parts when it is asked.

No label has a value for each stream or owner: their number is anybody's, and each would be a time series for ever.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from time import time
from typing import Any

from ..coalescer import total_counts
from ..core import events
from ..core.exposition import Family, Histogram, Labels, Sample, by_label, labelled, one
from ..streamer.instance import Instance
from ..streamer.roll_call import RollCall
from . import process

_PASS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_READ = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

_ENDS = {
    "client left", "error", "expired", "finished", "max-age", "replaced", "restart", "revoked", "sent data on an event stream",
    "slow-consumer", "unavailable",
}  # fmt: skip
_KINDS = ("open", "follow", "page")
_REFUSALS = ("overloaded", "restart", "too-many-connections", "unavailable")
_GAPS = ("ahead", "expired", "invalid-cursor")


class Metrics:
    """Listens to the events of ``instance`` from now on; nothing here yields. ``roll_call`` knows the database's clock."""

    def __init__(self, instance: Instance, roll_call: RollCall) -> None:
        self._instance = instance
        self._roll_call = roll_call
        self.passes = Histogram(_PASS)
        self.latency = Histogram(_LATENCY)
        # With all that there can be, so that what has not happened yet is told as 0, and what happens first is an increase.
        self._reads = {kind: Histogram(_READ) for kind in _KINDS}
        self._rows = Counter(dict.fromkeys(_KINDS, 0))
        self._ends = Counter(dict.fromkeys([_label(reason) for reason in [*_ENDS, ""]], 0))
        self._refusals = Counter(dict.fromkeys(_REFUSALS, 0))
        self._gaps = Counter(dict.fromkeys(_GAPS, 0))
        self._slow = 0
        subscribe = instance.events.subscribe
        subscribe(events.Passed, self._passed)
        subscribe(events.Read, self._read)
        subscribe(events.Disconnected, self._disconnected)
        subscribe(events.Refused, self._refused)
        subscribe(events.Gap, self._gap)
        subscribe(events.SlowConsumer, self._slow_consumer)

    # events

    def _passed(self, event: events.Passed) -> None:
        self.passes.observe(event.seconds)
        if event.appended_at is not None and event.connections:
            here = time() + (self._roll_call.clock_offset or 0.0)
            self.latency.observe(max(0.0, here - event.appended_at))

    def _read(self, event: events.Read) -> None:
        self._reads[event.kind].observe(event.seconds)
        self._rows[event.kind] += event.rows

    def _disconnected(self, event: events.Disconnected) -> None:
        self._ends[_label(event.reason)] += 1

    def _refused(self, event: events.Refused) -> None:
        self._refusals[event.reason] += 1

    def _gap(self, event: events.Gap) -> None:
        self._gaps[event.reason] += 1

    def _slow_consumer(self, event: events.SlowConsumer) -> None:
        self._slow += 1

    # families

    def families(self) -> list[Family]:
        """What this worker counts, as it is now."""
        return [*self._clients(), *self._delivery(), *self._database(), *self._extras(), *process.families()]

    def _clients(self) -> Iterable[Family]:
        instance, total = self._instance, self._instance.counter.total
        yield Family(
            "pgbus_info",
            "gauge",
            "The release that runs; always 1",
            [Sample("", (("version", process.release()),), 1.0)],
        )
        yield one("pgbus_ready", "gauge", "1 while new clients can be served, else 0", float(instance.unready is None))
        yield one("pgbus_connections", "gauge", "Open stream connections", total.active_connections)
        yield one(
            "pgbus_connections_max",
            "gauge",
            "The most stream connections that this worker takes",
            instance.clients.most,
        )
        yield one("pgbus_connections_opened_total", "counter", "Stream connections opened", total.total_connections)
        yield by_label("pgbus_disconnects_total", "Stream connections that ended, by the reason", "reason", self._ends)
        yield by_label(
            "pgbus_refusals_total", "Clients sent away to come back, by the reason", "reason", self._refusals
        )
        yield one(
            "pgbus_slow_consumers_total", "counter", "Connections closed as they took nothing for too long", self._slow
        )
        yield by_label("pgbus_gaps_total", "Clients told of a gap, by the reason", "reason", self._gaps)
        yield one("pgbus_streams", "gauge", "Streams that somebody is connected to", len(instance.counter.streams))

    def _delivery(self) -> Iterable[Family]:
        instance = self._instance
        yield one(
            "pgbus_messages_total",
            "counter",
            "Messages taken in of streams that somebody is connected to, each once",
            instance.counter.total.broadcasts,
        )
        yield one(
            "pgbus_sends_total",
            "counter",
            "Sends to connections; one carries all that the connection lacked",
            instance.dispatcher.sends,
        )
        yield one("pgbus_heartbeats_total", "counter", "Heartbeats sent to quiet connections", instance.heartbeat.sent)
        yield Family(
            "pgbus_pass_duration_seconds",
            "histogram",
            "How long passes over the connections of a stream took, others' turns included",
            self.passes.samples(),
        )
        yield Family(
            "pgbus_append_to_send_seconds",
            "histogram",
            "From the append of a message, of those that a notification carried, until all connections were served",
            self.latency.samples(),
        )
        yield one(
            "pgbus_ephemerals_dropped_total",
            "counter",
            "Ephemeral messages dropped in a flood",
            instance.ephemerals.dropped + instance.dispatcher.dropped,
        )
        yield one(
            "pgbus_ephemerals_missed_total",
            "counter",
            "Ephemeral messages that clients missed as they read too slowly, counted for each client",
            instance.dispatcher.missed,
        )
        yield one("pgbus_ring_bytes", "gauge", "Memory that recent messages take, in bytes", instance.budget.used)
        yield one("pgbus_ring_max_bytes", "gauge", "The most memory for recent messages", instance.budget.limit)

    def _database(self) -> Iterable[Family]:
        instance, pool = self._instance, self._instance.database.pool
        if instance.settings.listen:
            yield one(
                "pgbus_listener_up", "gauge", "1 while the LISTEN session is there", float(instance.listener.live)
            )
            yield one(
                "pgbus_listener_losses_total", "counter", "LISTEN sessions that were lost", instance.listener.reconnects
            )
        yield one("pgbus_catch_up_sweeps_total", "counter", "Looks for unheard messages", instance.catch_up.sweeps)
        yield Family(
            "pgbus_read_duration_seconds",
            "histogram",
            "How long reads for clients behind the ring took, by the kind",
            [sample for kind, reads in self._reads.items() for sample in reads.samples((("kind", kind),))],
        )
        yield by_label("pgbus_read_rows_total", "Messages read for clients behind the ring", "kind", self._rows)
        yield one("pgbus_pool_connections_in_use", "gauge", "Pooled database connections in use", pool.in_use)
        yield one("pgbus_pool_connections_max", "gauge", "The most pooled database connections", pool.size)
        yield one(
            "pgbus_database_clock_offset_seconds",
            "gauge",
            "How far the database's clock is ahead of this host's",
            self._roll_call.clock_offset,
        )

    def _extras(self) -> Iterable[Family]:
        counts = total_counts()
        if counts.written:
            yield one("pgbus_coalesced_writes_total", "counter", "Writes that were held back", counts.written)
            yield one("pgbus_coalesced_replaced_total", "counter", "Of them, replaced by a later one", counts.replaced)
            yield one("pgbus_coalesced_published_total", "counter", "Of them, published", counts.published)
            yield one("pgbus_coalesced_lost_total", "counter", "Of them, refused or given up", counts.dropped)
            yield one("pgbus_coalesced_waiting", "gauge", "Writes that wait for their window to end", counts.waiting)
        if self._instance.settings.presence:
            presence = self._instance.presence
            yield one("pgbus_presence_connections", "gauge", "Connections with a member", len(presence))
            yield one("pgbus_presence_failing", "gauge", "1 while presence cannot be written", float(presence.failing))


def _label(reason: str) -> str:
    """For the reason of an end. What else there is are the names of what the system says: resets, timeouts, broken pipes."""
    return reason.replace(" ", "-") if reason in _ENDS else "connection-lost"


def of_worker(families: Iterable[Family], pid: int | None = None) -> list[Family]:
    """With the label that tells which worker it was."""
    return [labelled(family, ("worker", str(pid or os.getpid()))) for family in families]


def packed(families: Iterable[Family]) -> str:
    """The samples as a text that another worker can :func:`unpack`."""
    return json.dumps({family.name: family.samples for family in families}, separators=(",", ":"))


def unpacked(text: Any, known: Iterable[Family]) -> list[Family]:
    """Families of another worker, those of them that are ``known`` here: it may be of another release."""
    given: Mapping[str, Any] = json.loads(text) if isinstance(text, str) else {}
    return [
        family._replace(
            samples=[Sample(str(suffix), _labels(labels), float(value)) for suffix, labels, value in samples]
        )
        for family in known
        if (samples := given.get(family.name))
    ]


def _labels(labels: Iterable[Any]) -> Labels:
    return tuple((str(name), str(value)) for name, value in labels)
