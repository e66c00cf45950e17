"""Servers of Redis for tests: single ones, a cluster of three nodes, and a master with a replica under Sentinels."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from redis import Redis
from redis.exceptions import RedisError
from support import free_port, until

from pgbus_gevent.redis.keys import Keys
from pgbus_gevent.redis.publisher import Publisher

PROGRAM = next(filter(shutil.which, ("redis-server", "valkey-server")), None)
needs_redis = pytest.mark.skipif(PROGRAM is None, reason="neither redis-server nor valkey-server is installed")

START = 60.0  # seconds
PATIENCE = 60.0
"""Seconds for what takes less than one on a machine of its own."""

NODE_TIMEOUT_MS = 30_000
"""Milliseconds without an answer after which a server counts as dead. On a busy machine, one that lives may be late by seconds."""

KEYS = Keys("secret", "g", sharded=False)


class RedisServer:
    """One process of Redis or Valkey on a free port of the loopback, without persistence. ``options`` are lines of redis.conf."""

    def __init__(self, *options: str, port: int | None = None, sentinel: bool = False) -> None:
        self.port = port or free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="pgbus-redis-"))
        self._options = options
        self._sentinel = sentinel
        self._password = next((line.split()[1] for line in options if line.startswith("requirepass ")), None)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def client(self) -> Redis:
        """Return a new client; the caller need not close it."""
        return Redis(port=self.port, socket_timeout=PATIENCE, password=self._password)

    def start(self) -> None:
        """Start the process and wait until it answers."""
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.folder}",
            'save ""',
            "protected-mode no",
            *self._options,
        ]
        config = self.folder / "redis.conf"
        config.write_text("\n".join(lines) + "\n")
        assert PROGRAM is not None
        arguments = [PROGRAM, str(config), *(["--sentinel"] if self._sentinel else [])]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log)
        until(self.answers, "Redis answers", START)

    def answers(self) -> bool:
        try:
            with self.client as client:
                return bool(client.ping())
        except RedisError:
            return False

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End the process without a chance to say goodbye. It may be started again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START)
            self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """Run one server."""
    server = RedisServer(*options)
    try:
        yield server
    finally:
        server.close()


class RedisCluster:
    """Three masters, each with a third of the slots."""

    def __init__(self, *options: str) -> None:
        self.nodes: list[RedisServer] = []
        try:
            for _ in range(3):
                self.nodes.append(
                    RedisServer(
                        "cluster-enabled yes", f"cluster-node-timeout {NODE_TIMEOUT_MS}", *options, port=_cluster_port()
                    )
                )
            thirds = [(0, 5460), (5461, 10922), (10923, 16383)]
            for node, (first, last) in zip(self.nodes, thirds, strict=True):
                node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            for node in self.nodes[1:]:
                node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
            until(lambda: all(map(self._is_ready, self.nodes)), "the cluster is complete", START, pause=0.1)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _is_ready(node: RedisServer) -> bool:
        info = node.client.execute_command("CLUSTER", "INFO")
        text = "\n".join(f"{key}:{value}" for key, value in info.items()) if isinstance(info, dict) else info.decode()
        return "cluster_state:ok" in text and "cluster_known_nodes:3" in text

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def _cluster_port() -> int:
    """Return a free port below 22,000, so that the port of the cluster's bus, 10,000 higher, is not an ephemeral one."""
    while (port := free_port()) > 22_000:
        pass
    return port


@contextmanager
def redis_cluster(*options: str) -> Iterator[RedisCluster]:
    """Run a cluster."""
    cluster = RedisCluster(*options)
    try:
        yield cluster
    finally:
        cluster.close()


class RedisSentinels:
    """A master, a replica, and three Sentinels, which fail over within seconds once :meth:`hurry` was called."""

    NAME = "pgbus"

    def __init__(self) -> None:
        self.servers: list[RedisServer] = []
        self.sentinels: list[RedisServer] = []
        try:
            self.servers.append(RedisServer())
            self.servers.append(
                RedisServer(f"replicaof 127.0.0.1 {self.servers[0].port}", "repl-diskless-sync-delay 0")
            )
            until(self._replicates, "the replica has caught up", START, pause=0.1)
            for _ in range(3):
                self.sentinels.append(
                    RedisServer(
                        f"sentinel monitor {self.NAME} 127.0.0.1 {self.servers[0].port} 2",
                        f"sentinel down-after-milliseconds {self.NAME} {NODE_TIMEOUT_MS}",
                        f"sentinel failover-timeout {self.NAME} 5000",
                        sentinel=True,
                    )
                )
            until(lambda: all(map(self._is_ready, self.sentinels)), "the Sentinels know one another", START, pause=0.1)
        except BaseException:
            self.close()
            raise

    def hurry(self) -> None:
        """Have the Sentinels take the master for dead after a second without an answer."""
        for sentinel in self.sentinels:
            sentinel.client.execute_command("SENTINEL", "SET", self.NAME, "down-after-milliseconds", 1000)

    def _replicates(self) -> bool:
        return bool(self.servers[1].client.info("replication")["master_link_status"] == "up")

    def _is_ready(self, sentinel: RedisServer) -> bool:
        state = sentinel.client.sentinel_master(self.NAME)
        return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == 1)

    @property
    def url(self) -> str:
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels) + f"/{self.NAME}"

    def close(self) -> None:
        for server in [*self.sentinels, *self.servers]:
            server.close()


@contextmanager
def redis_sentinels() -> Iterator[RedisSentinels]:
    """Run a master, a replica and Sentinels."""
    sentinels = RedisSentinels()
    try:
        yield sentinels
    finally:
        sentinels.close()


def fresh_session(keys: Keys = KEYS) -> Any:
    """Return what stands for a session that has just heard a beacon."""
    return SimpleNamespace(fresh=True, keys=keys, reign="r")


@contextmanager
def beating(publisher: Publisher) -> Iterator[None]:
    """Send the beacons of a publisher while the block runs."""

    def beat() -> None:
        while True:
            publisher.beacon()
            gevent.sleep(0.1)

    greenlet = gevent.spawn(beat)
    try:
        yield
    finally:
        greenlet.kill()


def collected(receive: object, count: int, timeout: float = PATIENCE) -> list[str]:
    """Return the payloads of a session once there are ``count``. A loss fails the test."""
    found: list[str] = []
    deadline = monotonic() + timeout
    while len(found) < count and monotonic() < deadline:
        payloads, lost = receive(0.2)  # type: ignore[operator]
        assert not lost
        found += payloads
    return found
