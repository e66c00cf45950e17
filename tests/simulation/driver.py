"""Sessions with the server of a simulation. They stand in for psycopg2's connections, below the product's own pool and queries."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, MutableSequence
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import psycopg2
import psycopg2.extensions as ext
from gevent.event import Event

from pgbus_gevent.database.green import STATEMENT_GRACE
from pgbus_gevent.errors import DatabaseUnavailable

from . import clock
from .answers import answer
from .database import Ear
from .loop import CLOCK
from .server import Server

_FIRST_DESCRIPTOR = 10_000_000


class Notify(NamedTuple):
    """A notification, as psycopg2 shows it."""

    channel: str
    payload: str


class Network:
    """The path between the workers and the server, with its troubles, and the sessions on it."""

    def __init__(self, server: Server, chance: Random) -> None:
        self.server = server
        self.chance = chance
        self.sessions: dict[int, Session] = {}
        self.latency = 0.0003
        """The mean time of half a round trip, in seconds."""
        self.away = False
        """Whether the server refuses connections."""
        self.hung = False
        """Whether nothing is answered."""
        self.lose = self.repeat = self.delay = 0.0
        """The share of notifications that are lost, come twice, or come late."""
        self.late = 0.5
        """By how much, at most, in seconds."""
        self.statements = 0
        self._next = _FIRST_DESCRIPTOR

    def descriptor(self) -> int:
        """Return a new descriptor."""
        self._next += 1
        return self._next

    def transit(self) -> float:
        """Return the time of one way, in seconds."""
        return self.chance.expovariate(1 / self.latency)

    def connect(self, worker: str, *, connect_timeout: float, statement_timeout: float) -> Session:
        """Open a session."""
        session = Session(self, worker, connect_timeout=connect_timeout, statement_timeout=statement_timeout)
        try:
            session.wait(2 * self.transit(), connecting=True)
        except psycopg2.Error as error:
            raise DatabaseUnavailable(f"cannot connect to PostgreSQL: {error}") from error
        if self.away:
            session.cut()
            raise DatabaseUnavailable("cannot connect to PostgreSQL: connection refused")
        return session

    def cut(self, chosen: Callable[[Session], bool] = lambda session: True) -> None:
        """Cut sessions."""
        for session in list(self.sessions.values()):
            if chosen(session):
                session.cut()


class Session:
    """One session. It has what the product uses of :class:`pgbus_gevent.database.green.Connection`."""

    def __init__(self, network: Network, worker: str, *, connect_timeout: float, statement_timeout: float) -> None:
        self._network = network
        self.worker = worker
        self.connect_timeout = connect_timeout
        self.statement_timeout = statement_timeout
        self.patience: float | None = None
        self.doubted_until: float | None = None
        self.ask: Callable[[Any], bool] | None = None
        self.expired = False
        self.autocommit = True
        self.own_search_path: str | None = None
        self.closed = 0
        self.broken = False
        self.hung = False
        self.notifies: MutableSequence[Notify] = deque()
        self.listener: Ear | None = None
        self._under_way: deque[tuple[float, Notify]] = deque()
        self._arrived: list[Notify] = []
        self._last_arrival = 0.0
        self._stirred = Event()
        self._descriptor = network.descriptor()
        network.sessions[self._descriptor] = self
        clock.loop().levels[self._descriptor] = self._level
        self.info = SimpleNamespace(backend_pid=self._descriptor, transaction_status=ext.TRANSACTION_STATUS_IDLE)

    # the troubles

    def cut(self) -> None:
        """End the session, as the server or the network does."""
        self.broken = True
        self._leave()
        self._stirred.set()
        clock.loop().changed(self._descriptor)

    def _leave(self) -> None:
        self._network.sessions.pop(self._descriptor, None)
        if self.listener is not None:
            self.listener.close()

    # what the product calls

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def _level(self) -> int:
        return 1 if self.broken or self._arrived else 0

    def cursor(self, *_: Any, **__: Any) -> Cursor:
        """Return a database cursor."""
        return Cursor(self)

    def poll(self) -> int:
        """Take the notifications that have arrived."""
        if self.broken and not self._arrived:
            self.closed = 2
            raise psycopg2.OperationalError("server closed the connection unexpectedly")
        for notify in self._arrived:
            self.notifies.append(notify)
        self._arrived.clear()
        return int(ext.POLL_OK)

    def close(self) -> None:
        """Close the session."""
        self.closed = self.closed or 1
        self._leave()
        clock.loop().levels.pop(self._descriptor, None)

    def rollback(self) -> None:
        """Do nothing: no transaction is open."""

    commit = rollback

    def wait(self, seconds: float, *, connecting: bool = False) -> None:
        """Wait for the server, with the deadlines of the product's wait callback."""
        began = CLOCK.now
        most = self.statement_timeout + STATEMENT_GRACE
        allowance = min(self.patience or most, most)
        end = began + (self.connect_timeout if connecting else allowance)
        self.doubted_until = None
        due = began + seconds
        try:
            while True:
                now = CLOCK.now
                if self.broken:
                    raise psycopg2.OperationalError("server closed the connection unexpectedly")
                stuck = self.hung or self._network.hung
                if now >= due and not stuck:
                    return
                last = end if self.doubted_until is None else min(end, self.doubted_until)
                if now >= last:
                    self.expired = True
                    raise psycopg2.OperationalError("timeout expired: the server did not answer in time")
                self._stirred.clear()
                step = 0.25 if stuck else due - now
                self._stirred.wait(max(1e-6, min(last - now, step)))
        except BaseException:
            self.closed = 2
            self._leave()
            raise

    def run(self, statement: str, parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement, and return its rows."""
        if self.closed:
            raise psycopg2.InterfaceError("connection already closed")
        network = self._network
        network.statements += 1
        self.wait(network.transit())
        rows = self._execute(statement, parameters)
        self.wait(network.transit())
        self.poll()
        return rows

    def _execute(self, statement: str, parameters: Any) -> list[tuple[Any, ...]]:
        if statement.startswith(("listen", "unlisten")):
            self._listen(statement)
            return []
        if statement.startswith("notify"):
            self._network.server.notify(statement.split('"')[1], "")
            return []
        if "pg_listening_channels" in statement:
            server = self._network.server
            listens = self.listener is not None and parameters[0] in self.listener.channels
            return [(self._descriptor, listens, server.doorbell, server.control)]
        return answer(self._network.server, statement, parameters)

    # LISTEN

    def _listen(self, statement: str) -> None:
        if self.listener is None:
            self.listener = self._network.server.listen()
            self.listener.on_arrival = self._hear
        for part in statement.split("; "):
            word, _, name = part.partition(" ")
            if part == "unlisten *":
                self.listener.channels.clear()
            elif word == "unlisten":
                self.listener.channels.discard(name.strip('"'))
            else:
                self.listener.channels.add(name.strip('"'))

    def _hear(self) -> None:
        if self.listener is not None:
            for channel, payload in self.listener.take():
                self._deliver(channel, payload)

    def _deliver(self, channel: str, payload: str) -> None:
        """Send a notification over the network, which may lose, repeat or delay it."""
        network = self._network
        chance = network.chance
        kind = payload[:9]
        count, late = 1, 0.0
        if kind.startswith(('["messag', '["moved')) and (network.lose or network.repeat or network.delay):
            if chance.random() < network.lose:
                return
            count += chance.random() < network.repeat
            late = chance.random() * network.late if chance.random() < network.delay else 0.0
        elif kind.startswith('["') and network.lose and "control" not in kind and chance.random() < network.lose:
            return
        notify = Notify(channel, payload)
        for _ in range(count):
            if late:
                # Beside the queue, so that others overtake it.
                clock.loop().timer(late).start(self._arrive, notify)
                late *= chance.random()
                continue
            self._last_arrival = max(self._last_arrival, CLOCK.now + network.transit())
            self._under_way.append((self._last_arrival, notify))
            if len(self._under_way) == 1:
                clock.loop().timer(self._last_arrival - CLOCK.now).start(self._drain)

    def _drain(self) -> None:
        """Take what has come by now over the network, in its order."""
        if self.broken or self.closed:
            return
        under_way = self._under_way
        stuck = self.hung or self._network.hung
        while under_way and under_way[0][0] <= CLOCK.now and not stuck:
            self._arrive(under_way.popleft()[1])
        if under_way:
            clock.loop().timer(0.25 if stuck else under_way[0][0] - CLOCK.now).start(self._drain)

    def _arrive(self, notify: Notify) -> None:
        if not self.broken and not self.closed:
            self._arrived.append(notify)
            clock.loop().changed(self._descriptor)


class Cursor:
    """A database cursor of a session."""

    description = (("column",),)

    def __init__(self, session: Session) -> None:
        self._session = session
        self._rows: list[tuple[Any, ...]] = []

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, statement: str, parameters: Any = None) -> None:
        """Run a statement."""
        self._rows = self._session.run(statement, parameters)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows."""
        return self._rows

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the first row."""
        return self._rows[0] if self._rows else None
