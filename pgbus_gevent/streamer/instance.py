"""The streamer of one process: builds the parts, wires them, owns every connection. The parts do not know one another."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, cast
from weakref import WeakSet

import gevent
from gevent import monkey
from gevent.event import Event

from ..config import Settings
from ..core.client import Client, StreamRequest, Subscription
from ..core.events import Broadcast, Events, Gap, ListenerDown, ListenerUp, Passed, Read
from ..core.filters import Filters
from ..core.identity import Identities
from ..core.names import PublicNames
from ..core.registry import Registry
from ..core.stream_counter import StreamCounter
from ..core.stream_log import Frame, RingBudget, StreamLog
from ..database import Database, green
from ..errors import NotPatched
from .body_connection import BodyConnection
from .catch_up import CatchUp
from .clients import Clients, Limits
from .connection import Connection
from .dispatcher import StreamEventDispatcher
from .ephemerals import Ephemerals
from .heartbeat import Heartbeat
from .listener import Listener
from .presence import Attendance, PresenceKeeper
from .pruner import Pruner
from .pulse import Pulse
from .reader import Reader
from .rechecks import Rechecks
from .revocations import Revocations
from .routing import WakeRouter
from .starting import Shared
from .task import Task
from .turns import breathe

logger = logging.getLogger("pgbus_gevent.streamer")

POLL_SHARE = 0.1
"""Without LISTEN the sweeps come so many times the catch-up interval."""

_instances: WeakSet[Instance] = WeakSet()
# All of this process: a host that forks has to start them after the fork, and stop them before it ends.

_FAREWELL_SLICE = 200
_STOP_TIMEOUT = 1.0


class Instance:
    """One streamer. ``settings`` or any of its fields by keyword; each part can be replaced by a class of the same make.

    With ``read_only`` it delivers and does nothing else: it removes no messages, keeps no presence, and its database sessions
    refuse to write.

    :meth:`start` before, :meth:`shutdown` after; both may be called again. All else never yields, unless it says so.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        database: Database | None = None,
        filters: Filters | None = None,
        counter: StreamCounter | None = None,
        events: Events | None = None,
        listener: Callable[..., Listener] = Listener,
        dispatcher: Callable[..., StreamEventDispatcher] = StreamEventDispatcher,
        reader: Callable[..., Reader] = Reader,
        catch_up: Callable[..., CatchUp] = CatchUp,
        heartbeat: Callable[..., Heartbeat] = Heartbeat,
        registry: Callable[..., Registry] = Registry,
        clients: Callable[..., Clients] = Clients,
        router: Callable[..., WakeRouter] = WakeRouter,
        ephemerals: Callable[..., Ephemerals] = Ephemerals,
        connection: Callable[..., Connection] = Connection,
        body_connection: Callable[..., BodyConnection] = BodyConnection,
        on_failure: Callable[[str], None] | None = None,
        read_only: bool = False,
        **options: Any,
    ) -> None:
        self.settings = settings or Settings.load(**options)
        self.database = database or Database(self.settings, read_only=read_only)
        self.filters = filters or Filters(monotonic, catch=(Exception, gevent.Timeout))
        self.counter = counter or StreamCounter()
        # gevent's Timeout is no Exception, and a handler that waits all the same may have one.
        self.events = events or Events(clock=monotonic, catch=(Exception, gevent.Timeout))
        self._broadcasts = self.events.signal(Broadcast)
        self.draining = False
        self.stream_apps: WeakSet[Any] = WeakSet()  # those that serve its streams
        self.backstage: object = None  # what an application keeps beside it, for its operators
        self.on_failure = on_failure
        self._live = Event()
        self._starting = Shared(self._start)  # greenlets that race share one attempt
        _instances.add(self)
        self.budget = RingBudget(self.settings.ring_budget)
        self.registry = registry(self._make_log)
        queries = self.database.queries
        self.reader = reader(
            queries,
            serve=lambda *page: self.dispatcher.serve(*page),
            on_moved=self._moved,
            on_ready=lambda subscription: self.dispatcher.bring(subscription),
            on_rewound=lambda log: self.dispatcher.rewound(log),
            page_size=self.settings.page_size,
            ring_messages=self.settings.ring_messages,
            read=self.events.signal(Read),
        )
        identify = Identities(self.settings.secret, catch=(Exception, gevent.Timeout)).of
        self.dispatcher: StreamEventDispatcher = dispatcher(
            self.registry,
            self.filters,
            on_behind=self.reader.behind,
            on_error=lambda client: self.clients.end(client, "error"),
            retry=lambda: self.settings.retry,
            heartbeat=self.settings.heartbeat,
            identify=identify,
            passed=self.events.signal(Passed),
            gaps=self.events.signal(Gap),
        )
        self.catch_up = catch_up(
            queries,
            self.registry,
            on_moved=self.reader.look,
            on_new=self._moved,
            interval=self._catch_up_interval,
        )
        self.ephemerals = ephemerals(
            queries, wanted=lambda stream: self.registry.log(stream) is not None, pass_on=self._pass_on
        )
        self.router = router(
            self.registry,
            on_ring=self.catch_up.ring,
            on_moved=self._moved,
            look=self.reader.look,
            take=self.ephemerals.take,
            on_control=lambda: self.revocations.ring(),
        )
        self.listener = listener(
            self.database.listen,
            on_payloads=self.router.hear,
            on_up=self._listening,
            on_down=self.database.pool.discard_idle,
            up=self.events.signal(ListenerUp),
            down=self.events.signal(ListenerDown),
        )
        self.events.subscribe(ListenerDown, lambda lost: self.catch_up.doubt())
        self.heartbeat = heartbeat(
            interval=self.settings.heartbeat,
            write_deadline=self.settings.write_deadline,
            admit_deadline=self.settings.away_after,
            on_end=lambda client, reason: self.clients.end(client, reason),
        )
        self.presence = PresenceKeeper(
            self.database.presence,
            tracks=PublicNames(self.settings.presence).__contains__,
            ttl=self.settings.presence_ttl,
            grace=self.settings.presence_grace,
        )
        self.attendance = Attendance(self.presence)
        self.clients: Clients = clients(
            self.registry,
            self.counter,
            events=self.events,
            limits=Limits.of(self.settings),
            unready=self._refusing,
            make_connection=partial(
                connection,
                send_buffer=self.settings.send_buffer,
                # Later than our own deadline, which can say why.
                dead_after=self.settings.write_deadline + 5.0,
            ),
            make_body=body_connection,
            bring=self.dispatcher.bring,
            joined=self.attendance.joined,
            left=self._left,
            renamed=self.attendance.renamed,
            watch=self.heartbeat.watch,
            unwatch=self.heartbeat.forget,
            identify=identify,
        )
        self.revocations: Revocations = Revocations(
            queries, end_owner=self.clients.end_owner, interval=self._catch_up_interval
        )
        self.pulse = Pulse(self.database, patience=self.settings.away_after)
        self.pruner = Pruner(
            self.database.pruning, interval=self.settings.prune_interval, forget_after=self.settings.forget_after
        )
        self.tasks = [  # the first two are stopped last, each in its turn
            self._task("dispatcher", self.dispatcher.run),
            self._task("heartbeat", self.heartbeat.run),
            self._task("ephemerals", self.ephemerals.run),
            *(self._task(f"reader-{n}", self.reader.run) for n in range(self.settings.readers)),
            self._task("catch-up", self.catch_up.run),
            self._task("revocations", self.revocations.run),
            self._task("pulse", self.pulse.run),
        ]
        if not read_only:
            self.tasks.append(self._task("presence", self.presence.run))
        if self.settings.recheck:
            self.rechecks = Rechecks(self.registry, self.clients.end, self.clients.adopt, self.settings.recheck)
            self.tasks.append(self._task("rechecks", self.rechecks.run))
        if self.settings.listen:
            self.tasks.append(self._task("listener", self.listener.run))
        if self.settings.prune_interval and not read_only:
            self.tasks.append(self._task("pruner", self.pruner.run))

    def _task(self, name: str, target: Callable[[], None]) -> Task:
        return Task(name, target, on_failure=self._failed)

    def _make_log(self, name: str) -> StreamLog:
        return StreamLog(name, self.budget, max_frames=self.settings.ring_messages, max_bytes=self.settings.ring_bytes)

    # life

    def start(self) -> Instance:
        """Migrate the schema, if so configured, and start the greenlets; gives way, until the listener is live or it took too long.

        Raises :class:`NotPatched`, and :class:`DatabaseError` where the schema is not, and cannot be brought, up to date.
        """
        self._starting()
        return self

    def _start(self) -> None:
        if self.draining or self.tasks[0].running:
            return
        if not monkey.is_module_patched("socket"):
            raise NotPatched(
                "this process is not patched for gevent, so one wait would stop every client: make"
                " `from gevent import monkey; monkey.patch_all()` the first lines of the program"
            )
        green.install()
        self.pulse.begin(self.database.prepare())
        self.clients.fit()
        for task in self.tasks:
            task.start()
        if self.settings.listen and not self._live.wait(self.settings.connect_timeout):
            logger.warning("not listening yet after %g s; still trying", self.settings.connect_timeout)

    def shutdown(self, timeout: float | None = None) -> None:
        """Send every client away to come back, and stop; takes at most ``timeout`` seconds, by default the setting ``grace``.

        Clients that read are told ``restart`` and when to come back; the others are cut off when the time is over.
        """
        if self.draining:
            return
        deadline = monotonic() + (self.settings.grace if timeout is None else timeout)
        # 1. Nobody comes in any more: whoever tries is told to come back.
        self.draining = True
        _instances.discard(self)
        # 2. No more work for the dispatcher; what it would still have sent, the cursors will ask for.
        for task in reversed(self.tasks[2:]):
            task.stop(_left(deadline))
        # 3. The dispatcher, before the farewells, so that none of its sends can come after one.
        self.tasks[0].stop(_left(deadline))
        # 4. Farewells, in slices, each with its own time to come back.
        for n, _ in enumerate(self.clients.end_all(), 1):
            if n % _FAREWELL_SLICE == 0:
                breathe()
        self.presence.finish(_left(deadline))
        # 5. Those that were behind get what waits for them, as long as there is time.
        while self.clients.lingering and monotonic() < deadline:
            gevent.sleep(min(0.05, _left(deadline)))
        self.clients.cut_off()
        # 6. The heartbeat, which watched over those, and the database.
        self.tasks[1].stop(_left(deadline))
        self.database.close()

    def _failed(self, name: str) -> None:
        if self.on_failure is not None:
            self.on_failure(name)

    # state

    @property
    def alive(self) -> bool:
        """Whether every part runs; what healthz tells."""
        return all(task.running for task in self.tasks)

    @property
    def unready(self) -> str | None:
        """Why new clients cannot be served now, or None; what readyz tells."""
        return self.clients.refusal() or ("unavailable" if self.pulse.trouble else None)

    def _refusing(self) -> str | None:
        """Why whoever comes is refused. A short absence of the database is no reason: who comes waits for it."""
        if self.draining:
            return "restart"
        return "unavailable" if not self.alive or self.pulse.away else None

    # clients

    def refusal(self, request: StreamRequest) -> str | None:
        """Why a new stream is to be refused now, or None: see :meth:`Clients.refusal`."""
        return self.clients.refusal(request.owner, request.address)

    def take_over(self, request: StreamRequest, sock: socket.socket, head: bytes, chunked: bool = False) -> Client:
        """Serve a client on a socket that is ours from now on: see :meth:`Clients.take_over`."""
        return self.clients.take_over(request, sock, head, chunked)

    def body(self, request: StreamRequest) -> BodyConnection:
        """Serve a client through a response body that its server iterates over."""
        return cast("BodyConnection", self.clients.body(request))

    # what the parts have to tell one another

    def _left(self, subscription: Subscription) -> None:
        self.reader.forget(subscription)
        self.dispatcher.forget(subscription)
        self.attendance.left(subscription)

    def _moved(self, log: StreamLog, new: int) -> None:
        self.counter.broadcast(log.name, new)
        if new and self._broadcasts.handlers:
            self._broadcasts.emit(Broadcast(log.name, new))
        self.dispatcher.moved(log)

    def _pass_on(self, stream: str, frame: Frame) -> None:
        if self.registry.log(stream) is not None:
            self.counter.broadcast(stream)
            if self._broadcasts.handlers:
                self._broadcasts.emit(Broadcast(stream, 1))
            self.dispatcher.pass_on(stream, frame)

    def _listening(self) -> None:
        self._live.set()
        self.catch_up.resync()
        self.revocations.ring()

    def _catch_up_interval(self) -> float:
        return self.settings.catch_up_interval * (1.0 if self.listener.live else POLL_SHARE)


def instances() -> list[Instance]:
    """Every Instance of this process that is in use; what a host starts after a fork and stops before it ends."""
    return list(_instances)


def _left(deadline: float) -> float:
    return max(0.1, min(_STOP_TIMEOUT, deadline - monotonic()))
