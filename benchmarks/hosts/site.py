"""The parts of the data centre: database, standby, pooler, Redis Cluster, workers, relays and the load balancer."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .network import Host, Network, Process

POSTGRES = "postgres"  # PostgreSQL does not run as root
SECRET = "s" * 40
STREAMS = "room:*"
_START_SECONDS = 60.0

_HAPROXY = """
global
  maxconn 9500
  tune.bufsize 33792
defaults
  mode http
  maxconn 9000
  timeout connect 2s
  timeout http-request 10s
  timeout client 30s
  timeout server 30s
frontend plain
  bind {address}:8080
  use_backend events
frontend http2
  bind {address}:8443 proto h2
  use_backend events
backend events
  balance leastconn
  option httpchk GET /pgbus/readyz
  default-server inter 1s fall 2 rise 1
  option redispatch
{servers}
{unavailable}
  http-after-response set-status 200 if {{ status 503 }}
"""

# An EventSource does not come back after a 503.
_UNAVAILABLE = (
    '  http-error status 503 content-type "text/event-stream; charset=utf-8" lf-string "retry: %[rand(2000),add(1000)]'
    '\\nevent: pgbus:shutdown\\ndata: {\\"reason\\":\\"unavailable\\"}\\n\\n" hdr cache-control "no-cache, no-transform"'
)

_BOUNCER = """
[databases]
postgres = host={database} port=5432
[pgbouncer]
listen_addr = {address}
listen_port = 6432
auth_type = trust
auth_file = {users}
pool_mode = transaction
max_client_conn = 2000
default_pool_size = 60
ignore_startup_parameters = extra_float_digits,options
logfile =
"""


def until(happened: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until ``happened`` returns true. Raises :class:`TimeoutError` after ``seconds``."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.1)


class Site:
    """Builds and starts everything in ``network``. ``binaries`` is the directory of PostgreSQL's programs."""

    def __init__(self, network: Network, folder: Path, binaries: Path, *, redis: bool = True) -> None:
        self.folder, self._binaries = folder, binaries
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        # PostgreSQL refuses directories that other accounts can write to, and its account must be able to enter this one.
        self._data = Path(tempfile.mkdtemp(prefix="pgbus-hosts-"))
        self._data.chmod(0o755)
        self.database = network.host("db", 10)
        self.standby = network.host("standby", 11)
        self.pooler = network.host("pooler", 12)
        self.workers = [network.host(f"web{n}", 20 + n) for n in range(1, 5)]
        self.redis = [network.host(f"redis{n}", 30 + n) for n in range(1, 4)] if redis else []
        self.balancer = network.host("lb", 40)
        self.clients = network.host("clients", 50)

    def close(self) -> None:
        """Remove the data directories. The logs stay."""
        shutil.rmtree(self._data, ignore_errors=True)

    @property
    def url(self) -> str:
        """The database, directly."""
        return f"postgresql://{POSTGRES}@{self.database.address}/postgres"

    @property
    def pooled_url(self) -> str:
        """The database behind PgBouncer in transaction mode."""
        return f"postgresql://{POSTGRES}@{self.pooler.address}:6432/postgres"

    def start(self) -> None:
        """Start everything, in the order in which the parts need each other."""
        self._start_database()
        self._start_standby()
        self._start_pooler()
        if self.redis:
            self._start_redis()
        serve = [sys.executable, "-m", "pgbus_gevent"]
        self.database.run([*serve, "migrate", "--database-url", self.url])
        for host in self.workers:
            host.start("serve", [*serve, "serve"], self.logs, **self._settings(host))
        if self.redis:
            for host in self.workers[:2]:
                host.start("relay", [*serve, "relay"], self.logs, **self._settings(host))
        self._start_balancer()
        until(lambda: self._ready() == len(self.workers), _START_SECONDS, "not every host is ready")

    def _settings(self, host: Host) -> dict[str, str]:
        settings = {
            "PGBUS_DATABASE_URL": self.pooled_url,
            "PGBUS_LISTEN_URL": self.url,
            "PGBUS_REPLICA_URL": f"postgresql://{POSTGRES}@{self.standby.address}/postgres",
            "PGBUS_HOST": host.address,
            "PGBUS_PORT": "8080",
            "PGBUS_WORKERS": "2",
            "PGBUS_SECRET": SECRET,
            "PGBUS_PUBLIC": STREAMS,
            "PGBUS_MIGRATE": "false",
            "PGBUS_HEARTBEAT": "5",
            "PGBUS_RETENTION": "86400",  # at the end, the table must still have all messages
            "PGBUS_MAX_CONNECTIONS": "6000",
            "PYTHONUNBUFFERED": "1",
        }
        if self.redis:
            settings["PGBUS_WAKE"] = "redis+cluster://" + ",".join(f"{node.address}:7000" for node in self.redis)
        return settings

    def _ready(self) -> int:
        answers = (
            self.clients.run(
                [
                    "sh",
                    "-c",
                    f"curl -s -m 2 -o /dev/null -w '%{{http_code}}' http://{host.address}:8080/pgbus/readyz || true",
                ]
            )
            for host in self.workers
        )
        return sum(answer.strip() == "200" for answer in answers)

    # PostgreSQL

    def _start_database(self) -> None:
        data = self._directory("primary")
        self.database.run(
            [f"{self._binaries}/initdb", "-D", data, "-U", POSTGRES, "-E", "UTF8", "--locale=C.UTF-8", "--auth=trust"],
            user=POSTGRES,
        )
        with Path(data, "pg_hba.conf").open("a") as hba:
            hba.write("host all all 10.77.0.0/24 trust\nhost replication all 10.77.0.0/24 trust\n")
        self._start_server(self.database, data, "max_connections=300", "wal_keep_size=512MB", "wal_sender_timeout=5s")

    def _start_standby(self) -> None:
        data = self._directory("standby", create=False)
        self.standby.run(
            [
                f"{self._binaries}/pg_basebackup",
                "-h",
                self.database.address,
                "-U",
                POSTGRES,
                "-D",
                data,
                "-R",
                "-c",
                "fast",
            ],
            user=POSTGRES,
        )
        self._start_server(
            self.standby, data, "max_connections=300", "wal_receiver_timeout=5s", "hot_standby_feedback=off"
        )

    def _start_server(self, host: Host, data: str, *settings: str) -> None:
        options = [f"listen_addresses={host.address}", "unix_socket_directories=", *settings]
        host.start(
            "postgres",
            [f"{self._binaries}/postgres", "-D", data, *(word for option in options for word in ("-c", option))],
            self.logs,
            user=POSTGRES,
        )
        ready = [f"{self._binaries}/pg_isready", "-q", "-U", POSTGRES, "-h", host.address]
        until(lambda: _succeeds(host, ready), _START_SECONDS, f"PostgreSQL on {host.name} does not answer")

    def _directory(self, name: str, *, create: bool = True) -> str:
        parent = self._data / name
        parent.mkdir()
        if os.geteuid() == 0:
            shutil.chown(parent, POSTGRES, POSTGRES)
        return str(parent / "data")

    # the others

    def _start_pooler(self) -> None:
        folder = self._data / "pooler"
        folder.mkdir(mode=0o755)
        users = folder / "users"
        users.write_text(f'"{POSTGRES}" ""\n')
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(
            _BOUNCER.format(database=self.database.address, address=self.pooler.address, users=users)
        )
        self.pooler.start("pgbouncer", ["pgbouncer", str(configuration)], self.logs, user=POSTGRES)

    def _start_redis(self) -> None:
        # Each host has a master, on port 7000, and the replica of another host's master, on port 7001.
        for host in self.redis:
            for port in ("7000", "7001"):
                folder = self._data / f"{host.name}-{port}"
                folder.mkdir()
                host.start(
                    f"redis-{port}",
                    [
                        *("redis-server", "--port", port, "--bind", host.address, "--dir", str(folder)),
                        *(
                            "--cluster-enabled",
                            "yes",
                            "--cluster-node-timeout",
                            "2000",
                            "--save",
                            "",
                            "--appendonly",
                            "no",
                        ),
                        *("--protected-mode", "no", "--maxmemory", "256mb", "--repl-diskless-sync-delay", "0"),
                    ],
                    self.logs,
                )
        nodes = [f"{host.address}:{port}" for port in ("7000", "7001") for host in self.redis]
        until(lambda: all(self._pings(node) for node in nodes), _START_SECONDS, "a Redis node does not answer")
        self.clients.run(["redis-cli", "--cluster", "create", *nodes, "--cluster-replicas", "1", "--cluster-yes"])

    def _pings(self, node: str) -> bool:
        address, port = node.split(":")
        return _succeeds(self.clients, ["redis-cli", "-h", address, "-p", port, "ping"])

    def _start_balancer(self) -> None:
        servers = "\n".join(f"  server {host.name} {host.address}:8080 check" for host in self.workers)
        configuration = self._data / "haproxy.cfg"
        configuration.write_text(
            _HAPROXY.format(address=self.balancer.address, servers=servers, unavailable=_UNAVAILABLE)
        )
        self.balancer.start("haproxy", ["haproxy", "-W", "-db", "-f", str(configuration)], self.logs)

    def parts(self) -> list[tuple[Host, str, Process]]:
        """Return every process with its host and name."""
        hosts = [self.database, self.standby, self.pooler, *self.redis, *self.workers, self.balancer]
        return [(host, name, process) for host in hosts for name, process in host.processes.items()]


def _succeeds(host: Host, command: list[str]) -> bool:
    try:
        return "err" not in host.run(command, timeout=5).lower()
    except Exception:
        return False
