"""One simulation: workers, clients and a database, and the operations of a history that are done to them."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent.exceptions import LoopExit
from gevent.greenlet import Greenlet

import pgbus_gevent.database.database
import pgbus_gevent.database.notifications
import pgbus_gevent.database.pool
from pgbus_gevent.core.filters import Filters
from pgbus_gevent.settings.table import Settings
from pgbus_gevent.streamer import dispatcher, turns
from pgbus_gevent.streamer.instance import Instance

from . import clock
from .driver import Network, Session
from .figures import Figures
from .history import History
from .ledger import Message
from .loop import CLOCK, START
from .oracle import CALM_AFTER, Oracle
from .seat import Failure
from .server import Server
from .visitors import Visitor

LABELS = ("red", "blue", "green")
"""Labels with a filter. The others, which begin with ``own``, are labels of subscribers."""

LOOK = 0.5
"""Seconds between two looks at which clients are idle."""

SETTLE = 3.0
"""Seconds at the end, after the time in which everybody must have everything."""

_MOST_DEATHS = 3  # of a task; after six in a minute, a worker gives it up

_BEHIND_SLICE, _TURN_SECONDS = dispatcher.BEHIND_SLICE, turns.TURN_SECONDS

_worlds: list[World] = []


class Worker:
    """A worker process: an Instance, and what ends it."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self._world = world
        self.instance = self._make()
        self.serves = False
        self.sends_left = 0
        """After how many more sends its dispatcher is killed."""

    def _make(self) -> Instance:
        world = self._world
        filters = Filters(CLOCK.monotonic)
        for label in LABELS:
            filters.register(label, partial(_holds, label))
        settings = Settings.load(
            environ={},
            database_url=f"postgresql://{self.name}/simulation",
            migrate=False,
            secret="a secret of the simulation",
            **world.history.settings,
        )
        return Instance(settings, filters=filters, on_failure=self._failed)

    def _failed(self, task: str) -> None:
        self._world.oracle.fail(Failure("worker", f"{task} of {self.name} was given up"))

    def start(self) -> None:
        """Start it, in a greenlet of its own."""
        self._world.spawn(self._start)

    def _start(self) -> None:
        instance = self.instance
        while True:
            try:
                instance.start()
            except pgbus_gevent.PgbusError:
                gevent.sleep(0.5)
                continue
            break
        self.serves = instance is self.instance

    def kill(self) -> None:
        """End it as SIGKILL does: at once, and without a word to anybody."""
        self.serves = False
        network = self._world.network
        for session in list(network.sessions.values()):
            if session.worker == self.name:
                session.cut()
                session.closed = 2
        for visitor in self._world.visitors.values():
            if visitor.worker is self and visitor.line is not None:
                visitor.leave(pieces=0, back=self._world.chance.uniform(0.05, 1.0))
        tasks = list(self.instance.tasks.values())
        for task in tasks:
            task._stopping = True
        gevent.killall([task._greenlet for task in tasks if task._greenlet is not None], block=False)
        self.instance.database.close()

    def wound(self, name: str) -> None:
        """Kill a greenlet, unless it would be given up for that."""
        task = self.instance.tasks.get(name)
        if not self.serves or task is None or len(task.deaths) > _MOST_DEATHS:
            return
        if task._greenlet is not None and not task._greenlet.dead:
            gevent.kill(task._greenlet)
            self._world.excuse(0.5, 2.0 if name in ("dispatcher", "heartbeat", "reader-0") else 4.0)

    def sent(self) -> None:
        """Count a send to a client."""
        self.sends_left -= 1
        if self.sends_left == 0:
            self.wound("dispatcher")

    def stop(self) -> None:
        """End it as SIGTERM does."""
        self.serves = False
        self._world.spawn(self.instance.shutdown, 2.0)

    def come_back(self) -> None:
        """Start it anew."""
        self.instance = self._make()
        self.start()


def _holds(label: str, context: Any, stream: str) -> bool:
    return bool(context.may_see(label))


