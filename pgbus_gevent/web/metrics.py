"""The metrics of a worker. Some are counted from instrumentation events; the others are read from the parts at each scrape.

No label has a value for each stream or owner. Their number is not bounded, and each value would be a time series forever.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from time import time

from prometheus_client.core import InfoMetricFamily, Metric

from ..core import events
from ..core.histogram import Histogram
from ..publishing import observed
from ..publishing.coalescer import total_counts
from ..streamer.instance import Instance
from . import process
from .families import counter, counters, gauge, histograms

_BELIEVED = (
    86_400.0  # seconds; a row that was written by hand may have any time, and one sum of infinity would stay for ever
)
# Bounds in seconds, from what a quiet machine needs to what somebody should look at.
_PASS = (0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_CONNECT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_READ = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

_ENDS = {
    "answered", "client left", "error", "expired", "finished", "max-age", "replaced", "restart", "revoked",
    "sent data on an event stream", "slow-consumer", "unavailable",
}  # fmt: skip
_KINDS = ("open", "follow", "page")
_REFUSALS = ("overloaded", "restart", "too-many-connections", "unavailable")
_GAPS = ("ahead", "expired", "invalid-cursor")

TROUBLES = {
    "refused": _REFUSALS,
    "lost": ("connection-lost", "slow-consumer", "unavailable", "error"),
    "gaps": _GAPS,
}
"""What an operator should see of clients, by its kind: the reasons, in the order of :meth:`Metrics.troubles`."""


class Metrics:
    """Counts the events of ``instance`` from now on. Nothing here yields, because the event loop may call the handlers."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._roll_call = instance.roll_call  # it knows the clock of the database
        self.passes = Histogram(_PASS)
        self.latency = Histogram(_LATENCY)
        self._connects = Histogram(_CONNECT)
        # All labels are there from the start with 0, so that the first event is an increase.
        self._reads = {kind: Histogram(_READ) for kind in _KINDS}
        self._rows = Counter(dict.fromkeys(_KINDS, 0))
        self._ends = Counter(dict.fromkeys([_label(reason) for reason in [*_ENDS, ""]], 0))
        self._refusals = Counter(dict.fromkeys(_REFUSALS, 0))
        self._gaps = Counter(dict.fromkeys(_GAPS, 0))
        self._slow = 0
        subscribe = instance.events.subscribe
        subscribe(events.Passed, self._passed)
        subscribe(events.Read, self._read)
        subscribe(events.Admitted, self._admitted)
        subscribe(events.Disconnected, self._disconnected)
        subscribe(events.Refused, self._refused)
        subscribe(events.Gap, self._gap)
        subscribe(events.SlowConsumer, self._slow_consumer)

    # events

    def _passed(self, event: events.Passed) -> None:
        self.passes.observe(event.seconds)
        if event.appended_at is not None and event.connections:
            late = time() + (self._roll_call.clock_offset or 0.0) - event.appended_at
            if late < _BELIEVED:
                self.latency.observe(max(0.0, late))

    def _read(self, event: events.Read) -> None:
        self._reads[event.kind].observe(event.seconds)
        self._rows[event.kind] += event.rows

    def _admitted(self, event: events.Admitted) -> None:
        self._connects.observe(event.seconds)

    def _disconnected(self, event: events.Disconnected) -> None:
        self._ends[_label(event.reason)] += 1

    def _refused(self, event: events.Refused) -> None:
        self._refusals[event.reason] += 1

    def _gap(self, event: events.Gap) -> None:
        self._gaps[event.reason] += 1

    def _slow_consumer(self, event: events.SlowConsumer) -> None:
        self._slow += 1

    def troubles(self) -> dict[str, list[int]]:
        """How often each of :data:`TROUBLES` has happened so far."""
        counts = {"refused": self._refusals, "lost": self._ends, "gaps": self._gaps}
        return {kind: [counts[kind][reason] for reason in reasons] for kind, reasons in TROUBLES.items()}

    # families

    def collect(self) -> list[Metric]:
        """The metrics of this worker, as of now."""
        return [
            *self._clients(),
            *self._delivery(),
            *self._database(),
            *self._steward(),
            *self._redis(),
            *self._hop(),
            *self._extras(),
            *process.families(),
        ]

    def _clients(self) -> Iterable[Metric]:
        instance, total = self._instance, self._instance.counter.total
        yield InfoMetricFamily("pgbus", "The release that runs; always 1", {"version": process.release()})
        yield gauge("pgbus_ready", "1 while new clients can be served, else 0", instance.unready is None)
        yield gauge("pgbus_connections", "Open stream connections", total.active_connections)
        yield gauge(
            "pgbus_connections_max", "The most stream connections that this worker takes", instance.clients.most
        )
        yield counter("pgbus_connections_opened", "Stream connections opened", total.total_connections)
        yield histograms(
            "pgbus_connect_duration_seconds",
            "Time from the request for a stream to pgbus:connected",
            {(): self._connects},
        )
        yield counters("pgbus_disconnects", "Stream connections that ended, by the reason", "reason", self._ends)
        yield counters(
            "pgbus_refusals", "Clients refused for a passing reason, by the reason", "reason", self._refusals
        )
        yield counter("pgbus_slow_consumers", "Connections closed because they took no bytes for too long", self._slow)
        yield counters("pgbus_gaps", "Gaps reported to clients, by the reason", "reason", self._gaps)
        yield gauge("pgbus_streams", "Streams with at least one connection", len(instance.counter.streams))

    def _delivery(self) -> Iterable[Metric]:
        instance, board = self._instance, self._instance.board
        yield counter(
            "pgbus_messages",
            "Messages received for streams with connections, each counted once in each worker",
            instance.counter.total.broadcasts,
        )
        yield counter(
            "pgbus_sends",
            "Sends to connections; one send carries all messages that the connection lacked",
            instance.dispatcher.sends,
        )
        yield counter("pgbus_heartbeats", "Heartbeats sent to quiet connections", instance.heartbeat.sent)
        yield histograms(
            "pgbus_pass_duration_seconds",
            "Duration of passes over the connections of a stream, including the turns of other streams",
            {(): self.passes},
        )
        yield histograms(
            "pgbus_append_to_send_seconds",
            "Time from the append of the oldest message of a pass, nearly always its commit, until all connections were served",
            {(): self.latency},
        )
        yield counter("pgbus_ephemerals_dropped", "Ephemeral messages dropped in a flood", board.dropped)
        yield counter(
            "pgbus_ephemerals_missed",
            "Ephemeral messages that clients missed because they read too slowly, counted for each client",
            instance.dispatcher.missed,
        )
        yield gauge("pgbus_blocked_bytes", "Memory used by bytes that wait for slow clients", board.backlog.bytes)
        yield gauge("pgbus_ring_bytes", "Memory used by recent messages, in bytes", board.budget.used)
        yield gauge("pgbus_ring_max_bytes", "The most memory for recent messages, in bytes", board.budget.limit)

    def _steward(self) -> Iterable[Metric]:
        steward = self._instance.steward
        if self._instance.settings.upstream is not None:
            return
        yield gauge("pgbus_steward", "1 while this worker is the steward of its database, else 0", steward.leads)
        if steward.silence is not None:
            yield gauge("pgbus_steward_silence_seconds", "Time since the last sign of the steward", steward.silence)
        yield counter("pgbus_steward_elections", "How often this worker became the steward", steward.elections)
        yield counter(
            "pgbus_steward_tails", "Tails of the steward for messages that did not ring", steward.sweeps.tails
        )
        yield counter("pgbus_steward_rung", "Messages for which this worker rang as the steward", steward.sweeps.rung)

    def _database(self) -> Iterable[Metric]:
        instance, pool = self._instance, self._instance.database.pool
        if instance.settings.wake != "poll":
            yield gauge("pgbus_listener_up", "1 while the LISTEN session is live, else 0", instance.listener.live)
            yield counter("pgbus_listener_losses", "LISTEN sessions that were lost", instance.listener.reconnects)
        yield counter("pgbus_catch_up_sweeps", "Sweeps for messages without a notification", instance.sweeper.sweeps)
        yield histograms(
            "pgbus_read_duration_seconds",
            "Duration of reads for clients behind the ring, by the kind",
            {(kind,): reads for kind, reads in self._reads.items()},
            label="kind",
        )
        yield counters("pgbus_read_rows", "Messages read for clients behind the ring", "kind", self._rows)
        yield gauge("pgbus_pool_connections_in_use", "Pooled database connections in use", pool.in_use)
        yield gauge("pgbus_pool_connections_max", "The most pooled database connections", pool.size)
        yield gauge(
            "pgbus_prune_overdue_seconds",
            "How long the oldest messages are kept beyond their retention; only from the worker that prunes",
            instance.pruner.overdue,
        )
        yield gauge(
            "pgbus_database_clock_offset_seconds",
            "How far the clock of the database is ahead of the clock of this host",
            self._roll_call.clock_offset,
        )
        if instance.standby_watch is not None and instance.standby_reads is not None:
            reads, watch = instance.standby_reads.counts, instance.standby_watch
            yield counters(
                "pgbus_reads_by_server", "Reads of the streams, by the server that answered", "server", reads
            )
            yield gauge("pgbus_standby_up", "1 while reads go to the standby, else 0", not watch.fault)
            yield gauge("pgbus_standby_lag_seconds", "How far the standby was behind at the last check", watch.lag)

    def _redis(self) -> Iterable[Metric]:
        redis = self._instance.redis
        if redis is None:
            return
        relay = redis.relay
        yield gauge("pgbus_redis_up", "1 while wakes come through Redis, else 0", redis.wakes.session is not None)
        yield counter("pgbus_redis_fallbacks", "Times that PostgreSQL was used instead of Redis", redis.wakes.fallbacks)
        yield counters(
            "pgbus_redis_reads", "Openings and pages of streams, by where they came from", "from", redis.reads.answered
        )
        yield gauge("pgbus_relay_up", "1 while this worker relays to Redis, else 0", relay.publishing)
        yield counter("pgbus_relay_wakes", "Wakes published to Redis", relay.published)
        yield gauge("pgbus_relay_lag_seconds", "How long the last wake waited to be published", relay.lag)

    def _hop(self) -> Iterable[Metric]:
        taps, upstream = list(self._instance.board.taps), self._instance.upstream
        if self._instance.settings.worker_token:
            yield gauge("pgbus_edge_connections", "Connections on which edges hear of new messages", len(taps))
            yield gauge("pgbus_edge_streams", "Streams that edges follow, for each connection", sum(map(len, taps)))
            yield counter(
                "pgbus_edge_ephemerals_dropped",
                "Ephemeral messages dropped because an edge did not take them",
                self._instance.board.taps.dropped,
            )
        if upstream is None:
            return
        yield counters("pgbus_hop_reads", "Reads that the edge asked its origin for", "kind", upstream.queries.counts)
        yield counter("pgbus_hop_failures", "Requests that the origin did not serve", upstream.pool.failures)
        session = upstream.session
        yield gauge(
            "pgbus_hop_lines", "Connections on which the edge hears of new messages", session.lines if session else 0
        )
        lag = None if session is None else session.lag
        offset = self._roll_call.clock_offset or 0.0
        yield gauge(
            "pgbus_hop_lag_seconds",
            "How long the last heartbeat of the origin was under way, as far as the clocks agree",
            None if lag is None else max(0.0, lag + offset),
        )

    def _extras(self) -> Iterable[Metric]:
        yield histograms(
            "pgbus_publish_duration_seconds",
            "Duration of broadcasts by this process, by the kind",
            {(kind,): durations for kind, durations in observed.durations.items()},
            label="kind",
        )
        counts = total_counts()
        if counts.written:
            yield counter("pgbus_coalesced_writes", "Writes that were held back", counts.written)
            yield counter("pgbus_coalesced_replaced", "Held-back writes that a later one replaced", counts.replaced)
            yield counter("pgbus_coalesced_published", "Held-back writes that were published", counts.published)
            yield counter("pgbus_coalesced_lost", "Held-back writes that were refused or given up", counts.dropped)
            yield gauge("pgbus_coalesced_waiting", "Writes that wait for the end of their window", counts.waiting)
        if self._instance.settings.presence:
            presence = self._instance.presence
            yield gauge("pgbus_presence_connections", "Connections with a member", len(presence))
            yield gauge("pgbus_presence_failing", "1 while presence cannot be written", presence.failing)


def _label(reason: str) -> str:
    """The label for the reason of an end. All reasons that the system reports, such as resets and timeouts, share one label."""
    return reason.replace(" ", "-") if reason in _ENDS else "connection-lost"
