"""Shared parts of the database tests: sessions by plain psycopg2, a listener on the channel, and a check for waiting sessions.

It is a plugin too, which conftest.py names, for the fixtures at the end.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from time import monotonic
from typing import Any

import gevent
import psycopg2
import psycopg2.extensions as ext
import pytest
from gevent.greenlet import Greenlet
from gevent.server import StreamServer
from gevent.socket import wait_read

from pgbus_gevent.core.buckets import ALL_BUCKETS, channel
from pgbus_gevent.database.embedded import EmbeddedPostgres
from pgbus_gevent.database.migrating import migrate
from pgbus_gevent.testing.databases import TestDatabases

PATIENCE = 40.0
"""Seconds that a test waits for what mostly takes a moment. A busy machine may stand still for several of them."""
BELL = 1885823596
"""The first number of the advisory locks of the two doorbells; the second is 0 or 1."""

NOTIFY = "select pg_notify((select doorbell from pgbus.channels()) || '_' || pgbus._bucket(%s), %s)"
"""A statement that notifies the workers that serve a stream, with a payload."""


def until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """Return the result of ``condition`` once it is true. Raises AssertionError with ``what`` at the deadline."""
    end = monotonic() + timeout
    while not (found := condition()):
        assert monotonic() < end, f"not within {timeout:g} s: {what}"
        gevent.sleep(0.005)
    return found


def raises(sqlstate: str, match: str | None = None) -> Any:
    """Return ``pytest.raises`` for one of PostgreSQL's error codes."""
    return pytest.raises(psycopg2.errors.lookup(sqlstate), match=match)


