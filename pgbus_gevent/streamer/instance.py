"""The streamer of one process: builds the parts, wires them, owns every connection. The parts do not know one another."""

from __future__ import annotations

import logging
import random
import secrets
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any
from weakref import WeakSet

import gevent
from gevent import monkey
from gevent.event import Event
from gevent.lock import RLock

from ..config import Settings
from ..core import sse
from ..core.client import Client, StreamRequest, Subscription
from ..core.filters import Filters
from ..core.registry import Registry
from ..core.stream_counter import StreamCounter
from ..core.stream_log import Frame, History, RingBudget, StreamLog
from ..database import Database, green
from ..errors import NotPatched
from .body_connection import BodyConnection
from .catch_up import CatchUp
from .connection import Connection
from .dispatcher import StreamEventDispatcher, breathe
from .ephemerals import Ephemerals
from .heartbeat import Heartbeat
from .listener import Listener
from .pruner import Pruner
from .reader import Reader
from .routing import WakeRouter
from .task import Task

logger = logging.getLogger("pgbus_gevent.streamer")

ADMIT_DEADLINE = 10.0
"""Seconds within which a new client must be told where it starts; else it is sent away to come back."""

POLL_SHARE = 0.1
"""Without LISTEN the sweeps come so many times the catch-up interval."""

_instances: WeakSet[Instance] = WeakSet()
# All of this process: a host that forks has to start them after the fork, and stop them before it ends.

_FAREWELL_SLICE = 200
_STOP_TIMEOUT = 1.0


