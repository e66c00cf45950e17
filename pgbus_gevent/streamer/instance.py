"""The streamer of one process: it builds the parts, starts and stops them, and owns every connection."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

import gevent
from gevent import monkey
from gevent.event import Event

from ..core.board import Board
from ..core.events import Events
from ..core.filters import Filters
from ..core.fleet_counts import FleetCounts
from ..core.identity import Identities
from ..core.names import PublicNames
from ..core.registry import Registry
from ..core.ring_budget import RingLimits
from ..core.rows import MessageReads
from ..core.stream_counter import StreamCounter
from ..core.wake_source import WakeSource
from ..database import Database, green
from ..edge import Upstream
from ..errors import InvalidSetting, NotPatched
from ..settings.options import InstanceSettings, chosen
from ..settings.table import Settings
from ..settings.wake import hide, is_redis
from .clients import Clients
from .dispatcher import StreamEventDispatcher
from .fleet_caps import FleetCaps
from .fleet_caps import Source as Caps
from .health import Health
from .heartbeat import Heartbeat, tick_of
from .large_ephemerals import LargeEphemerals
from .limits import Limits
from .listener import Listener
from .presence import PresenceKeeper
from .pruner import Pruner
from .pulse import Pulse
from .reader import Reader
from .revocations import Rechecks, Revocations
from .roll_call import RollCall
from .roll_call import Source as Roll
from .standby_reads import Primary, StandbyReads
from .standby_watch import StandbyWatch
from .starting import Shared
from .steward import Steward
from .steward_duties import do_duty
from .steward_ear import Ear
from .sweeper import Sweeper
from .task import Task
from .turns import breathe

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..redis.parts import RedisParts

_instances: WeakSet[Instance] = WeakSet()
# All Instances of this process, for hosts that fork: they start them after the fork and stop them before the process ends.

_FAREWELL_SLICE, _STOP_TIMEOUT = 200, 1.0


class Instance:
    """One streamer. Call :meth:`start` to serve clients and :meth:`shutdown` to end; both may be called again.

    ``settings`` is a :class:`Settings`; without it, the settings come from ``options``, which are its fields by keyword, and
    from the environment. ``database``, ``filters``, ``counter`` and ``events`` are made from the settings if they are not given.
    ``on_failure`` is called with the name of a task that died too often and is given up. With ``read_only`` the Instance only
    delivers: it removes no messages, keeps no presence, and its database sessions refuse to write. With the setting ``upstream`` it
    is an edge, and only delivers what its origin sends; ``database`` is then an :class:`Upstream`.

    Raises :class:`InvalidSetting`, or :class:`InvalidArgument` for both. A method or property yields only if its docstring says so.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        database: Database | None = None,
        filters: Filters | None = None,
        counter: StreamCounter | None = None,
        events: Events | None = None,
        on_failure: Callable[[str], None] | None = None,
        read_only: bool = False,
        **options: Unpack[InstanceSettings],
    ) -> None:
        self.settings = settings = chosen("Instance", settings, options)
        self.upstream = Upstream(settings) if settings.upstream is not None and database is None else None
        # An Upstream has all of a Database that the tasks of an edge use.
        self.database = database or cast(Database, self.upstream) or Database(settings, read_only=read_only)
        self.filters = filters or Filters(monotonic, unasked=(gevent.Greenlet,))  # yet to find its answer
        self.stream_apps: WeakSet[Any] = WeakSet()  # the WSGI applications that serve this Instance's streams
        self.backstage: object = None  # the Backstage of these applications: metrics, console, publishing over HTTP
        self.on_failure = on_failure
        self._starting = Shared(self._start)  # greenlets that call start() at the same time share one attempt
        _instances.add(self)
        self.board = Board(
            Event,
            RingLimits(settings.ring_messages, settings.ring_bytes, settings.ring_budget),
            tick=tick_of(settings.heartbeat, settings.write_deadline, settings.away_after),
            counter=counter,
            events=events or Events(clock=monotonic),
        )
        if self.upstream is not None:
            self.upstream.registry = self.board.registry
            self.board.follow_all, self.board.steward_until = False, inf
        self._build(read_only)
        self._add_tasks(read_only)

    def _build(self, read_only: bool) -> None:
        """Make the parts. Each is given the board and, if it needs it, the database."""
        settings, database, board = self.settings, self.database, self.board
        identities = Identities(settings.secret)
        self.presence = PresenceKeeper(
            database.presence,
            tracked=PublicNames(settings.presence),
            ttl=settings.presence_ttl,
            grace=settings.presence_grace,
        )
        what = "the origin" if self.upstream else "the database"
        self.pulse = Pulse(database, patience=settings.away_after, what=what, board=board)
        self.health = Health(self.pulse)
        counts = FleetCounts(settings.secret)
        self.clients = Clients(
            board,
            limits=Limits.of(settings),
            health=self.health,
            presence=self.presence,
            filters=self.filters,
            identities=identities,
            elsewhere=counts,
            send_buffer=settings.send_buffer,
            dead_after=settings.write_deadline + 5.0,  # after our own deadline, which closes with a reason
        )
        self.dispatcher = StreamEventDispatcher(
            board,
            self.clients,
            filters=self.filters,
            identities=identities,
            retry=settings.retry,
            heartbeat=settings.heartbeat,
        )
        self.heartbeat = Heartbeat(
            board,
            self.clients,
            interval=settings.heartbeat,
            write_deadline=settings.write_deadline,
            admit_deadline=settings.away_after,
        )
        reads: Primary = database.queries
        self.standby_watch: StandbyWatch | None = None
        self.standby_reads: StandbyReads | None = None
        if database.standby is not None and not read_only:  # to check the standby, the primary writes
            self.standby_watch = watch = StandbyWatch(database.standby, board)
            reads = self.standby_reads = StandbyReads(reads, database.standby, watch, board.registry)
        self.ear = Ear(database)
        self.steward = Steward(database.stewardship, board, self.ear, may_lead=not read_only)
        near, wakes, roll, caps = self._with_redis(reads)
        self.reader = Reader(near, board, page_size=settings.page_size, ring_messages=settings.ring_messages)
        self.sweeper = Sweeper(reads, board, interval=settings.catch_up_interval)
        self.large_ephemerals = LargeEphemerals(database.queries, board)
        self.listener = Listener(wakes, board)
        self.revocations = Revocations(
            database.queries, board, self.clients, interval=settings.catch_up_interval, outlets=self.ear.outlets
        )
        self.rechecks = Rechecks(board, self.clients, interval=settings.recheck)
        self.fleet_caps = FleetCaps(caps, board, self.clients, counts)
        self.roll_call = RollCall(roll, board, self.clients, port=settings.port)
        self._add_duties()

    def _add_duties(self) -> None:
        settings, source = self.settings, self.database.pruning
        self.pruner = Pruner(source, self.board, interval=settings.prune_interval, forget_after=settings.forget_after)
        self.steward.add_duty("revocations", self.revocations.watch, settings.catch_up_interval)
        self.steward.add_duty("presence", self.presence.expire, self.presence.expire_interval)
        if settings.prune_interval:
            self.steward.add_duty("pruning", self.pruner.prune, settings.prune_interval)

    def _with_redis(self, reads: Primary) -> tuple[MessageReads, WakeSource, Roll, Caps]:
        """Return where the reader reads, where wakes come from, and where workers report: Redis, if the settings name one."""
        wake = self.settings.wake
        self.redis: RedisParts | None = None
        if not is_redis(wake) or self.upstream is not None:
            return reads, self.database, self.database.fleet, self.database.caps
        try:
            from ..redis.parts import RedisParts
        except ImportError:
            raise InvalidSetting("wake", hide(wake), "it needs redis-py: pip install 'pgbus-gevent[redis]'") from None
        self.redis = RedisParts(wake, self.database, reads, self.board, self.steward)
        self.steward.outlets.append(self.redis.relay)
        self.presence.renewals = self.redis.leases
        self.steward.add_duty("roll", self.redis.roll.collect, 5.0)
        self.steward.add_duty("leases", self.redis.leases.collect, 5.0)
        return self.redis.reads, self.redis.wakes, self.redis.roll, self.redis.caps

    def _add_tasks(self, read_only: bool) -> None:
        settings, writes = self.settings, not read_only and self.upstream is None
        self.tasks = self.health.tasks
        self._add_task("dispatcher", self.dispatcher.run)
        self._add_task("heartbeat", self.heartbeat.run)
        self._add_task("ephemerals", self.large_ephemerals.run)
        for n in range(settings.readers):
            self._add_task(f"reader-{n}", self.reader.run)
        self._add_task("sweeper", self.sweeper.run)
        if self.upstream is None:
            self._add_task("steward", self.steward.run)
        self._add_task("revocations", self.revocations.run)
        self._add_task("pulse", self.pulse.run)
        if writes:
            self._add_task("presence", self.presence.run)
        if writes and (settings.max_per_owner or settings.max_per_address):
            self._add_task("caps", self.fleet_caps.run)
        if not read_only:
            self._add_task("roll-call", self.roll_call.run)
        if self.standby_watch is not None:
            self._add_task("standby", self.standby_watch.run)
        if settings.recheck:
            self._add_task("rechecks", self.rechecks.run)
        if settings.wake != "poll":
            self._add_task("listener", self.listener.run)
        if settings.wake != "poll" and self.upstream is None:
            self._add_task("ear", self.ear.run)
        if self.redis is not None and writes:
            self._add_task("relay", self.redis.relay.run)
        if settings.prune_interval and writes:
            self._add_task("pruner", self.pruner.run)
        if writes:
            for duty in self.steward.duties:
                self._add_task(f"duty-{duty.name}", partial(do_duty, duty, self.steward))

    def _add_task(self, name: str, target: Callable[[], None]) -> None:
        self.tasks[name] = Task(name, target, on_failure=self._failed)

    # life

    def start(self) -> Instance:
        """Start the tasks, after migrating the schema if the setting ``migrate`` says so. Return the Instance itself.

        It yields until the listener is live and revocations were read, at most ``connect_timeout``. Concurrent calls share it.

        Raises :class:`NotPatched` if the process is not patched for gevent, and :class:`DatabaseError` if the schema is not up
        to date and cannot be migrated. If it is to be migrated and the database is away, that is a :class:`DatabaseUnavailable`.
        """
        self._starting()
        return self

    def _start(self) -> None:
        if self.draining or self.tasks["dispatcher"].running:
            return
        if not monkey.is_module_patched("socket"):
            raise NotPatched(
                "this process is not patched for gevent, so one wait would stop every client: make"
                " `from gevent import monkey; monkey.patch_all()` the first lines of the program"
            )
        green.install()
        self.pulse.begin(self.database.prepare())
        if self.draining:  # it was shut down meanwhile, and nobody would end tasks that start now
            return
        self.clients.fit()
        for task in self.tasks.values():
            task.start()
        end = monotonic() + self.settings.connect_timeout
        if "listener" in self.tasks:
            self.listener.await_session(self.settings.connect_timeout, unless=lambda: self.draining)
        self.revocations.await_look(0.0 if self.draining else max(0.0, end - monotonic()))

    def shutdown(self, timeout: float | None = None) -> None:
        """Send every client away and stop. It yields, for at most ``timeout`` seconds, by default the setting ``grace``.

        Clients that take bytes get the reason ``restart`` and a time to come back. The others are cut off when the time is over.
        """
        if self.draining:
            return
        deadline = monotonic() + (self.settings.grace if timeout is None else timeout)
        # 1. New clients are refused with the reason `restart`.
        self.health.draining = True
        _instances.discard(self)
        # 2. Stop the tasks that make work for the dispatcher, and then the dispatcher. No task can then send a message after a
        # farewell. Clients ask for the messages that were not sent when they come back, by their cursors.
        for name, task in reversed(self.tasks.items()):
            if name != "heartbeat":
                task.stop(_left(deadline))
        for tap in self.board.taps:
            tap.end()
        # 3. Send the farewells, in slices, so that the event loop runs in between.
        for n, _ in enumerate(self.clients.end_all(), 1):
            if n % _FAREWELL_SLICE == 0:
                breathe()
        self.presence.finish(_left(deadline))
        # 4. Blocked clients get the bytes that wait for them, as long as there is time.
        while self.clients.lingering and monotonic() < deadline:
            gevent.sleep(min(0.05, _left(deadline)))
        self.clients.cut_off()
        # 5. Stop the heartbeat, which ended slow consumers meanwhile, and close the database.
        self.tasks["heartbeat"].stop(_left(deadline))
        if self.redis is not None:
            self.redis.close()
        self.database.close()

    def _failed(self, name: str) -> None:
        if self.on_failure is not None:
            self.on_failure(name)

    # state

    @property
    def draining(self) -> bool:
        """Whether the Instance is ending or has ended."""
        return self.health.draining

    @property
    def alive(self) -> bool:
        """Whether every task runs. ``healthz`` answers with it."""
        return self.health.alive

    @property
    def unready(self) -> str | None:
        """Why new clients cannot be served now, or None. ``readyz`` answers with it."""
        return self.clients.unready

    @property
    def registry(self) -> Registry:
        """The clients, and the logs of their streams."""
        return self.board.registry

    @property
    def counter(self) -> StreamCounter:
        """The counts of the streams."""
        return self.board.counter

    @property
    def events(self) -> Events:
        """The instrumentation events of this Instance, to subscribe to."""
        return self.board.events


def instances() -> list[Instance]:
    """Return every Instance of this process that has not been shut down."""
    return list(_instances)


def _left(deadline: float) -> float:
    return max(0.1, min(_STOP_TIMEOUT, deadline - monotonic()))