class Session:
    """One connection in autocommit mode, for one greenlet at a time. Each of its statements ends within 20 s."""

    def __init__(self, url: str, *, role: str = "none") -> None:
        self.connection: Any = psycopg2.connect(url, options=f"-c statement_timeout=20s -c role={role}")
        self.connection.autocommit = True
        self._jobs: list[Greenlet[..., Any]] = []
        self.pid = int(self.connection.info.backend_pid)

    def run(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Run a statement, and return its rows; none if it has no result."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, arguments or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, statement: str, *arguments: Any) -> Any:
        """Return the first value of the first row."""
        return self.run(statement, *arguments)[0][0]

    def call(self, function: str, *arguments: Any, **named: Any) -> Any:
        """Call a function of schema pgbus, and return its result."""
        parts = ["%s"] * len(arguments) + [f"{name} => %s" for name in named]
        return self.one(f"select pgbus.{function}({', '.join(parts)})", *arguments, *named.values())

    @contextmanager
    def transaction(self, isolation: str = "read committed") -> Iterator[Session]:
        """Run the block in a transaction. It is committed at the end, or rolled back if the block raises."""
        self.run(f"begin isolation level {isolation}")
        try:
            yield self
            self.run("commit")
        except BaseException:
            with suppress(psycopg2.Error):  # if the commit failed, there is no transaction any more
                self.run("rollback")
            raise

    def read(self, stream: str, after: int = 0, limit: int = 100_000) -> list[tuple[int, str]]:
        """Return id and data of the messages from ``read_after``."""
        return self.run("select msg_id, data from pgbus.read_after(%s, %s, %s)", stream, after, limit)

    def data(self, stream: str) -> list[str]:
        return [data for _, data in self.read(stream)]

    def column(self, stream: str, column: str) -> list[Any]:
        """Return one column of a stream's rows, in order."""
        rows = self.run(f"select {column} from pgbus.messages where stream = %s order by msg_id", stream)
        return [row[0] for row in rows]

    def queued(self) -> int:
        """Return how many messages of the outbox are visible here, from any transaction."""
        return int(self.one("select count(*) from pgbus.outbox"))

    def spawn(self, statement: str, *arguments: Any) -> Greenlet[..., Any]:
        """Run a statement in a new greenlet. Until it has ended, no other greenlet may use the session."""
        job = gevent.spawn(self.run, statement, *arguments)
        self._jobs.append(job)
        return job

    def close(self) -> None:
        gevent.killall(self._jobs)  # closing during a running statement would block the process for ever
        self.connection.close()


Sessions = Callable[..., Session]


@contextmanager
def opened_sessions(url: str) -> Iterator[Sessions]:
    """Yield a function that opens sessions at ``url``. All are closed at the end, in any state."""
    opened: list[Session] = []

    def open_one(role: str = "none") -> Session:
        opened.append(Session(url, role=role))
        return opened[-1]

    try:
        yield open_one
    finally:
        for one in opened:
            one.close()


@contextmanager
def own_server(options: dict[str, str]) -> Iterator[EmbeddedPostgres]:
    """Run a PostgreSQL with these settings for one module of tests, with the schema in its database."""
    with tempfile.TemporaryDirectory(prefix="pgbus-test-", ignore_cleanup_errors=True) as directory:
        os.chmod(directory, 0o755)  # the server may run as another user, who needs access
        with EmbeddedPostgres.open(directory, options={"fsync": "off", **options}) as postgres:
            migrate(postgres.url)
            yield postgres


def together(*functions: Callable[[], Any], timeout: float = PATIENCE) -> list[Any]:
    """Run each function in its own greenlet, and return the results. The first exception is raised."""
    jobs = [gevent.spawn(function) for function in functions]
    try:
        gevent.joinall(jobs, timeout=timeout, raise_error=True)
        assert all(job.ready() for job in jobs), f"they were not through within {timeout:g} s"
        return [job.value for job in jobs]
    finally:
        gevent.killall(jobs)


def is_waiting(watcher: Session, waiter: Session) -> bool:
    """Return whether a session waits for a lock of another session."""
    return bool(watcher.one("select cardinality(pg_blocking_pids(%s))", waiter.pid))


def listen_to_all(doorbell: str, control: str) -> str:
    """Return a statement that listens on every channel."""
    return "; ".join(f'listen "{name}"' for name in (control, *(channel(doorbell, n) for n in ALL_BUCKETS)))


class Ear:
    """A session that listens on all channels."""

    def __init__(self, session: Session) -> None:
        self._connection = session.connection
        self._heard: list[str] = []
        session.run(listen_to_all(*session.run("select doorbell, control from pgbus.channels()")[0]))

    def heard_until(self, speaker: Session, timeout: float = PATIENCE) -> list[str]:
        """Return the payloads since the last call, up to a mark that ``speaker`` sends now."""
        mark = f"mark {monotonic()}"
        speaker.run(NOTIFY, "any", mark)
        end = monotonic() + timeout
        while mark not in self._heard:
            assert monotonic() < end, f"the mark did not come within {timeout:g} s, only {self._heard}"
            with suppress(TimeoutError):
                wait_read(self._connection.fileno(), timeout=0.1)
            self._connection.poll()
            self._heard += [notify.payload for notify in self._connection.notifies]
            self._connection.notifies.clear()
        place = self._heard.index(mark)
        found, self._heard = self._heard[:place], self._heard[place + 1 :]
        return found


class Proxy:
    """A TCP port that leads to the server of a URL. Once :attr:`dead` is set, it still accepts bytes but passes none on."""

    def __init__(self, url: str) -> None:
        own = ext.parse_dsn(url)
        self._host, self._port = own.get("host", "127.0.0.1"), int(own.get("port", 5432))
        self.dead = False
        self.taken = 0
        self._open: list[Any] = []
        self._lost: list[Any] = []
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.port = int(self._server.server_port)
        self.url = str(ext.make_dsn(url, host="127.0.0.1", port=self.port))

    def _serve(self, client: Any, _: object) -> None:
        self.taken += 1
        if self._host.startswith("/"):
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{self._host}/.s.PGSQL.{self._port}")
        else:
            server = socket.create_connection((self._host, self._port))
        with server:
            self._open.append(client)
            back = gevent.spawn(self._pass_on, server, client, client)
            self._pass_on(client, server, client)
            back.kill()

    def _pass_on(self, source: Any, target: Any, client: Any) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self.dead and client not in self._lost:
                    target.sendall(data)
            if not self.dead and client not in self._lost:
                target.shutdown(socket.SHUT_WR)

    def lose(self) -> None:
        """Pass nothing on any more for the current connections."""
        self._lost = list(self._open)

    def refuse(self) -> None:
        """Accept no more connections. The current ones go on."""
        self._server.close()

    def stop(self) -> None:
        self._server.stop(1)


# fixtures


@pytest.fixture(scope="module")
def database(pgbus_databases: TestDatabases) -> Iterator[str]:
    """One database for all tests. Each test uses its own streams."""
    url = pgbus_databases.make()
    yield url
    pgbus_databases.drop(url)


@pytest.fixture
def sessions(database: str) -> Iterator[Sessions]:
    with opened_sessions(database) as opener:
        yield opener


@pytest.fixture
def sql(sessions: Sessions) -> Session:
    return sessions()


@pytest.fixture
def ear(sessions: Sessions) -> Ear:
    return Ear(sessions())


_numbers = count(1)


@pytest.fixture
def stream() -> str:
    """A stream name that no other test uses."""
    return f"stream {next(_numbers)}"