class Instance:
    """One streamer. ``settings`` or any of its fields by keyword; each part can be replaced by a class of the same make.

    :meth:`start` before, :meth:`shutdown` after; both may be called again. All else never yields, unless it says so.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        database: Database | None = None,
        filters: Filters | None = None,
        counter: StreamCounter | None = None,
        listener: Callable[..., Listener] = Listener,
        dispatcher: Callable[..., StreamEventDispatcher] = StreamEventDispatcher,
        reader: Callable[..., Reader] = Reader,
        catch_up: Callable[..., CatchUp] = CatchUp,
        heartbeat: Callable[..., Heartbeat] = Heartbeat,
        registry: Callable[..., Registry] = Registry,
        router: Callable[..., WakeRouter] = WakeRouter,
        ephemerals: Callable[..., Ephemerals] = Ephemerals,
        pruner: Callable[..., Pruner] = Pruner,
        connection: Callable[..., Connection] = Connection,
        body_connection: Callable[..., BodyConnection] = BodyConnection,
        on_failure: Callable[[str], None] | None = None,
        **options: Any,
    ) -> None:
        self.settings = settings or Settings.load(**options)
        self.database = database or Database(self.settings)
        self.filters = filters or Filters()
        self.counter = counter or StreamCounter()
        self.draining = False
        self._make_connection, self._make_body = connection, body_connection
        self.on_failure = on_failure
        self._lingering: set[Client] = set()
        # Bound once: two bound methods for each of ten thousand connections would be more than a megabyte.
        self._callbacks: dict[str, Any] = {"on_drained": self._drained, "on_gone": self._gone}
        self._live = Event()
        self._starting = RLock()
        _instances.add(self)
        self._budget = RingBudget(self.settings.ring_budget)
        self.registry = registry(self._make_log)
        queries = self.database.queries
        self.reader = reader(
            queries,
            serve=self._serve,
            on_moved=self._moved,
            on_ready=self._bring,
            page_size=self.settings.page_size,
            ring_messages=self.settings.ring_messages,
        )
        self.dispatcher: StreamEventDispatcher = dispatcher(
            self.registry,
            self.filters,
            on_behind=self.reader.behind,
            on_error=lambda client: self.end(client, "error"),
            retry=lambda: self.settings.retry,
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
        )
        self.listener = listener(
            self.database.listen,
            on_payloads=self.router.hear,
            on_up=self._listening,
            on_down=self.database.pool.discard_idle,
        )
        self.heartbeat = heartbeat(
            interval=self.settings.heartbeat,
            write_deadline=self.settings.write_deadline,
            admit_deadline=ADMIT_DEADLINE,
            on_end=self.end,
        )
        self.pruner = pruner(
            self.database.pruning, interval=self.settings.prune_interval, forget_after=self.settings.forget_after
        )
        self.tasks = [  # the first two are stopped last, each in its turn
            self._task("dispatcher", self.dispatcher.run),
            self._task("heartbeat", self.heartbeat.run),
            self._task("ephemerals", self.ephemerals.run),
            *(self._task(f"reader-{n}", self.reader.run) for n in range(self.settings.readers)),
            self._task("catch-up", self.catch_up.run),
        ]
        if self.settings.listen:
            self.tasks.append(self._task("listener", self.listener.run))
        if self.settings.prune_interval:
            self.tasks.append(self._task("pruner", self.pruner.run))

    def _task(self, name: str, target: Callable[[], None]) -> Task:
        return Task(name, target, on_failure=self._failed)

    def _make_log(self, name: str) -> StreamLog:
        return StreamLog(name, self._budget, max_frames=self.settings.ring_messages, max_bytes=self.settings.ring_bytes)

    # life

    def start(self) -> Instance:
        """Migrate the schema, if so configured, and start the greenlets; gives way, until the listener is live or it took too long.

        Raises :class:`NotPatched`, and :class:`DatabaseError` where the schema cannot be brought up to date.
        """
        with self._starting:  # greenlets that race wait for the one that came first
            self._start()
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
        if self.settings.migrate:
            self.database.migrate()
        for task in self.tasks:
            task.start()
        if self.settings.listen and not self._live.wait(self.settings.connect_timeout):
            logger.warning("not listening yet after %g s; going on trying", self.settings.connect_timeout)

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
        for n, client in enumerate(self.registry.clients(), 1):
            self.end(client, "restart", retry=random.uniform(1.0, 5.0))
            if n % _FAREWELL_SLICE == 0:
                breathe()
        # 5. Those that were behind get what waits for them, as long as there is time.
        while self._lingering and monotonic() < deadline:
            gevent.sleep(min(0.05, _left(deadline)))
        for client in list(self._lingering):
            client.abort()
        self._lingering.clear()
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
        if self.draining:
            return "restart"
        if not self.alive or (self.settings.listen and not self.listener.live):
            return "unavailable"
        return None

    @property
    def refusal(self) -> str | None:
        """Why a new stream is to be refused now, or None: ``restart``, ``unavailable`` or ``overloaded``."""
        return self.unready or ("overloaded" if len(self.registry) >= self.settings.max_connections else None)

    # clients

    def take_over(self, request: StreamRequest, sock: socket.socket, head: bytes) -> Connection:
        """Serve a client on a socket that is ours from now on; ``head`` is the response's, to go before the first frame."""
        connection = self._make_connection(
            secrets.token_hex(12),
            request,
            sock,
            head,
            **self._callbacks,
            send_buffer=self.settings.send_buffer,
            # Later than our own deadline, which can say why.
            dead_after=self.settings.write_deadline + 5.0,
        )
        self._register(connection)
        return connection

    def body(self, request: StreamRequest) -> BodyConnection:
        """Serve a client through a response body that its server iterates over."""
        connection = self._make_body(secrets.token_hex(12), request, **self._callbacks)
        self._register(connection)
        return connection

    def _register(self, client: Client) -> None:
        refusal = self.refusal
        if refusal is not None:
            # Between the check and here others may have come in.
            client.reason = refusal
            client.finish(sse.shutdown(refusal, refusal_retry()), monotonic())
            return
        if self.settings.max_age:
            client.ends_at = client.opened_at + self.settings.max_age * random.uniform(0.8, 1.2)
        subscription = self.registry.add(client)
        self.counter.connected(client.request.stream)
        self.heartbeat.watch(client)
        self.dispatcher.bring(subscription)
        logger.debug("connection %s opened, stream %r", client.id, client.request.stream)

    def end(self, client: Client, reason: str, retry: float | None = None) -> None:
        """Close a connection from our side, with the reason as its last frame where it can still be told."""
        if client in self._lingering or reason in ("slow-consumer", "error"):
            # Its socket is full, or cannot be written to: there is no room for a last frame.
            self._forget(client, reason)
            client.abort()
            self._lingering.discard(client)
            return
        if not self._forget(client, reason):
            return
        if reason == "unavailable":
            retry = refusal_retry()
        self._lingering.add(client)
        client.finish(sse.shutdown(reason, retry), monotonic())
        if client in self._lingering:
            self.heartbeat.watch(client)

    def _gone(self, client: Client, reason: str) -> None:
        """The client has left, or what waited for it after its end has gone out."""
        self._lingering.discard(client)
        self.heartbeat.forget(client)
        self._forget(client, reason)

    def _forget(self, client: Client, reason: str) -> bool:
        subscription = client.subscription
        if not self.registry.remove(client):
            return False
        client.reason = reason
        if subscription is not None:
            self.reader.forget(subscription)
        self.heartbeat.forget(client)
        self.counter.disconnected(client.request.stream)
        logger.debug("connection %s closed: %s", client.id, reason)
        return True

    def _drained(self, client: Client) -> None:
        if client.subscription is not None:
            self.dispatcher.bring(client.subscription)

    # what the parts have to tell one another

    def _serve(self, log: StreamLog, history: History, subscriptions: list[Subscription]) -> None:
        self.dispatcher.serve(log, history, subscriptions)

    def _bring(self, subscription: Subscription) -> None:
        self.dispatcher.bring(subscription)

    def _moved(self, log: StreamLog, new: int) -> None:
        self.counter.broadcast(log.name, new)
        self.dispatcher.moved(log)

    def _pass_on(self, stream: str, frame: Frame) -> None:
        log = self.registry.log(stream)
        if log is not None:
            self.counter.broadcast(stream)
            self.dispatcher.pass_on(log, frame)

    def _listening(self) -> None:
        self._live.set()
        self.catch_up.ring()

    def _catch_up_interval(self) -> float:
        interval = self.settings.catch_up_interval
        return interval if self.listener.live else interval * POLL_SHARE


def instances() -> list[Instance]:
    """Every Instance of this process that is in use; what a host starts after a fork and stops before it ends."""
    return list(_instances)


def refusal_retry() -> float:
    """When somebody who was refused for a passing reason is to come back: 5 to 15 seconds, so that not all do at once."""
    return random.uniform(5.0, 15.0)


def _left(deadline: float) -> float:
    return max(0.1, min(_STOP_TIMEOUT, deadline - monotonic()))