class World:
    """Does the operations of a history. :meth:`run` returns the first failure, or None."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.figures = Figures()
        loop = clock.begin(history.seed)
        # Greenlets report their exceptions to the hub, which would only print them.
        clock.put(gevent.get_hub(), "handle_error", self._broke)
        self.chance = Random(history.seed * 7 + 1)
        loop.shuffle = history.scheduler["shuffle"]
        CLOCK.step, CLOCK.look = history.scheduler["step"], history.scheduler["look"]
        _cut_slices(history.scheduler.get("slice"))
        self.server = Server(Random(history.seed * 7 + 2), step=history.scheduler["commit"], seed=history.seed)
        self.network = Network(self.server, Random(history.seed * 7 + 3))
        self.network.latency = history.scheduler["latency"]
        self.oracle = Oracle(self.server, self.figures)
        self.oracle.bound = history.settings["catch_up_interval"] + 0.6
        self.oracle.write_deadline = history.settings["write_deadline"]
        self.oracle.heartbeat = history.settings["heartbeat"]
        self.oracle.ring_messages = history.settings["ring_messages"]
        self.oracle.page_size = history.settings["page_size"]
        self.oracle.has_steward = history.workers > 1
        self.server.on_commit = self.oracle.committed
        self.server.on_ephemeral = self.oracle.whispers.sent
        self.visitors: dict[int, Visitor] = {}
        self.greenlets: list[Greenlet[..., Any]] = []
        self.workers = [Worker(self, f"w{number}") for number in range(history.workers)]
        self._messages = 0
        self._turn = 0

    def _broke(self, context: object, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, gevent.GreenletExit):
            where = "".join(traceback.format_tb(trace)[-2:]) if trace is not None else ""
            self.oracle.fail(Failure("worker", f"a greenlet failed: {error!r} {where}"))

    def spawn(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Run a function in a greenlet that ends with the simulation."""
        if len(self.greenlets) > 200:
            self.greenlets = [each for each in self.greenlets if not each.dead]
        self.greenlets.append(gevent.spawn(function, *arguments))

    def excuse(self, seconds: float, unrest: float | None = None) -> None:
        """Note a trouble from which workers may need so many seconds to recover, and ``unrest`` until there is calm again."""
        oracle, now = self.oracle, CLOCK.now
        oracle.excused_until = max(oracle.excused_until, now + seconds)
        oracle.calm_from = max(oracle.calm_from, now + (seconds + CALM_AFTER if unrest is None else unrest))
        oracle.troubled_at = now

    def pick(self) -> Worker | None:
        """Return the worker to which the next client is sent."""
        serving = [worker for worker in self.workers if worker.serves]
        self._turn += 1
        return serving[self._turn % len(serving)] if serving else None

    @property
    def failed_at(self) -> float:
        """When the first promise was broken, in seconds from the beginning."""
        return self.oracle.failed_at - START

    # running

    def run(self) -> Failure | None:
        """Do the operations, one after the other, and let everything come to rest."""
        _worlds.append(self)
        logger = logging.getLogger("pgbus_gevent")
        handler = _Errors(self.oracle)
        logger.addHandler(handler)
        logger.propagate = False
        try:
            self._run()
        except LoopExit:
            self.oracle.fail(Failure("worker", f"{clock.loop().steps} steps were not enough"))
        finally:
            logger.removeHandler(handler)
            self._end()
            _worlds.remove(self)
        return self.oracle.failure

    def _run(self) -> None:
        from .operations import OPERATIONS

        for worker in self.workers:
            worker.start()
        began = CLOCK.now
        looker = gevent.spawn(self._look)
        self.greenlets.append(looker)
        for at, name, *arguments in self.history.operations:
            left = began + at - CLOCK.now
            if left > 0:
                gevent.sleep(left)
            if self.oracle.failure is not None:
                return
            OPERATIONS[name](self, *arguments)
        end = max(CLOCK.now, self.oracle.excused_until) + self.oracle.bound + SETTLE
        while CLOCK.now < end and self.oracle.failure is None:
            gevent.sleep(1.0)
        for worker in self.workers:
            if not worker.serves:
                self.oracle.fail(Failure("worker", f"{worker.name} does not serve at the end"))

    def _look(self) -> None:
        while True:
            gevent.sleep(LOOK)
            for visitor in self.visitors.values():
                visitor.look()

    def _end(self) -> None:
        """End all greenlets."""
        self.network.away = True
        self.network.cut()
        for visitor in self.visitors.values():
            visitor.gone = True
        greenlets = [each for each in self.greenlets if not each.dead]
        for worker in self.workers:
            for task in worker.instance.tasks.values():
                task._stopping = True
                if task._greenlet is not None:
                    greenlets.append(task._greenlet)
        gevent.killall(greenlets, block=True, timeout=5.0)
        clock.loop().clear()

    # what operations use

    def message(self, stream: str, label: str | None = None, exclude: str | None = None, size: int = 0) -> Message:
        """Return a new message."""
        self._messages += 1
        data = f"{self._messages}" + (" " + "x" * size if size else "")
        return Message(stream, data, "e" if self._messages % 3 else None, label, exclude)


class _Errors(logging.Handler):
    """Takes an exception that the product logs, because none is expected, for a failure."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__(logging.ERROR)
        self._oracle = oracle

    def emit(self, record: logging.LogRecord) -> None:
        """Take a log record."""
        if record.exc_info and record.exc_info[1] is not None:
            self._oracle.fail(Failure("worker", f"{record.getMessage()} {record.exc_info[1]!r}"))


def _cut_slices(most: int | None) -> None:
    """Have each pass let others run after so many clients, as it does with many more of them on a real machine."""
    clock.put(dispatcher, "SLICE", most or turns.SLICE)
    clock.put(dispatcher, "BEHIND_SLICE", min(most or _BEHIND_SLICE, _BEHIND_SLICE))
    clock.put(turns, "TURN_SECONDS", 0.0 if most else _TURN_SECONDS)


def _connect(url: str, *, connect_timeout: float, statement_timeout: float, **_: Any) -> Session:
    return _worlds[-1].network.connect(
        urlsplit(url).hostname or "", connect_timeout=connect_timeout, statement_timeout=statement_timeout
    )


def install() -> None:
    """Put the sessions of the simulation in the place of psycopg2's."""
    clock.put(pgbus_gevent.database.database, "connect", _connect)
    clock.put(pgbus_gevent.database.notifications, "connect", _connect)
    clock.put(pgbus_gevent.database.pool, "Connection", Session)
    clock.put(pgbus_gevent.database.pool, "_has_unread_bytes", lambda session: session.broken)
