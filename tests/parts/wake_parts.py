"""The wake sources, each with its servers, for the tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

import gevent
from database_parts import NOTIFY, Proxy, opened_sessions
from gevent.lock import RLock
from redis_parts import redis_cluster, redis_server

from pgbus_gevent.core.wake_source import Session
from pgbus_gevent.database import green
from pgbus_gevent.database.notifications import ListenSession
from pgbus_gevent.redis.keys import Keys
from pgbus_gevent.redis.publisher import Outgoing, Publisher
from pgbus_gevent.redis.session import RedisSession
from pgbus_gevent.redis.urls import parse


class Source(Protocol):
    """A wake source whose servers run. ``frozen``: the sessions' connections pass nothing on any more."""

    def listen(self) -> Session: ...
    def send(self, stream: str, payload: str) -> None: ...
    def send_control(self) -> None: ...
    def kill_sessions(self) -> None: ...
    def freeze_sessions(self) -> None: ...


class Listen:
    """LISTEN, through a proxy that can be frozen."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        green.install()
        self._sql = stack.enter_context(opened_sessions(url))()
        self._proxy = Proxy(url)
        stack.callback(self._proxy.stop)

    def listen(self) -> ListenSession:
        return ListenSession(self._proxy.url, connect_timeout=5.0, statement_timeout=10.0)

    def send(self, stream: str, payload: str) -> None:
        self._sql.run(NOTIFY, stream, payload)

    def send_control(self) -> None:
        self._sql.run("""select pg_notify((select control from pgbus.channels()), '["control"]')""")

    def kill_sessions(self) -> None:
        self._sql.run(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'pgbus-listen' and datname = current_database()"
        )

    def freeze_sessions(self) -> None:
        self._proxy.dead = True


class Redis:
    """Redis, with a publisher that sends beacons."""

    def __init__(self, stack: ExitStack, servers: AbstractContextManager[_Servers]) -> None:
        self._servers = stack.enter_context(servers)
        self._keys = Keys("a secret of the database", "g", sharded=self._servers.url.startswith("redis+cluster"))
        self._publisher = Publisher(parse(self._servers.url), self._keys)
        stack.callback(self._publisher.close)
        self._lock = RLock()  # one greenlet at a time uses a publisher
        self._beating = gevent.spawn(self._beat)
        stack.callback(self._beating.kill)

    def _beat(self) -> None:
        while True:
            with self._lock:
                self._publisher.beacon()
            gevent.sleep(0.2)

    def listen(self) -> RedisSession:
        return RedisSession(parse(self._servers.url), self._keys)

    def send(self, stream: str, payload: str) -> None:
        self._publish(Outgoing(stream, payload))

    def send_control(self) -> None:
        self._publish(Outgoing(None, '["control"]'))

    def _publish(self, wake: Outgoing) -> None:
        with self._lock:
            self._publisher.publish([wake])

    def kill_sessions(self) -> None:
        self._beating.kill()
        self._servers.close()

    def freeze_sessions(self) -> None:
        self._beating.kill()  # a session that hears no beacon cannot tell it from a frozen line


class _Servers(Protocol):
    @property
    def url(self) -> str: ...
    def close(self) -> None: ...


SOURCES: dict[str, Callable[[str, ExitStack], Source]] = {
    "listen": Listen,
    "redis": lambda _, stack: Redis(stack, redis_server()),
    "redis cluster": lambda _, stack: Redis(stack, redis_cluster()),
}
"""Makes each source from the URL of a database and a stack that ends its servers. Polling is none: it has no sessions."""


@contextmanager
def running(kind: str, database_url: str) -> Iterator[Source]:
    """Run the servers of a source for a block."""
    with ExitStack() as stack:
        yield SOURCES[kind](database_url, stack)
